//! I/O commands by reactor, compared with those that a raw host has sent.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::nvme_tcp::{Command, Digests, Host, Identity, Sgl};
use crate::common::{Fixture, Http, JsonRpc, Options, Scrape, Target, eventually};

/// The cores of the reactors.
const CORES: [u64; 2] = [0, 1];

/// Commands to send over each I/O queue, by ID: each sum of some of them is of these only.
const QUEUES: [(u16, u64); 3] = [(1, 3), (2, 5), (3, 11)];

/// Commands that are sent after the move of a poll group.
const MORE: u64 = 7;

/// NVMe base specification: Keep Alive, and the status Invalid Namespace or Format.
const KEEP_ALIVE: u8 = 0x18;
const INVALID_NAMESPACE: u16 = 0x0b;

/// Returns the commands that each core has completed.
async fn completed(target: &Target) -> [u64; 2] {
    let scrape = Scrape::of(target).await;
    CORES.map(|core| {
        let core = core.to_string();
        let labels = [("core", core.as_str())];
        scrape.value("opi_spdk_reactor_nvme_operations_total", &labels) as u64
    })
}

/// Returns the core that serves each I/O queue of the only host, by ID.
async fn cores(target: &Target) -> Vec<(u16, u64)> {
    let http = Http(target.http);
    let hosts = http.send("GET", "/v1/hosts", &[], Vec::new()).await.body;
    let queues = hosts["hosts"][0]["queues"].as_array().expect("queues");
    let number = |of: &Value| of.as_u64().unwrap_or_default();
    let queues = queues
        .iter()
        .map(|of| (number(&of["id"]) as u16, number(&of["core"])));
    queues.filter(|(id, _)| *id != 0).collect()
}

/// Sends a command that fails, and writes and reads in turns, and awaits each.
fn send(host: &mut Host, commands: u64) {
    for number in 0..commands {
        let cid = host.cid();
        let (command, data, status) = match number {
            0 => (Command::io(2, cid, 99, 0, 1), None, INVALID_NAMESPACE),
            n if n % 2 == 0 => (Command::io(2, cid, 1, 0, 1), None, 0),
            _ => (Command::io(1, cid, 1, 0, 1), Some([7; 512]), 0),
        };
        let sgl = match data {
            Some(_) => Sgl::InCapsule(512),
            None => Sgl::Transport(512),
        };
        let data = data.as_ref().map_or(&[][..], |data| data);
        let answer = host.call(command.sgl(sgl), data).expect("an answer");
        assert_eq!(answer.status() & 0xff, status, "{answer:?}");
    }
}

/// Connects a host with its I/O queues; the admin queue comes first.
fn connect(export: &Fixture) -> (Host, Vec<(u16, u64, Host)>) {
    let identity = Identity::new(export.port, &export.nqn);
    let admin = identity.admin(Digests::default());
    let queues = QUEUES.map(|(id, commands)| (id, commands, identity.io(&admin, id)));
    (admin, queues.into())
}

/// Moves the poll group of core 1 to core 0.
async fn move_poll_group(socket: &Path) {
    let mut rpc = JsonRpc::connect(socket).await.expect("SPDK listens");
    let mut on_first = async |expected: usize| {
        let reactors = rpc.call("framework_get_reactors", Value::Null).await;
        let reactors = reactors.expect("SPDK answers");
        let is_group = |thread: &&Value| {
            let name = thread["name"].as_str();
            name.is_some_and(|name| name.starts_with("nvmf_tgt_poll_group"))
        };
        let of = |core: usize| {
            let threads = reactors["reactors"][core]["lw_threads"].as_array();
            let threads = threads.expect("a list").iter().filter(is_group);
            threads.cloned().collect::<Vec<_>>()
        };
        match of(0).len() == expected {
            true => Some(of(1)),
            false => None,
        }
    };
    let there = on_first(1).await.expect("each core has a poll group");
    let request = json!({ "id": there[0]["id"], "cpumask": "[0]" });
    let mut other = JsonRpc::connect(socket).await.expect("SPDK listens");
    let moved = other.call("thread_set_cpumask", request).await;
    moved.expect("SPDK moves the thread");
    eventually("the thread has moved", Duration::from_secs(5), async || {
        on_first(2).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn io_commands_are_counted_by_reactor() {
    let (mut options, socket) = Options::default().with_rpc();
    options.cores = Some("0,1");
    let target = Target::start_with(options).await;
    let export = Fixture::tcp(&target, 16).await;
    assert_eq!(completed(&target).await, [0, 0], "no host has been there");

    let (mut admin, mut queues) = tokio::task::block_in_place(|| connect(&export));
    let served = cores(&target).await;
    assert_eq!(served.len(), QUEUES.len(), "{served:?}");
    let before = completed(&target).await;
    tokio::task::block_in_place(|| {
        for (_, commands, queue) in &mut queues {
            send(queue, *commands);
        }
        let keep_alive = Command::new(KEEP_ALIVE, admin.cid());
        let answer = admin.call(keep_alive, &[]).expect("an answer");
        assert_eq!(answer.status(), 0);
    });
    let after = completed(&target).await;
    for (at, core) in CORES.into_iter().enumerate() {
        let here = served.iter().filter(|(_, on)| *on == core);
        let sent = here.map(|(id, _)| QUEUES.iter().find(|of| of.0 == *id).expect("a queue").1);
        let sent: u64 = sent.sum();
        assert!(sent > 0, "no queue on core {core}: {served:?}");
        assert_eq!(after[at] - before[at], sent, "core {core} of {served:?}");
    }

    // Neither the end of the host nor a poll group's move lets a counter fall.
    drop((admin, queues));
    eventually("the host has gone", Duration::from_secs(10), async || {
        let scrape = Scrape::of(&target).await;
        let queues = scrape.value("opi_spdk_connections", &[("door", "nvme_tcp")]);
        (queues == 0.0).then_some(())
    })
    .await;
    assert_eq!(completed(&target).await, after);
    move_poll_group(&socket).await;
    assert_eq!(completed(&target).await, after);

    // Both poll groups are on core 0 now.
    let (_admin, mut queues) = tokio::task::block_in_place(|| connect(&export));
    let before = completed(&target).await;
    tokio::task::block_in_place(|| {
        for (_, _, queue) in &mut queues {
            send(queue, MORE);
        }
    });
    let sent = MORE * QUEUES.len() as u64;
    assert_eq!(completed(&target).await, [before[0] + sent, after[1]]);
    target.stop();
}
