//! Concurrency: many clients, cancelled calls, a full ring (backpressure), and malformed requests. No change is lost,
//! nothing leaks, hangs or crashes.

#[path = "../common/mod.rs"]
mod common;
mod history;
mod orders;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{
    Client, Fixture, Options, Resource, Target, encode, eventually, find_method, malloc, name_of,
    namespace, nqn_of, path_of, subsystem, tcp_controller, tcp_spec,
};
use futures_util::future::{join, join_all};
use opi_spdk::api;
use prost::bytes::Bytes;
use prost_reflect::DynamicMessage;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

const CLIENTS: usize = 64;

fn volume(blocks: usize) -> Value {
    json!({ "block_size": 512, "blocks_count": blocks })
}

/// Runs `run` for each client number on a connection of its own, all concurrently.
async fn all<T: Send + 'static, F>(target: &Target, run: impl Fn(usize, Client) -> F) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
{
    let mut tasks = Vec::new();
    for number in 0..CLIENTS {
        tasks.push(tokio::spawn(run(number, target.client().await)));
    }
    join_all(tasks)
        .await
        .into_iter()
        .map(|result| result.expect("no client panics"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_their_own_end_as_their_clients_left_them() {
    const ROUNDS: usize = 12;
    let target = Target::start().await;
    let left = all(&target, |number, client| async move {
        let volumes = Resource::new(&client, "NullVolume");
        let mut mine = BTreeSet::new();
        for round in 0..ROUNDS {
            let name = name_of(
                &volumes
                    .created("", &format!("own-{number}-{round}"), volume(64))
                    .await,
            );
            let grown = volumes
                .updated(&name, volume(128), Some(&["blocks_count"]))
                .await;
            assert_eq!(grown["blocks_count"], 128);
            assert_eq!(volumes.get(&name).await.expect("it was made"), grown);
            if (number + round) % 3 == 0 {
                volumes.deleted(&name).await;
            } else {
                mine.insert(name);
            }
        }
        mine
    })
    .await;
    let expected: BTreeSet<String> = left.into_iter().flatten().collect();
    let volumes = Resource::new(&target.client().await, "NullVolume");
    let found = volumes.names("").await;
    assert!(
        found.iter().eq(&expected),
        "the list is not what was acknowledged"
    );
    for name in &found {
        volumes.stats(name).await;
        volumes.deleted(name).await;
    }
    assert!(volumes.names("").await.is_empty());
    // SPDK has no bdevs of them left: their names are free for another kind.
    let mallocs = Resource::new(&target.client().await, "MallocVolume");
    for name in found.iter().step_by(50) {
        mallocs
            .created("", name.trim_start_matches("volumes/"), volume(8))
            .await;
    }
}

/// Each change of a namespace or controller pauses the one subsystem that all clients share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_one_subsystem_come_and_go_at_once() {
    let target = Target::start().await;
    let client = target.client().await;
    let parent = subsystem(&client, "crowded", json!({ "max_namespaces": 128 })).await;
    let shared = parent.clone();
    let ids = all(&target, move |number, client| {
        let parent = shared.clone();
        async move {
            let namespaces = Resource::new(&client, "NvmeNamespace");
            let volumes = Resource::new(&client, "NullVolume");
            let volume = name_of(
                &volumes
                    .created("", &format!("of-{number}"), volume(64))
                    .await,
            );
            // SPDK takes 16 controllers in a subsystem.
            let controller = match number {
                0..16 => Some(tcp_controller(&client, &parent).await.0),
                _ => None,
            };
            for _ in 0..4 {
                let name = namespace(&client, &parent, &volume, json!({})).await;
                namespaces.stats(&name).await;
                namespaces.deleted(&name).await;
            }
            if let Some(controller) = controller {
                let controllers = Resource::new(&client, "NvmeController");
                controllers.deleted(&controller).await;
            }
            let name = namespace(&client, &parent, &volume, json!({})).await;
            namespaces.get(&name).await.expect("it was made")["spec"]["host_nsid"].as_i64()
        }
    })
    .await;
    let distinct: BTreeSet<_> = ids.iter().map(|id| id.expect("an id was chosen")).collect();
    assert_eq!(
        distinct.len(),
        CLIENTS,
        "two namespaces have one id: {ids:?}"
    );
    let namespaces = Resource::new(&client, "NvmeNamespace");
    assert_eq!(namespaces.list(&parent).await.len(), CLIENTS);
    assert!(
        Resource::new(&client, "NvmeController")
            .list(&parent)
            .await
            .is_empty()
    );
    for name in namespaces.names(&parent).await {
        namespaces.deleted(&name).await;
    }
    Resource::new(&client, "NvmeSubsystem")
        .deleted(&parent)
        .await;
    let volumes = Resource::new(&client, "NullVolume");
    for name in volumes.names("").await {
        volumes.deleted(&name).await;
    }
}

/// Of the clients that compete for one resource, one gets it; the others' errors name its holder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_one_can_have_goes_to_one() {
    let target = Target::start().await;
    let client = target.client().await;
    malloc(&client, "wanted", 1).await;
    let won = all(&target, |number, client| async move {
        let parent = subsystem(&client, &format!("sub-{number}"), json!({})).await;
        let object = json!({ "spec": { "volume_name_ref": "volumes/wanted" } });
        let namespaces = Resource::new(&client, "NvmeNamespace");
        let claimed = namespaces.create(&parent, "ns", object).await;
        let object = json!({ "spec": { "nqn": nqn_of("wanted") } });
        let named = Resource::new(&client, "NvmeSubsystem")
            .create("", &format!("twin-{number}"), object)
            .await;
        for (result, code) in [
            (&claimed, Code::FailedPrecondition),
            (&named, Code::AlreadyExists),
        ] {
            if let Err(status) = result {
                assert_eq!(status.code(), code, "{status}");
            }
        }
        (claimed.is_ok(), named.is_ok())
    })
    .await;
    assert_eq!(
        won.iter().filter(|(claimed, _)| *claimed).count(),
        1,
        "{won:?}"
    );
    assert_eq!(won.iter().filter(|(_, named)| *named).count(), 1, "{won:?}");
}

/// The client disconnects while its request is in transit, queued or being executed.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_goes_away_leaves_a_change_whole_or_undone() {
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 4).await;
    let namespaces = export.resource("NvmeNamespace");
    let spare = malloc(&export.client, "spare", 1).await;
    let object = json!({ "spec": { "volume_name_ref": spare, "host_nsid": 2 } });
    for delay in 0..60_u64 {
        let (parent, object, address) = (export.subsystem.clone(), object.clone(), target.grpc);
        let started = tokio::spawn(async move {
            let client = Client::connect(address)
                .await
                .expect("it takes connections");
            Resource::new(&client, "NvmeNamespace")
                .create(&parent, "gone", object)
                .await
                .ok();
        });
        // Covers every moment from the connection's first byte to the reply.
        tokio::time::sleep(Duration::from_micros(delay * 40)).await;
        started.abort();
        // The delete is serialized after the change, if that has begun.
        let name = format!("{}/nvmeNamespaces/gone", export.subsystem);
        let request = json!({ "name": name, "allow_missing": true });
        export.client.ok("DeleteNvmeNamespace", request).await;
    }
    eventually(
        "changes of clients that have gone are over",
        Duration::from_secs(5),
        async || {
            let names = namespaces.names(&export.subsystem).await;
            for name in names.iter().filter(|name| **name != export.namespace) {
                namespaces.delete(name).await.ok();
            }
            (names.len() == 1).then_some(())
        },
    )
    .await;
    // The cancelled changes have left nothing behind, and the subsystem takes changes and I/O.
    let made = namespaces.created(&export.subsystem, "gone", object).await;
    namespaces.deleted(&name_of(&made)).await;
    export
        .initiator()
        .verify(target.scratch(), 1)
        .await
        .expect("it is not paused");
    export.resource("MallocVolume").deleted(&spare).await;
    export.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_ring_refuses_at_once_and_recovers() {
    let target =
        Target::start_with(Options::default().memory(1024).args(["--max-calls", "2"])).await;
    let (slow, client) = (target.client().await, target.client().await);
    let mallocs = Resource::new(&slow, "MallocVolume");
    let nulls = Resource::new(&client, "NullVolume");
    let mut made = BTreeSet::new();
    let began = Instant::now();
    let mut exhausted = 0;
    while exhausted == 0 {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "the ring was never full"
        );
        mallocs.created("", "large", volume(512 * 2048)).await;
        let freed = AtomicBool::new(false);
        // SPDK zeroes memory as it frees it, which blocks the reactor: calls meanwhile queue up in the ring. The
        // delete itself may find the ring full.
        let freeing = async {
            while let Err(status) = mallocs.delete("large").await {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            }
            freed.store(true, Ordering::Relaxed);
        };
        let meanwhile = async {
            while !freed.load(Ordering::Relaxed) {
                let calls = (0..CLIENTS).map(|_| {
                    let (nulls, begin) = (&nulls, Instant::now());
                    async move {
                        let answer = nulls.create("", "", volume(8)).await;
                        (answer, begin.elapsed())
                    }
                });
                for (answer, took) in join_all(calls).await {
                    match answer {
                        Ok(object) => drop(made.insert(name_of(&object))),
                        Err(status) => {
                            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                            assert!(took < Duration::from_secs(1), "refused after {took:?}");
                            exhausted += 1;
                        }
                    }
                }
            }
        };
        join(freeing, meanwhile).await;
    }
    // Refused changes have no effect, acknowledged ones are complete.
    let listed: BTreeSet<_> = nulls.names("").await.into_iter().collect();
    assert_eq!(listed, made);
    for n in 0..CLIENTS {
        nulls.created("", &format!("n{n}"), volume(8)).await;
        nulls.deleted(&format!("n{n}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn malformed_messages_are_errors_of_the_call_alone() {
    let target = Target::start().await;
    let client = target.client().await;
    let nested: Vec<u8> = (0..200).flat_map(|n| [0x0a, 200 - n]).collect();
    let malformed: [&[u8]; 7] = [
        &[0xff; 16],
        // A length beyond the end, field number 0, groups that never end, a name that is not UTF-8.
        &[0x0a, 0x7f, 0x00],
        &[0x00, 0x01],
        &[0x0b, 0x13, 0x1b],
        &[0x0a, 0x02, 0xc3, 0x28],
        &[
            0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        ],
        &nested,
    ];
    for method in api::pool()
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
    {
        for bytes in malformed {
            let answer = client
                .call_raw(&path_of(&method), Bytes::copy_from_slice(bytes))
                .await;
            if DynamicMessage::decode(method.input(), bytes).is_ok() {
                // Valid: unknown fields with any content.
                continue;
            }
            let status = answer.expect_err(method.full_name());
            let code = status.code();
            let known = [Code::InvalidArgument, Code::Unimplemented];
            assert!(
                known.contains(&code),
                "{}: {bytes:02x?}: {status}",
                method.full_name()
            );
        }
    }
    let path = "/opi_api.storage.v1.NullVolumeService/NoSuchMethod";
    let status = client
        .call_raw(path, Bytes::new())
        .await
        .expect_err("nobody serves it");
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(client.is_serving().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn oversized_messages_are_refused_and_the_connection_lives_on() {
    let target = Target::start().await;
    let client = target.client().await;
    let method = find_method("CreateNullVolume");
    for mib in [5, 64] {
        let object = json!({ "name": "x".repeat(mib << 20), "block_size": 512, "blocks_count": 8 });
        let bytes = encode(&method, json!({ "null_volume": object }));
        let status = client
            .call_raw(&path_of(&method), bytes)
            .await
            .expect_err("too large");
        let known = [Code::OutOfRange, Code::ResourceExhausted];
        assert!(known.contains(&status.code()), "{mib} MiB: {status}");
    }
    let nulls = Resource::new(&client, "NullVolume");
    assert!(nulls.names("").await.is_empty());
    nulls.created("", "small", volume(8)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_no_http2_harms_nobody() {
    let target = Target::start().await;
    let client = target.client().await;
    // Of the connections that have sent nothing yet, the oldest are displaced by newer ones.
    assert!(client.is_serving().await);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // A frame announced with 16 MiB, and a frame whose length is invalid for its type.
    let huge_frame = [
        preface.as_slice(),
        &[0xff, 0xff, 0xff, 0x00, 0x00, 0, 0, 0, 1],
    ]
    .concat();
    let bad_settings = [
        preface.as_slice(),
        &[0, 0, 5, 0x04, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5],
    ]
    .concat();
    let noise: Vec<u8> = (0..65_536_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let garbage: [&[u8]; 7] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &preface[..10],
        preface,
        &huge_frame,
        &bad_settings,
        &noise,
    ];
    let mut open = Vec::new();
    for address in [target.grpc, target.http] {
        for bytes in garbage {
            let mut stream = TcpStream::connect(address)
                .await
                .expect("it takes connections");
            // The target may close before everything is sent.
            stream.write_all(bytes).await.ok();
            stream.flush().await.ok();
            open.push(stream);
        }
    }
    // Idle connections.
    for _ in 0..200 {
        open.push(
            TcpStream::connect(target.grpc)
                .await
                .expect("it takes connections"),
        );
    }
    assert!(
        client.is_serving().await,
        "those who behave are served beside them"
    );
    Resource::new(&client, "NullVolume")
        .created("", "one", volume(8))
        .await;
    // The target closes a connection with a definite protocol error.
    let mut bytes = Vec::new();
    let closed =
        tokio::time::timeout(Duration::from_secs(5), open[5].read_to_end(&mut bytes)).await;
    assert!(
        closed.is_ok(),
        "a connection with a broken frame stays open"
    );
}

/// Retries after a lost reply: the create is idempotent, so all clients together make one object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_create_from_all_is_one_object() {
    let target = Target::start().await;
    let client = target.client().await;
    let parent = subsystem(&client, "one", json!({})).await;
    let spec = tcp_spec(common::free_port());
    let answers = all(&target, move |_, client| {
        let (parent, spec) = (parent.clone(), spec.clone());
        async move {
            Resource::new(&client, "NvmeController")
                .created(&parent, "the-one", spec)
                .await
        }
    })
    .await;
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
}
