//! Linearizability: many clients use few names, and some order of the calls must explain all answers.

use std::time::Instant;

use serde_json::Value;
use tonic::{Code, Status};

use super::common::{Client, Random, Resource, Target};
use super::history::{Answer, Call, Record, explain};
use super::{all, volume};

const NAMES: usize = 8;

/// Number of calls of each client.
const ROUNDS: usize = 40;

fn object(answer: &Value) -> Answer {
    let uuid = answer["uuid"].as_str().expect("a UUID");
    let blocks = answer["blocks_count"].as_i64().expect("a number");
    Answer::Is(uuid.to_owned(), blocks)
}

fn refusal(status: &Status) -> Answer {
    match status.code() {
        Code::NotFound => Answer::NotFound,
        Code::AlreadyExists => Answer::AlreadyExists,
        _ => panic!("no change of a name is answered so: {status}"),
    }
}

async fn record(volumes: &Resource, id: &str, call: Call) -> Record {
    let name = format!("volumes/{id}");
    let size = |blocks: i64| volume(usize::try_from(blocks).expect("small"));
    let begin = Instant::now();
    let answered = match call {
        Call::Create(blocks) => volumes.create("", id, size(blocks)).await,
        Call::Update(blocks) => {
            let mask = Some(&["blocks_count"][..]);
            volumes.update(&name, size(blocks), mask).await
        }
        Call::Get => volumes.get(&name).await,
        Call::Delete => volumes.delete(&name).await.map(|()| Value::Null),
    };
    let end = Instant::now();
    let answer = match answered {
        Ok(Value::Null) => Answer::Deleted,
        Ok(answer) => object(&answer),
        Err(status) => refusal(&status),
    };
    Record {
        call,
        begin,
        end,
        answer,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_same_names_some_order_explains_every_answer() {
    let target = Target::start().await;
    let recorded = all(&target, |number, client: Client| async move {
        let volumes = Resource::new(&client, "NullVolume");
        let mut recorded = Vec::new();
        let mut random = Random(0x9E37_79B9 * (1 + number as u64));
        for round in 0..ROUNDS {
            let name = random.below(NAMES);
            // Unique to this update, so that a read identifies the update it saw.
            let unique = 100 + number * ROUNDS + round;
            let call = match random.below(8) {
                0..=2 => Call::Create(64),
                3 | 4 => Call::Update(i64::try_from(unique).expect("small")),
                5 | 6 => Call::Get,
                _ => Call::Delete,
            };
            let id = format!("shared-{name}");
            recorded.push((name, record(&volumes, &id, call).await));
        }
        recorded
    })
    .await;
    for answer in [Answer::Deleted, Answer::NotFound, Answer::AlreadyExists] {
        let mut records = recorded.iter().flatten();
        let is_given = records.any(|(_, record)| record.answer == answer);
        assert!(is_given, "nobody was answered {answer:?}");
    }
    let mut histories = vec![Vec::new(); NAMES];
    for (name, record) in recorded.into_iter().flatten() {
        histories[name].push(record);
    }
    let volumes = Resource::new(&target.client().await, "NullVolume");
    let left = volumes.names("").await;
    for (name, mut history) in histories.into_iter().enumerate() {
        // A final read completes every history.
        let id = format!("shared-{name}");
        history.push(record(&volumes, &id, Call::Get).await);
        let is_listed = left.contains(&format!("volumes/{id}"));
        let last = &history[history.len() - 1].answer;
        assert_eq!(is_listed, *last != Answer::NotFound, "{id}");
        explain(&history).unwrap_or_else(|why| panic!("{id}: {why}"));
    }
    for name in left {
        volumes.stats(&name).await;
        volumes.deleted(&name).await;
    }
    // SPDK has no bdevs of them left either.
    for name in 0..NAMES {
        let mallocs = Resource::new(&volumes.client, "MallocVolume");
        mallocs
            .created("", &format!("shared-{name}"), volume(8))
            .await;
    }
}
