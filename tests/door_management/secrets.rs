//! Copies of clients' keys in the program's memory, while the keys are in use and after their deletion.
//!
//! A core dump contains what memory contains. The test reads the memory of the running program, resident
//! pages only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Pid;
use serde_json::json;

use crate::common::{
    HOST, Http, Resource, Target, base64, dhchap_of, eventually, name_of, psk_with, subsystem,
};

const PAGE: u64 = 4096;
/// Bytes per read.
const CHUNK: u64 = 1 << 20;
/// proc_pid_pagemap(5): the page is present, or swapped.
const THERE: u64 = 0b11 << 62;

/// The byte strings to search for, by description.
type Marks = BTreeMap<&'static str, Vec<u8>>;

/// Counts the occurrences of each mark in the writable memory of the process.
fn copies(pid: Pid, marks: &Marks) -> BTreeMap<&'static str, usize> {
    let path = |what: &str| format!("/proc/{}/{what}", pid.as_raw_nonzero());
    let maps = std::fs::read_to_string(path("maps")).expect("the target runs");
    let [memory, present] =
        ["mem", "pagemap"].map(|what| File::open(path(what)).expect("the file can be opened"));
    let mut found: BTreeMap<_, _> = marks.keys().map(|mark| (*mark, 0)).collect();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().expect("a range"), words.next().unwrap_or(""));
        if !rights.starts_with("rw") || line.ends_with("[vvar]") {
            continue;
        }
        let (begin, end) = range.split_once('-').expect("a range");
        let [begin, end] = [begin, end].map(|text| u64::from_str_radix(text, 16).expect("hex"));
        let mut run = Vec::new();
        let mut at = begin;
        while at < end {
            let length = CHUNK.min(end - at);
            run.extend(read(&memory, &present, at, length));
            count(&run, marks, &mut found);
            // A mark may span two chunks.
            let longest = marks.values().map(Vec::len).max().unwrap_or(1);
            run.drain(..run.len().saturating_sub(longest - 1));
            at += length;
        }
    }
    found
}

/// Returns the resident pages of a range; the others are skipped.
fn read(memory: &File, present: &File, at: u64, length: u64) -> Vec<u8> {
    let pages = length / PAGE;
    let mut entries = vec![0; usize::try_from(pages * 8).expect("a chunk")];
    if present.read_exact_at(&mut entries, at / PAGE * 8).is_err() {
        return Vec::new();
    }
    let there: Vec<bool> = entries
        .chunks_exact(8)
        .map(|entry| u64::from_le_bytes(entry.try_into().expect("8 bytes")) & THERE != 0)
        .collect();
    let mut bytes = Vec::new();
    let mut first = 0;
    for run in there.chunk_by(|a, b| a == b) {
        if run[0] {
            let mut some = vec![0; run.len() * 4096];
            let offset = at + u64::try_from(first).expect("a chunk") * PAGE;
            // The range may have been unmapped since.
            if memory.read_exact_at(&mut some, offset).is_ok() {
                bytes.extend(some);
            }
        }
        first += run.len();
    }
    bytes
}

fn count(bytes: &[u8], marks: &Marks, found: &mut BTreeMap<&'static str, usize>) {
    for (name, mark) in marks {
        let mut rest = bytes;
        while let Ok(1..) = rest.skip_until(mark[0]) {
            if rest.starts_with(&mark[1..]) {
                *found.get_mut(name).expect("each has a number") += 1;
            }
        }
    }
}

