//! Invalid input for volumes and strings: a specific status with the field and the reason, and no
//! partially created objects.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{
    Attempt, Client, Options, Resource, Target, eventually, expect_invalid, find_method, malloc,
    name_of, path_of, with,
};
use opi_spdk::api::storage::{NullVolume, UpdateNullVolumeRequest};
use prost::Message;
use prost_types::FieldMask;
use serde_json::{Value, json};
use tonic::Code;

fn volume() -> Value {
    json!({ "block_size": 512, "blocks_count": 64 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn invalid_volume_sizes_are_rejected() {
    let target = Target::start().await;
    let client = target.client().await;
    for message in ["NullVolume", "MallocVolume"] {
        let resource = Resource::new(&client, message);
        let attempt = Attempt {
            resource: &resource,
            parent: "",
            good: volume(),
        };
        for count in [-1, i64::MIN, i64::MAX, i64::MAX / 512 + 1] {
            attempt.is_invalid("blocks_count", json!(count)).await;
        }
        let beyond_32_bits = (1_i64 << 32) + 512;
        for size in [
            -512,
            1,
            511,
            513,
            768,
            1 << 31,
            1 << 32,
            beyond_32_bits,
            i64::MAX,
            i64::MIN,
        ] {
            attempt.is_invalid("block_size", json!(size)).await;
        }
        for uuid in [
            "x",
            "1b4e28ba-2fa1-11d2-883f",
            "1b4e28ba-2fa1-11d2-883f-0016d3cca4zz",
        ] {
            attempt.is_invalid("uuid", json!(uuid)).await;
        }
        attempt.nothing_remains().await;
    }
    let resource = Resource::new(&client, "MallocVolume");
    let attempt = Attempt {
        resource: &resource,
        parent: "",
        good: volume(),
    };
    for size in [-1, 7, i64::MAX] {
        attempt.is_invalid("metadata_size", json!(size)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_volume_beyond_memory_is_resource_exhausted_and_leaks_nothing() {
    let target = Target::start().await;
    let resource = Resource::new(&target.client().await, "MallocVolume");
    let attempt = Attempt {
        resource: &resource,
        parent: "",
        good: volume(),
    };
    for gib in [64_u32, 1 << 20] {
        let object = with(
            volume(),
            "blocks_count",
            json!(u64::from(gib) * 2048 * 1024),
        );
        let status = attempt.refused(object, Code::ResourceExhausted).await;
        let message = status.message();
        let wanted = format!("needs {} bytes", u64::from(gib) << 30);
        assert!(message.contains(&wanted), "{message}");
        let largest = message
            .split("SPDK's memory has ")
            .nth(1)
            .expect("the message has the largest size");
        let largest: u64 = largest
            .split(':')
            .next()
            .unwrap_or_default()
            .parse()
            .expect("bytes");
        assert!(
            (1 << 20..u64::from(gib) << 30).contains(&largest),
            "{message}"
        );
    }
    attempt.nothing_remains().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn invalid_backing_files_are_rejected() {
    let target = Target::start().await;
    let dir = target.scratch().to_owned();
    let client = target.client().await;
    let resource = Resource::new(&client, "AioVolume");
    let good = write(&dir, "good", 64 * 512);
    let attempt = Attempt {
        resource: &resource,
        parent: "",
        good: json!({ "block_size": 512, "filename": good }),
    };
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).expect("a socket");
    let path = |name: &str| dir.join(name).display().to_string();
    for filename in [
        dir.display().to_string(),
        path("missing"),
        path("good/below-a-file"),
        write(&dir, "empty", 0),
        write(&dir, "less-than-a-block", 511),
        path("socket"),
        "/dev/null".into(),
        "relative".into(),
        format!("{good}\0"),
        format!("/{}", "a".repeat(5000)),
    ] {
        attempt.is_invalid("filename", json!(filename)).await;
    }
    for size in [-1, 1, 511, 513, 1 << 31] {
        attempt.is_invalid("block_size", json!(size)).await;
    }
    attempt.nothing_remains().await;
}

fn write(dir: &Path, name: &str, len: u64) -> String {
    let path = dir.join(name);
    let file = std::fs::File::create(&path).expect("the directory is writable");
    file.set_len(len).expect("the file can be extended");
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_volumes_cannot_have_one_uuid() {
    let target = Target::start().await;
    let client = target.client().await;
    let uuid = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";
    let nulls = Resource::new(&client, "NullVolume");
    let first = nulls
        .created("", "first", with(volume(), "uuid", json!(uuid)))
        .await;
    let mallocs = Resource::new(&client, "MallocVolume");
    let attempt = Attempt {
        resource: &mallocs,
        parent: "",
        good: volume(),
    };
    for same in [uuid.to_owned(), uuid.to_uppercase()] {
        let status = attempt
            .refused(with(volume(), "uuid", json!(same)), Code::AlreadyExists)
            .await;
        assert!(
            status.message().contains(&name_of(&first)),
            "the message does not name the owner: {status}"
        );
    }
    attempt.nothing_remains().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn volumes_of_all_kinds_share_one_id_space() {
    let target = Target::start_with(Options::default()).await;
    let client = target.client().await;
    malloc(&client, "one", 1).await;
    let nulls = Resource::new(&client, "NullVolume");
    let status = nulls
        .refused("", "one", volume(), Code::AlreadyExists)
        .await;
    assert!(status.message().contains("volumes/one"), "{status}");
    assert!(nulls.list("").await.is_empty());
    Resource::new(&client, "MallocVolume")
        .deleted("volumes/one")
        .await;
    nulls.created("", "one", volume()).await;
}

/// Hostile strings are data: they get a regular error, and the target keeps running.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn hostile_strings_are_treated_as_data() {
    let target = Target::start().await;
    let client: Client = target.client().await;
    let nulls = Resource::new(&client, "NullVolume");
    let long = "x".repeat(1 << 20);
    for text in [
        "%s%n%s%n",
        "'; DROP TABLE",
        "../../etc/passwd",
        "\u{202e}",
        "💾",
        long.as_str(),
    ] {
        nulls
            .refused("", text, volume(), Code::InvalidArgument)
            .await;
        let status = nulls.get(text).await.expect_err("no object has that name");
        assert!(
            matches!(status.code(), Code::NotFound | Code::InvalidArgument),
            "{}",
            status.code()
        );
    }
    eventually("the target serves", Duration::from_secs(1), async || {
        client.is_serving().await.then_some(())
    })
    .await;
}

/// The check of a field mask stops after enough violations: reporting all would take memory and time.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_mask_of_a_million_bad_paths_is_rejected_at_once() {
    let target = Target::start().await;
    let client = target.client().await;
    let made = Resource::new(&client, "NullVolume")
        .created("", "a", volume())
        .await;
    let mut request = UpdateNullVolumeRequest {
        null_volume: Some(NullVolume {
            name: name_of(&made),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut refused = async |path: &str, count: usize| {
        let paths = vec![path.to_owned(); count];
        request.update_mask = Some(FieldMask { paths });
        let bytes = request.encode_to_vec().into();
        let begin = Instant::now();
        let answer = client
            .call_raw(&path_of(&find_method("UpdateNullVolume")), bytes)
            .await;
        expect_invalid(&answer.expect_err("the paths are invalid"), "update_mask");
        begin.elapsed()
    };
    let one = refused("nope", 1).await;
    let many = refused("", 1_000_000).await;
    assert!(many < one + Duration::from_secs(2), "{many:?}");
    target.stop();
}
