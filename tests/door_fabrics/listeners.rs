//! Listeners: overlapping addresses, keys that a listener does not require, and what discovery reports of both.

use std::net::{IpAddr, SocketAddr, TcpListener};

use serde_json::{Value, json};
use tonic::Code;

use crate::common::nvme_tcp::{
    ANSWER, DISCOVERY, Digests, Identity, Record, discovered, discoverer, log,
};
use crate::common::{
    Client, JsonRpc, Options, PSK, Resource, Target, base64, eventually, free_port, malloc,
    name_of, namespace, nqn_of, pcie_spec, subsystem, tcp_controller, unique,
};

fn controller(ip: &str, port: u16) -> Value {
    let family = if ip.contains(':') { "IPV6" } else { "IPV4" };
    json!({ "spec": {
        "trtype": "NVME_TRANSPORT_TYPE_TCP",
        "fabrics_id": {
            "traddr": ip,
            "trsvcid": port.to_string(),
            "adrfam": format!("NVME_ADDRESS_FAMILY_{family}"),
        },
    }})
}

fn at(ip: &str, port: u16, id: &str) -> Identity {
    let ip: IpAddr = ip.parse().expect("an address");
    Identity {
        address: SocketAddr::new(ip, port),
        ..Identity::new(port, &nqn_of(id))
    }
}

/// Waits until nothing listens on the port any more.
async fn is_free(ip: &str, port: u16) {
    eventually("the port is free", ANSWER, async || {
        TcpListener::bind((ip, port)).ok()
    })
    .await;
}

async fn two_subsystems(client: &Client) -> [(String, String); 2] {
    let mut made = Vec::new();
    for id in [unique("one"), unique("two")] {
        let name = subsystem(client, &id, json!({})).await;
        made.push((id, name));
    }
    made.try_into().expect("two")
}

#[tokio::test]
async fn overlapping_addresses_are_refused_with_both_names() {
    let target = Target::start().await;
    let client = target.client().await;
    let [(one, first), (_, second)] = two_subsystems(&client).await;
    let controllers = Resource::new(&client, "NvmeController");
    for (a, b) in [
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("::", "::1"),
        ("::1", "::"),
    ] {
        let port = free_port();
        let made = controllers.created(&first, "", controller(a, port)).await;
        for subsystem in [&first, &second] {
            let overlapping = controllers.create(subsystem, "", controller(b, port)).await;
            let status = overlapping.expect_err("they overlap");
            let text = status.message();
            let both = [
                SocketAddr::new(a.parse().expect("an address"), port),
                SocketAddr::new(b.parse().expect("an address"), port),
            ];
            assert!(
                both.iter().all(|name| text.contains(&name.to_string())),
                "{text}"
            );
            assert!(text.contains(&nqn_of(&one)), "{text}");
        }
        // A listener may move to the address with which it overlapped.
        let name = name_of(&made);
        controllers.updated(&name, controller(b, port), None).await;
        let to = if b.contains(':') { "::1" } else { "127.0.0.1" };
        drop(at(to, port, &one).admin(Digests::OFF));
        controllers.deleted(&name).await;
        is_free(b, port).await;
    }
    // The wildcard addresses of IPv4 and IPv6 do not overlap.
    let port = free_port();
    let v4 = controllers
        .created(&first, "", controller("0.0.0.0", port))
        .await;
    let v6 = controllers
        .created(&first, "", controller("::", port))
        .await;
    drop(at("127.0.0.1", port, &one).admin(Digests::OFF));
    drop(at("::1", port, &one).admin(Digests::OFF));
    for made in [v4, v6] {
        controllers.deleted(&name_of(&made)).await;
    }
    let mapped = controller("::ffff:127.0.0.1", port);
    let status = controllers
        .create(&first, "", mapped)
        .await
        .expect_err("IPv4");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    target.stop();
}

#[tokio::test]
async fn an_address_with_tls_and_one_without_are_not_one_and_the_other_is_named() {
    let target = Target::start().await;
    let client = target.client().await;
    let spec = json!({ "hostnqn": nqn_of("host"), "psk": base64(PSK) });
    let secure = subsystem(&client, "secure", spec).await;
    let clear = subsystem(&client, "clear", json!({})).await;
    let controllers = Resource::new(&client, "NvmeController");
    for (first, second, other) in [(&secure, &clear, "secure"), (&clear, &secure, "clear")] {
        let port = free_port();
        let made = controllers
            .created(first, "", controller("127.0.0.1", port))
            .await;
        let refused = controllers
            .create(second, "", controller("127.0.0.1", port))
            .await
            .expect_err("one speaks TLS");
        for part in [nqn_of(other), format!("127.0.0.1:{port}"), "TLS".into()] {
            assert!(refused.message().contains(&part), "{part}: {refused}");
        }
        controllers.deleted(&name_of(&made)).await;
    }
    target.stop();
}

