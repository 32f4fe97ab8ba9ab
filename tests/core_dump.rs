//! Core dumps must not contain keys: a crash leaves none unless the operator enables core dumps.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Options, Resource, Target, base64, dhchap_of, malloc, psk_with, subsystem};
use rustix::process::{Resource as Limited, Rlimit, Signal, prlimit};
use serde_json::json;

/// Timeout for writing a core dump.
const WRITTEN: Duration = Duration::from_secs(60);

/// Keys that occur nowhere else: of an encrypted volume, and of a host the TLS key, its own and the controller's.
const KEYS: [&[u8; 32]; 4] = [
    b"a key that no core dump may have",
    b"a PSK key of a host, in no cores",
    b"the first proof of a hosts name.",
    b"the proof of a controllers name.",
];

/// Crashes a target that has keys. Returns whether the kernel reports a core dump, and the core file if
/// it is in the target's directory.
async fn crash(options: Options) -> (bool, Option<PathBuf>, Target) {
    let mut target = Target::start_with(options).await;
    let client = target.client().await;
    let base = malloc(&client, "base", 4).await;
    let object = json!({
        "volume_name_ref": base, "key": base64(KEYS[0]), "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
    });
    let volumes = Resource::new(&client, "EncryptedVolume");
    volumes.created("", "secret", object).await;
    let over = subsystem(&client, "s", json!({})).await;
    let host = json!({
        "hostnqn": "nqn.2022-09.io.spdk:host",
        "psk": base64(psk_with(*KEYS[1])),
        "dhchap_key": base64(dhchap_of(*KEYS[2])),
        "dhchap_ctrlr_key": base64(dhchap_of(*KEYS[3])),
    });
    let hosts = Resource::new(&client, "NvmeHost");
    hosts.created(&over, "host", host).await;
    let all = Rlimit {
        current: None,
        maximum: None,
    };
    prlimit(Some(target.pid()), Limited::Core, all).expect("cores may be of any size");
    target.signal(Signal::ABORT);
    let status = target.wait(WRITTEN);
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}");
    let entries = std::fs::read_dir(target.scratch()).expect("a directory");
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let core = paths.find(|path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("core")
    });
    (status.core_dumped(), core, target)
}

fn has(path: &Path, text: &[u8]) -> bool {
    let mut file = File::open(path).expect("the core file exists");
    let mut window = Vec::new();
    loop {
        let before = window.len();
        let mut chunk = file.by_ref().take(1 << 20);
        chunk
            .read_to_end(&mut window)
            .expect("the core file can be read");
        if window.windows(text.len()).any(|bytes| bytes == text) {
            return true;
        }
        if window.len() == before {
            return false;
        }
        let rest = window.len().saturating_sub(text.len());
        window.drain(..rest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_crash_leaves_no_core_dump_unless_enabled() {
    let (dumped, core, target) = crash(Options::default()).await;
    assert!(!dumped && core.is_none(), "{core:?}");

    // With --core-dump there is one, so that the machine's settings did not suppress it before.
    let options = Options::default().args(["--core-dump"]);
    let (dumped, core, _ended) = crash(options.after(&target)).await;
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    assert!(dumped, "no core was written; core_pattern is {pattern:?}");
    if let Some(core) = core {
        // Of a host's keys the state has the interchange form.
        let forms = [
            KEYS[0].to_vec(),
            psk_with(*KEYS[1]).into_bytes(),
            dhchap_of(*KEYS[2]).into_bytes(),
            dhchap_of(*KEYS[3]).into_bytes(),
        ];
        for form in forms {
            let text = String::from_utf8_lossy(&form).into_owned();
            assert!(has(&core, &form), "the search must find {text}");
        }
    }
}
