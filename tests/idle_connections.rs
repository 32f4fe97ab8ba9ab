//! A turn of a reactor costs the same however many hosts are connected that do nothing.

mod common;

use std::time::Duration;

use common::{Options, Scrape, Target, malloc, tcp_export, unique};

/// How long a reactor is watched.
const WATCHED: Duration = Duration::from_secs(1);

/// Connected hosts, with two connections each.
const HOSTS: u16 = 300;

/// Returns how much CPU time a poll takes, in seconds, the least of some times.
async fn poll(target: &Target) -> f64 {
    let polls = async || {
        let scrape = Scrape::of(target).await;
        ["sum", "count"].map(|part| {
            let of = [("core", "0")];
            scrape.value(&format!("opi_spdk_reactor_poll_cpu_seconds_{part}"), &of)
        })
    };
    let mut least = f64::INFINITY;
    for _ in 0..5 {
        let [time, count] = polls().await;
        tokio::time::sleep(WATCHED).await;
        let [time_later, count_later] = polls().await;
        least = least.min((time_later - time) / (count_later - count));
    }
    least
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_do_not_lengthen_a_turn() {
    let options = Options::default().memory(1536).alone();
    let target = Target::start_with(options.args(["--idle", "busy", "--measure-polls"])).await;
    let client = target.client().await;
    let volume = malloc(&client, &unique("volume"), 1).await;
    let identity = tcp_export(&client, &[volume]).await;
    let mut hosts = identity.hosts(1);
    let with_one = poll(&target).await;
    hosts.extend(tokio::task::block_in_place(|| identity.hosts(HOSTS)));
    let with_many = poll(&target).await;
    println!("{:.0} and {:.0} ns", with_one * 1e9, with_many * 1e9);
    assert!(
        with_many < 1.5 * with_one,
        "with one host {with_one}, with {HOSTS} more {with_many} s a poll"
    );
    for (_, io) in &mut hosts {
        assert_eq!(io.read(1, 0, 1).expect("data").len(), 512);
    }
    drop(hosts);
    target.stop();
}
