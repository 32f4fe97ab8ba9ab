//! Connected hosts, with SPDK's own initiator.

use std::process::Command;

use opi_spdk::api::own::{DisconnectHostRequest, Event, EventType, Host, ListHostsRequest};
use serde_json::{Value, json};
use tonic::{Code, Status, Streaming};

use super::{SOON, Service, next};
use crate::common::{Fixture, Http, Target, check_details, eventually};

const ONE: &str = "nqn.2022-09.io.spdk:one";
const TWO: &str = "nqn.2022-09.io.spdk:two";

/// How long the hosts' load lasts unless they are disconnected, s.
const STAY: u32 = 60;

impl Service {
    async fn hosts(&self, parent: &str, page_size: i32) -> Result<Vec<Host>, Status> {
        let mut client = self.0.clone();
        let mut request = ListHostsRequest {
            parent: parent.to_owned(),
            page_size,
            page_token: String::new(),
        };
        let mut found = Vec::new();
        loop {
            let page = client.list_hosts(request.clone()).await?.into_inner();
            found.extend(page.hosts);
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            request.page_token = page.next_page_token;
        }
    }

    async fn disconnect(
        &self,
        name: &str,
        host_nqn: &str,
        controller_id: Option<i32>,
    ) -> Result<Vec<Host>, Status> {
        let request = DisconnectHostRequest {
            name: name.to_owned(),
            host_nqn: host_nqn.to_owned(),
            controller_id,
        };
        let answer = self.0.clone().disconnect_host(request).await?;
        Ok(answer.into_inner().hosts)
    }
}

/// Waits for the next event of this type.
async fn told(events: &mut Streaming<Event>, what: EventType) -> Event {
    loop {
        let event = next(events).await;
        if event.r#type() == what {
            return event;
        }
    }
}

/// Returns the hosts without their I/O counters, which keep changing.
fn without_io(hosts: &[Host]) -> Vec<Host> {
    let mut hosts = hosts.to_vec();
    for queue in hosts.iter_mut().flat_map(|host| &mut host.queues) {
        queue.completed_io_count = 0;
    }
    hosts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_listed_told_of_and_disconnected() {
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 16).await;
    let subsystem = export.subsystem.as_str();
    let service = Service::of(&export.client);
    assert_eq!(service.hosts("", 0).await.expect("a list"), []);
    let mut events = service.watch(None).await.expect("a watch");

    let initiator = export.initiator();
    let _one = initiator.clone().with_host(ONE).load(STAY).await;
    let came = told(&mut events, EventType::HostConnected).await;
    assert_eq!(
        (came.object.as_str(), came.host_nqn.as_str()),
        (subsystem, ONE)
    );
    assert!(came.address.starts_with("127.0.0.1:"), "{came:?}");
    let two = initiator.with_host(TWO).load(STAY).await;
    let other = told(&mut events, EventType::HostConnected).await;
    assert_eq!(other.host_nqn, TWO);

    // Wait until both hosts have their queues; list in pages too.
    let hosts = eventually("both hosts have their queues", SOON, async || {
        let hosts = service.hosts("", 1).await.expect("a list");
        let is_whole = |host: &Host| host.queues.len() == 2;
        (hosts.len() == 2 && hosts.iter().all(is_whole)).then_some(hosts)
    })
    .await;
    let again = service.hosts(subsystem, 0).await.expect("a list");
    assert_eq!(without_io(&again), without_io(&hosts));
    let of = |nqn: &str| hosts.iter().find(|host| host.host_nqn == nqn);
    let first = of(ONE).expect("the host is listed");
    assert_eq!(
        (
            first.subsystem.as_str(),
            first.controller_id,
            &first.address
        ),
        (subsystem, came.controller_id, &came.address)
    );
    let queues: Vec<_> = first.queues.iter().map(|of| (of.id, of.core)).collect();
    assert_eq!(queues, [(0, 0), (1, 0)]);
    assert!(first.queues.iter().all(|queue| queue.size > 8), "{first:?}");

    // I/O is counted per queue.
    let count = |hosts: &[Host]| {
        let host = hosts.iter().find(|host| host.host_nqn == ONE)?;
        Some([0, 1].map(|id| host.queues[id].completed_io_count))
    };
    let [_, counted] = count(&again).expect("the host is listed");
    eventually("the host's I/O continues", SOON, async || {
        let hosts = service.hosts(subsystem, 0).await.expect("a list");
        let [admin, now] = count(&hosts).expect("the host is listed");
        assert_eq!(admin, 0, "admin commands are not counted as I/O");
        (now > counted).then_some(())
    })
    .await;

    let http = Http(target.http);
    let path = format!("/v1/hosts?parent={subsystem}&pageSize=1");
    let answer = http.send("GET", &path, &[], Vec::new()).await;
    assert_eq!(
        answer.body["hosts"][0]["hostNqn"], hosts[0].host_nqn,
        "{answer:?}"
    );
    assert_ne!(answer.body["nextPageToken"], "", "{answer:?}");
    let table = shell(&target, &["hosts", subsystem]).expect("the table is printed");
    assert!(
        table.contains(ONE) && table.contains(&first.address),
        "{table}"
    );

    missing_hosts_are_not_found(&service, &http, subsystem, other.controller_id).await;

    // Disconnecting one host does not affect the other's I/O.
    let ended = service
        .disconnect(subsystem, ONE, None)
        .await
        .expect("the host is disconnected");
    assert_eq!(without_io(&ended), without_io(std::slice::from_ref(first)));
    let gone = told(&mut events, EventType::HostDisconnected).await;
    assert_eq!(
        (gone.host_nqn.as_str(), gone.controller_id),
        (ONE, came.controller_id)
    );
    assert_eq!(gone.address, came.address);
    eventually("the host is no longer listed", SOON, async || {
        let left = service.hosts(subsystem, 0).await.expect("a list");
        (left.len() == 1 && left[0].host_nqn == TWO).then_some(())
    })
    .await;
    let volumes = export.resource("MallocVolume");
    let before = volumes.stats(&export.volume).await;
    eventually("the other host's I/O continues", SOON, async || {
        let now = volumes.stats(&export.volume).await;
        let count = |of: &Value| of["read_ops_count"].as_i64().unwrap_or(0);
        (count(&now) > count(&before)).then_some(())
    })
    .await;

    // By controller ID, with the command line.
    let id = other.controller_id.to_string();
    let shown = shell(&target, &["disconnect", subsystem, "--controller", &id]);
    let shown = shown.expect("the host is disconnected");
    assert!(
        shown.contains(TWO) && shown.ends_with("disconnected\n"),
        "{shown}"
    );
    let gone = told(&mut events, EventType::HostDisconnected).await;
    assert_eq!(gone.host_nqn, TWO);
    drop(two);
    eventually("no host is listed", SOON, async || {
        service
            .hosts("", 0)
            .await
            .expect("a list")
            .is_empty()
            .then_some(())
    })
    .await;
    target.stop();
}

