//! Rate limits: what they let through after a while without I/O, and what they take of a reactor meanwhile.

mod common;

use std::time::{Duration, Instant};

use common::nvme_tcp::{Command, Host, Pdu, Sgl, flag, kind};
use common::{
    Client, JsonRpc, Options, Resource, Target, eventually, malloc, name_of, tcp_export, unique,
};
use serde_json::{Value, json};

/// Reads of one burst on each queue: at most the depth of a test host's queues.
const BURST: usize = 30;

/// Name of the poller of a bdev's limits in SPDK.
const POLLER: &str = "bdev_channel_poll_qos";

/// Creates a volume with a limit of 1,000 I/Os per second, that is, one in each time slice.
async fn limited(client: &Client) -> String {
    let base = malloc(client, &unique("base"), 1).await;
    let object = json!({
        "volume_name_ref": base,
        "limits": { "max": { "rw_iops_kiops": 1 } },
    });
    let volumes = Resource::new(client, "QosVolume");
    name_of(&volumes.created("", &unique("limited"), object).await)
}

/// Sends the reads of a burst at once.
fn send(host: &mut Host) {
    let read = |_| {
        let command = Command::io(2, host.cid(), 1, 0, 1);
        Pdu::capsule(command.sgl(Sgl::Transport(512)), &[])
    };
    let pdus: Vec<_> = (0..BURST).map(read).collect();
    host.send_all(&pdus).expect("sent");
}

/// Receives the answers to a burst, which must succeed.
fn receive(host: &mut Host) {
    let mut answered = 0;
    while answered < BURST {
        let answer = host.receive().expect("an answer");
        match answer.kind {
            kind::C2H_DATA if answer.flags & flag::SUCCESS == 0 => continue,
            kind::C2H_DATA => {}
            kind::CAPSULE_RESP => assert_eq!(answer.status(), 0),
            _ => panic!("{answer:?}"),
        }
        answered += 1;
    }
}

/// Returns how many pollers of limits SPDK's threads have in this state.
async fn pollers(rpc: &mut JsonRpc, state: &str) -> usize {
    let answer = rpc.call("thread_get_pollers", Value::Null).await;
    let answer = answer.expect("SPDK answers");
    let threads = answer["threads"].as_array().expect("threads");
    let pollers = threads
        .iter()
        .flat_map(|of| of[state].as_array().expect("pollers"));
    pollers.filter(|of| of["name"] == POLLER).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_burst_after_idle_time_is_that_of_one_time_slice() {
    let mut options = Options::default();
    options.cores = Some("0,1");
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let volume = limited(&client).await;
    // The queues of two hosts are on both reactors, of which one has the poller.
    let mut hosts = tcp_export(&client, &[volume]).await.hosts(2);
    // The poller is paused after 16 ms: before that, about then, and long after it.
    for idle in (0..24).map(|n| n * 2).chain([100, 500]) {
        tokio::time::sleep(Duration::from_millis(idle)).await;
        let begun = Instant::now();
        hosts.iter_mut().for_each(|(_, io)| send(io));
        hosts.iter_mut().for_each(|(_, io)| receive(io));
        // One I/O at once, one with each time slice, of which the first may have begun before.
        let least = Duration::from_millis(2 * BURST as u64 - 2);
        let took = begun.elapsed();
        assert!(took >= least, "{took:?} for a burst after {idle} ms");
    }
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn limits_without_io_have_no_poller() {
    const VOLUMES: usize = 20;
    let (options, socket) = Options::default().with_rpc();
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let mut volumes = Vec::new();
    for _ in 0..VOLUMES {
        volumes.push(limited(&client).await);
    }
    let mut hosts = tcp_export(&client, &volumes).await.hosts(1);
    let mut rpc = JsonRpc::connect(&socket).await.expect("SPDK listens");
    let soon = Duration::from_secs(10);
    for _ in 0..3 {
        eventually("all pollers are paused", soon, async || {
            (pollers(&mut rpc, "paused_pollers").await == VOLUMES).then_some(())
        })
        .await;
        assert_eq!(pollers(&mut rpc, "timed_pollers").await, 0);
        // All but the first I/O wait for the poller.
        send(&mut hosts[0].1);
        receive(&mut hosts[0].1);
    }
    target.stop();
}