/// A 32-byte key that occurs nowhere else.
fn key(seed: u8) -> Vec<u8> {
    (0..32_u8)
        .map(|n| n.wrapping_mul(37) ^ seed ^ 0xa5)
        .collect()
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_copy_of_a_key_remains_in_memory_after_its_objects_deletion() {
    let target = Target::start().await;
    let pid = target.pid();
    let (secret, cipher) = (key(0x11), key(0x42));
    let mut checked = secret.clone();
    checked.extend(crc32fast::hash(&secret).to_le_bytes());
    let interchange = format!("NVMeTLSkey-1:01:{}:", STANDARD.encode(checked));
    let (first, second) = cipher.split_at(16);
    let marks: Marks = [
        ("PSK, bytes", secret.clone()),
        ("PSK, as given", interchange.clone().into_bytes()),
        ("PSK, in JSON", base64(&interchange).into_bytes()),
        ("encryption key, first half", first.to_vec()),
        ("encryption key, second half", second.to_vec()),
        ("encryption key, in JSON", base64(&cipher).into_bytes()),
        ("encryption key for SPDK, first half", hex(first)),
        ("encryption key for SPDK, second half", hex(second)),
    ]
    .into();
    assert!(copies(pid, &marks).values().all(|count| *count == 0));

    // Over HTTP and gRPC; each connection is closed before memory is searched.
    let http = Http(target.http);
    let over_http = async |path: &str, body: serde_json::Value| {
        let answer = http.send("POST", path, &[], body.to_string().into()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    let volume = json!({ "block_size": 512, "blocks_count": 8192 });
    for id in ["one", "two"] {
        over_http(
            &format!("/v1/mallocVolumes?malloc_volume_id={id}"),
            volume.clone(),
        )
        .await;
    }
    let subsystem = |id: &str| {
        json!({ "spec": {
            "nqn": format!("nqn.2022-09.io.spdk:{id}"), "hostnqn": HOST, "psk": base64(&interchange),
        }})
    };
    let encrypted = |base: &str| {
        json!({
            "volume_name_ref": base, "cipher": "ENCRYPTION_TYPE_AES_XTS_128", "key": base64(&cipher),
        })
    };
    over_http("/v1/nvmeSubsystems?nvme_subsystem_id=one", subsystem("one")).await;
    over_http(
        "/v1/encryptedVolumes?encrypted_volume_id=cipher-one",
        encrypted("one"),
    )
    .await;
    {
        let client = target.client().await;
        let subsystems = Resource::new(&client, "NvmeSubsystem");
        subsystems.created("", "two", subsystem("two")).await;
        let volumes = Resource::new(&client, "EncryptedVolume");
        volumes.created("", "cipher-two", encrypted("two")).await;
    }
    let soon = Duration::from_secs(20);
    // While the keys are in use, the objects and SPDK hold copies; those of the request buffers must be
    // wiped.
    let passing = ["PSK, in JSON", "encryption key, in JSON"];
    let in_use = eventually("the request buffers are wiped", soon, async || {
        let found = copies(pid, &marks);
        passing.iter().all(|mark| found[mark] == 0).then_some(found)
    })
    .await;
    for mark in ["PSK, as given", "encryption key, first half"] {
        assert!(
            in_use[mark] > 0,
            "the search must find keys in use: {in_use:?}"
        );
    }
    {
        let client = target.client().await;
        for (kind, names) in [
            (
                "NvmeSubsystem",
                ["nvmeSubsystems/one", "nvmeSubsystems/two"],
            ),
            (
                "EncryptedVolume",
                ["encryptedVolumes/cipher-one", "encryptedVolumes/cipher-two"],
            ),
        ] {
            for name in names {
                Resource::new(&client, kind).deleted(name).await;
            }
        }
    }
    let mut left = BTreeMap::new();
    let wiped = eventually_or(soon, async || {
        left = copies(pid, &marks);
        left.values().all(|count| *count == 0)
    })
    .await;
    assert!(
        wiped,
        "copies left after the deletes: {left:?}, while in use: {in_use:?}"
    );
    target.stop();
}

/// A host's keys are replaced, with the old ones valid for a while, and revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_copy_of_a_hosts_keys_remains_in_memory_after_its_revocation() {
    let target = Target::start().await;
    let pid = target.pid();
    let keys: [[u8; 32]; 6] =
        [0x21, 0x32, 0x53, 0x64, 0x75, 0x86].map(|seed| key(seed).try_into().expect("32 bytes"));
    let [psk, dhchap, ctrlr] = [psk_with(keys[0]), dhchap_of(keys[1]), dhchap_of(keys[2])];
    let [new_psk, new_dhchap, new_ctrlr] =
        [psk_with(keys[3]), dhchap_of(keys[4]), dhchap_of(keys[5])];
    let marks: Marks = [
        ("PSK", psk.clone().into_bytes()),
        ("key", dhchap.clone().into_bytes()),
        ("controller's key", ctrlr.clone().into_bytes()),
        ("new PSK", new_psk.clone().into_bytes()),
        ("new key", new_dhchap.clone().into_bytes()),
        ("new controller's key", new_ctrlr.clone().into_bytes()),
        ("PSK, bytes", keys[0].to_vec()),
        ("key, bytes", keys[1].to_vec()),
        ("controller's key, bytes", keys[2].to_vec()),
        ("new PSK, bytes", keys[3].to_vec()),
        ("new key, bytes", keys[4].to_vec()),
        ("new controller's key, bytes", keys[5].to_vec()),
    ]
    .into();
    let in_use = {
        let client = target.client().await;
        let subsystem = subsystem(&client, "s", json!({})).await;
        let hosts = Resource::new(&client, "NvmeHost");
        let object = json!({
            "hostnqn": HOST, "psk": base64(&psk),
            "dhchap_key": base64(&dhchap), "dhchap_ctrlr_key": base64(&ctrlr),
        });
        let host = name_of(&hosts.created(&subsystem, "h", object).await);
        let until = SystemTime::now() + Duration::from_secs(3600);
        let object = json!({
            "psk": base64(&new_psk), "dhchap_key": base64(&new_dhchap),
            "dhchap_ctrlr_key": base64(&new_ctrlr),
            "old_keys_until": prost_types::Timestamp::from(until).to_string(),
        });
        hosts.updated(&host, object, None).await;
        let in_use = copies(pid, &marks);
        hosts.deleted(&host).await;
        in_use
    };
    for mark in ["PSK", "new PSK", "key", "new key"] {
        assert!(in_use[mark] > 0, "the search must find it: {in_use:?}");
    }
    let mut left = BTreeMap::new();
    let wiped = eventually_or(Duration::from_secs(20), async || {
        left = copies(pid, &marks);
        left.values().all(|count| *count == 0)
    })
    .await;
    assert!(wiped, "left: {left:?}, while in use: {in_use:?}");
    target.stop();
}

/// Polls until the condition holds; returns false when the timeout expires.
async fn eventually_or(within: Duration, mut holds: impl AsyncFnMut() -> bool) -> bool {
    let end = tokio::time::Instant::now() + within;
    while tokio::time::Instant::now() < end {
        if holds().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    false
}