async fn missing_hosts_are_not_found(service: &Service, http: &Http, subsystem: &str, other: i32) {
    for (name, host, controller, code) in [
        (subsystem, "nqn.2022-09.io.spdk:none", None, Code::NotFound),
        (subsystem, "", Some(other + 100), Code::NotFound),
        (subsystem, ONE, Some(other), Code::NotFound),
        ("nvmeSubsystems/none", ONE, None, Code::NotFound),
        ("volumes/none", ONE, None, Code::InvalidArgument),
        (subsystem, "", None, Code::InvalidArgument),
        (subsystem, "x", None, Code::InvalidArgument),
        (subsystem, "", Some(-1), Code::InvalidArgument),
    ] {
        let refused = service.disconnect(name, host, controller).await;
        let status = refused.expect_err("the request is rejected");
        assert_eq!(
            status.code(),
            code,
            "{name} {host} {controller:?}: {status}"
        );
        check_details(&status);
    }
    let status = service
        .hosts("nvmeSubsystems/none", 0)
        .await
        .expect_err("the subsystem does not exist");
    assert_eq!(status.code(), Code::NotFound, "{status}");
    let path = format!("/v1/{subsystem}:disconnectHost");
    let body = json!({"hostNqn": "nqn.2022-09.io.spdk:none"}).to_string();
    let answer = http.send("POST", &path, &[], body.into()).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    let left = service.hosts(subsystem, 0).await.expect("a list");
    assert_eq!(left.len(), 2, "a rejected request disconnected a host");
}

/// Runs a subcommand; returns its output, as an error if it fails.
fn shell(target: &Target, args: &[&str]) -> Result<String, String> {
    let out = Command::new(env!("CARGO_BIN_EXE_opi-spdk"))
        .args(args)
        .args(["--addr", &target.grpc.to_string()])
        .output()
        .expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    match out.status.success() {
        true => Ok(text(out.stdout)),
        false => Err(text(out.stderr)),
    }
}