/// Parameters of a listener added by SPDK's own command, which bypasses this program's checks.
fn listener(nqn: &str, ip: &str, port: u16) -> Value {
    let address = json!({
        "trtype": "tcp", "adrfam": "ipv4", "traddr": ip, "trsvcid": port.to_string(),
    });
    json!({ "nqn": nqn, "listen_address": address })
}

#[tokio::test]
async fn overlapping_listeners_of_other_programs_are_sockets_of_their_own() {
    let (options, socket) = Options::default().with_rpc();
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let [(one, _), (two, _)] = two_subsystems(&client).await;
    let mut rpc = JsonRpc::connect(&socket).await.expect("SPDK's socket");
    let port = free_port();
    let wide = listener(&nqn_of(&one), "0.0.0.0", port);
    let narrow = listener(&nqn_of(&two), "127.0.0.1", port);
    let add = "nvmf_subsystem_add_listener";
    rpc.call(add, wide.clone()).await.expect("a free port");
    rpc.call(add, narrow).await.expect_err("the port is taken");
    let removed = rpc.call("nvmf_subsystem_remove_listener", wide).await;
    removed.expect("it is there");
    is_free("0.0.0.0", port).await;
    target.stop();
}

#[tokio::test]
async fn a_host_with_a_key_never_comes_in_the_clear() {
    let (options, socket) = Options::default().with_rpc();
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let bob = "nqn.2022-09.io.spdk:bob";
    let volume = malloc(&client, "secret", 4).await;
    let spec = json!({ "hostnqn": bob, "psk": base64(PSK) });
    let name = subsystem(&client, "bob", spec).await;
    namespace(&client, &name, &volume, json!({})).await;
    let mut rpc = JsonRpc::connect(&socket).await.expect("SPDK's socket");
    let port = free_port();
    let plain = listener(&nqn_of("bob"), "127.0.0.1", port);
    let added = rpc.call("nvmf_subsystem_add_listener", plain).await;
    added.expect("a listener without TLS");
    let identity = Identity {
        hostnqn: bob.into(),
        ..Identity::new(port, &nqn_of("bob"))
    };
    let mut host = identity.negotiated(Digests::OFF);
    let admitted = host.connect(&identity, 0, 0xffff);
    admitted.expect_err("it has a key, and comes without");
    drop(host);
    target.stop();
}

#[tokio::test]
async fn discovery_tells_the_address_by_which_the_host_came() {
    let target = Target::start().await;
    let client = target.client().await;
    let [(one, first), (two, second)] = two_subsystems(&client).await;
    let controllers = Resource::new(&client, "NvmeController");
    let port = free_port();
    for (subsystem, ip) in [(&first, "0.0.0.0"), (&second, "0.0.0.0"), (&first, "::")] {
        controllers
            .created(subsystem, "", controller(ip, port))
            .await;
    }
    let record = |ip: &str, id| Record::tcp(ip, port, &nqn_of(id));
    let mut v4 = discovered("127.0.0.1", port);
    v4.sort();
    assert_eq!(v4, [record("127.0.0.1", &one), record("127.0.0.1", &two)]);
    assert_eq!(discovered("127.0.0.2", port)[0].address, "127.0.0.2");
    assert_eq!(discovered("::1", port), [record("::1", &one)]);
    let log = target.log();
    assert!(!log.contains("deprecated"), "{log}");
    target.stop();
}

#[tokio::test]
async fn discovery_over_tcp_tells_tcp_alone() {
    let target = Target::start_with(Options::hugepages()).await;
    let client = target.client().await;
    let [(one, first), _] = two_subsystems(&client).await;
    let controllers = Resource::new(&client, "NvmeController");
    let port = free_port();
    let tcp = controller("127.0.0.1", port);
    controllers.created(&first, "", tcp).await;
    let pcie = controllers.created(&first, "", pcie_spec(1)).await;
    let record = Record::tcp("127.0.0.1", port, &nqn_of(&one));
    assert_eq!(discovered("127.0.0.1", port), [record]);
    controllers.deleted(&name_of(&pcie)).await;
    target.stop();
}

