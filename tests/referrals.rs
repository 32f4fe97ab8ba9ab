//! DiscoveryReferral: other discovery services in the discovery log page.

mod common;

use std::time::Duration;

use common::nvme_tcp::{Command, DISCOVERY, Digests, Pdu, Record, discovered, discoverer, log};
use common::{Client, Options, Resource, Target, eventually, free_port, name_of, nqn_of};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::Code;

/// Timeout of what happens asynchronously.
const SOON: Duration = Duration::from_secs(20);

/// Starts a target whose only listener is the discovery service: no host can connect to a subsystem.
async fn target(port: u16) -> Target {
    let address = format!("127.0.0.1:{port}");
    let options = Options::default().args(["--discovery-addr", &address]);
    let target = Target::start_with(options).await;
    open(port).await;
    target
}

async fn open(port: u16) {
    eventually("the discovery service is open", SOON, async || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    })
    .await;
}

fn referral(traddr: &str, trsvcid: u16) -> Value {
    json!({ "trtype": "NVME_TRANSPORT_TYPE_TCP", "traddr": traddr, "trsvcid": trsvcid })
}

fn referrals(client: &Client) -> Resource {
    Resource::new(client, "DiscoveryReferral")
}

/// Returns the entries about other discovery services.
fn told(port: u16) -> Vec<Record> {
    let mut records = discovered("127.0.0.1", port);
    records.retain(|record| record.subtype != 3);
    records.sort();
    records
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn referrals_are_in_the_discovery_log_until_deleted() {
    let port = free_port();
    let mut target = target(port).await;
    let client = target.client().await;
    let all = referrals(&client);
    assert_eq!(told(port), []);

    let one = name_of(&all.created("", "one", referral("192.0.2.7", 8009)).await);
    assert_eq!(one, "discoveryReferrals/one");
    let mut own = referral("2001:db8::7", 8010);
    own["subnqn"] = json!(nqn_of("elsewhere"));
    all.created("", "two", own).await;
    let first = Record::referral("192.0.2.7", 8009, DISCOVERY);
    let second = Record::referral("2001:db8::7", 8010, &nqn_of("elsewhere"));
    assert_eq!(told(port), [first.clone(), second.clone()]);
    let names: Vec<_> = all.names("").await;
    assert_eq!(names, ["discoveryReferrals/one", "discoveryReferrals/two"]);

    // An update replaces the entry.
    all.updated(&one, json!({ "traddr": "192.0.2.8" }), Some(&["traddr"]))
        .await;
    let moved = Record::referral("192.0.2.8", 8009, DISCOVERY);
    assert_eq!(told(port), [moved.clone(), second.clone()]);
    all.updated(
        &one,
        json!({ "trtype": "NVME_TRANSPORT_TYPE_RDMA" }),
        Some(&["trtype"]),
    )
    .await;
    let over_rdma = Record {
        transport: 1,
        ..moved
    };
    assert_eq!(told(port), [over_rdma.clone(), second.clone()]);

    // Referrals survive SIGKILL.
    target.signal(Signal::KILL);
    let _ = target.wait(SOON);
    let address = format!("127.0.0.1:{port}");
    let again = Options::default().args(["--discovery-addr", &address]);
    let target = Target::start_with(again.after(&target)).await;
    open(port).await;
    assert_eq!(told(port), [over_rdma, second.clone()]);

    let client = target.client().await;
    let all = referrals(&client);
    all.deleted(&one).await;
    assert_eq!(told(port), [second]);
    all.deleted("discoveryReferrals/two").await;
    assert_eq!(told(port), []);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connected_host_gets_a_discovery_log_change_event() {
    let port = free_port();
    let target = target(port).await;
    let client = target.client().await;
    let mut host = discoverer("127.0.0.1", port).admin(Digests::OFF);
    // Hosts enable Discovery Log Page Change events with feature 0Bh, bit 31.
    let cid = host.cid();
    let feature = Command::new(0x09, cid).cdw(10, 0x0b).cdw(11, 1 << 31);
    assert_eq!(host.call(feature, &[]).expect("an answer").status(), 0);
    let event = host.cid();
    let request = Command::new(0x0c, event);
    host.send(&Pdu::capsule(request, &[]))
        .expect("the command is sent");
    referrals(&client)
        .created("", "one", referral("192.0.2.7", 8009))
        .await;
    let (answer, _) = host.completion(event, &[]).expect("an event");
    // Event type Notice (2), Discovery Log Page Change (F0h), log page 70h.
    assert_eq!(answer.u32(8), 0x0070_f002);
    let records = log(&mut host);
    assert!(records.contains(&Record::referral("192.0.2.7", 8009, DISCOVERY)));
    target.stop();
}

#[tokio::test]
async fn invalid_and_duplicate_referrals_are_rejected() {
    let target = Target::start().await;
    let client = target.client().await;
    let all = referrals(&client);
    for (field, value, said) in [
        ("traddr", json!("0.0.0.0"), "no address of a peer"),
        ("traddr", json!("ff02::1"), "multicast"),
        ("traddr", json!("storage.example"), "not an IP address"),
        ("trsvcid", json!(0), "trsvcid"),
        ("trsvcid", json!(65_536), "1 to 65535"),
        ("subnqn", json!("nqn.bad"), "subnqn"),
        ("trtype", json!("NVME_TRANSPORT_TYPE_PCIE"), "not served"),
    ] {
        let mut bad = referral("192.0.2.7", 8009);
        bad[field] = value;
        let refused = all.refused("", "bad", bad, Code::InvalidArgument).await;
        assert!(refused.message().contains(said), "{field}: {refused}");
    }
    all.created("", "one", referral("192.0.2.7", 8009)).await;
    // The default NQN and the well-known NQN are the same.
    let mut same = referral("192.0.2.7", 8009);
    same["subnqn"] = json!(DISCOVERY);
    let refused = all.refused("", "two", same, Code::AlreadyExists).await;
    assert!(refused.message().contains("referral to"), "{refused}");
    target.stop();
}
