//! The discovery service over multicast DNS: found by another resolver while it runs, and withdrawn at
//! its stop.

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use common::nvme_tcp::{DISCOVERY, Record, discovered};
use common::{Options, Target, free_port};
use mdns_sd::{IfKind, ServiceDaemon, ServiceEvent};
use rustix::process::Signal;

/// Deadline of an answer or a goodbye.
const SOON: Duration = Duration::from_secs(20);

const SERVICE: &str = "_nvme-disc._tcp.local.";

/// Starts another resolver, on the loopback interface only.
fn resolver() -> ServiceDaemon {
    let daemon = ServiceDaemon::new().expect("a socket");
    daemon.disable_interface(IfKind::All).expect("a command");
    let loopback = IfKind::Addr(IpAddr::V4(Ipv4Addr::LOCALHOST));
    daemon.enable_interface(loopback).expect("a command");
    daemon
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_discovery_service_is_announced_by_mdns_and_withdrawn() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let options = Options::default().args(["--discovery-addr", &address, "--discovery-mdns"]);
    let mut target = Target::start_with(options).await;
    let browser = resolver();
    let events = browser.browse(SERVICE).expect("the query is sent");
    let end = Instant::now() + SOON;
    let next = || {
        let left = end.saturating_duration_since(Instant::now());
        events.recv_timeout(left).expect("an event in time")
    };
    let found = loop {
        match next() {
            ServiceEvent::ServiceResolved(found) if found.get_port() == port => break found,
            _ => {}
        }
    };
    assert_eq!(found.get_property_val_str("p"), Some("tcp"));
    assert_eq!(found.get_property_val_str("nqn"), Some(DISCOVERY));
    let addresses = found.get_addresses_v4();
    assert_eq!(
        addresses.into_iter().collect::<Vec<_>>(),
        [Ipv4Addr::LOCALHOST]
    );
    let itself = Record::tcp("127.0.0.1", port, DISCOVERY);
    assert_eq!(discovered("127.0.0.1", port), [itself]);

    // The goodbye arrives long before the records expire.
    target.signal(Signal::TERM);
    let name = found.get_fullname().to_owned();
    loop {
        match next() {
            ServiceEvent::ServiceRemoved(_, gone) if gone == name => break,
            ServiceEvent::ServiceRemoved(_, gone) => assert_ne!(gone, name),
            _ => {}
        }
    }
    target.wait(SOON);
    let _ = browser.shutdown();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_option_there_is_no_mdns() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let options = Options::default().args(["--discovery-addr", &address]);
    let target = Target::start_with(options).await;
    let udp = std::fs::read_to_string("/proc/net/udp").expect("readable");
    let ours: Vec<u64> = sockets_of(target.pid().as_raw_pid());
    let at_5353 = udp.lines().filter(|line| line.contains(":14E9 "));
    let inodes = at_5353.filter_map(|line| line.split_whitespace().nth(9)?.parse::<u64>().ok());
    assert!(inodes.into_iter().all(|inode| !ours.contains(&inode)));
    target.stop();
}

/// Returns the inodes of a process's sockets.
fn sockets_of(pid: i32) -> Vec<u64> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the target runs");
    let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let inodes = links.filter_map(|link| {
        let link = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        link.parse().ok()
    });
    inodes.collect()
}