#[tokio::test]
async fn discovery_at_an_address_of_its_own_tells_of_itself_and_of_all_controllers() {
    let (own, port) = (free_port(), free_port());
    let address = format!("127.0.0.1:{own}");
    let target = Target::start_with(Options::default().args(["--discovery-addr", &address])).await;
    let client = target.client().await;
    let itself = Record::tcp("127.0.0.1", own, DISCOVERY);
    let told = eventually("the service is open", ANSWER, async || {
        std::net::TcpStream::connect(("127.0.0.1", own)).ok()
    });
    drop(told.await);
    assert_eq!(discovered("127.0.0.1", own), std::slice::from_ref(&itself));

    let [(one, first), (_, second)] = two_subsystems(&client).await;
    let controllers = Resource::new(&client, "NvmeController");
    let made = controllers
        .created(&first, "", controller("127.0.0.1", port))
        .await;
    let record = Record::tcp("127.0.0.1", port, &nqn_of(&one));
    for asked in [own, port] {
        let mut all = discovered("127.0.0.1", asked);
        all.sort_by_key(|record| record.subsystem == DISCOVERY);
        assert_eq!(all, [record.clone(), itself.clone()]);
    }
    let over = controllers
        .create(&second, "", controller("0.0.0.0", own))
        .await;
    let status = over.expect_err("they overlap");
    assert!(status.message().contains(DISCOVERY), "{status:?}");

    controllers.deleted(&name_of(&made)).await;
    assert_eq!(discovered("127.0.0.1", own), [itself]);
    target.stop();
}

#[tokio::test]
async fn a_host_is_told_what_it_may_connect_to_and_how() {
    const ALICE: &str = "nqn.2022-09.io.spdk:alice";
    const BOB: &str = "nqn.2022-09.io.spdk:bob";
    let own = free_port();
    let address = format!("127.0.0.1:{own}");
    let target = Target::start_with(Options::default().args(["--discovery-addr", &address])).await;
    let client = target.client().await;
    let hosts = Resource::new(&client, "NvmeHost");
    let mut ports = Vec::new();
    for (id, spec, others) in [
        ("alices", json!({ "hostnqn": ALICE }), vec![]),
        ("bobs", json!({}), vec![json!({ "hostnqn": BOB })]),
        (
            "keyed",
            json!({}),
            vec![json!({ "hostnqn": ALICE, "psk": base64(PSK) })],
        ),
        ("everybodys", json!({}), vec![]),
    ] {
        let name = subsystem(&client, id, spec).await;
        for host in others {
            hosts.created(&name, "", host).await;
        }
        ports.push(tcp_controller(&client, &name).await.1);
    }
    let [alices, bobs, keyed, everybodys] = ports.try_into().expect("four");
    let record = |id, port| Record::tcp("127.0.0.1", port, &nqn_of(id));
    let itself = Record::tcp("127.0.0.1", own, DISCOVERY);
    let open = record("everybodys", everybodys);
    let seen = async |hostnqn: &str| {
        let host = Identity {
            hostnqn: hostnqn.to_owned(),
            ..discoverer("127.0.0.1", own)
        };
        let mut seen = log(&mut host.admin(Digests::OFF));
        seen.sort_by(|a, b| a.subsystem.cmp(&b.subsystem));
        seen
    };
    let secure = record("keyed", keyed).secure();
    let hers = [&itself, &record("alices", alices), &open, &secure];
    assert_eq!(seen(ALICE).await.iter().collect::<Vec<_>>(), hers);
    let his = [&itself, &record("bobs", bobs), &open];
    assert_eq!(seen(BOB).await.iter().collect::<Vec<_>>(), his);
    let stranger = "nqn.2022-09.io.spdk:stranger";
    assert_eq!(
        seen(stranger).await.iter().collect::<Vec<_>>(),
        [&itself, &open]
    );

    // Who is admitted later is told then.
    let hers = hosts.created("nvmeSubsystems/bobs", "", json!({ "hostnqn": ALICE }));
    let hers = name_of(&hers.await);
    assert!(seen(ALICE).await.contains(&record("bobs", bobs)));
    hosts.deleted(&hers).await;
    assert!(!seen(ALICE).await.contains(&record("bobs", bobs)));
    target.stop();
}
