//! Keys do not get into core dumps: a crash leaves none, unless the operator asks for it.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Options, Resource, Target, base64, malloc};
use rustix::process::{Resource as Limited, Rlimit, Signal, prlimit};
use serde_json::json;

/// How long a core may take to be written.
const WRITTEN: Duration = Duration::from_secs(60);

/// A key that is nowhere else.
const KEY: &[u8; 32] = b"a key that no core dump may have";

/// Crashes a target that has a key: whether the kernel says that it wrote a core, and the core if it lies
/// in the directory of the target.
async fn crash(options: Options) -> (bool, Option<PathBuf>, Target) {
    let mut target = Target::start_with(options).await;
    let client = target.client().await;
    let base = malloc(&client, "base", 4).await;
    let object = json!({
        "volume_name_ref": base, "key": base64(KEY), "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
    });
    let volumes = Resource::new(&client, "EncryptedVolume");
    volumes.created("", "secret", object).await;
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
    let mut file = File::open(path).expect("it is there");
    let mut window = Vec::new();
    loop {
        let before = window.len();
        let mut chunk = file.by_ref().take(1 << 20);
        chunk.read_to_end(&mut window).expect("it can be read");
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
async fn a_crash_leaves_no_core_with_keys_unless_it_was_asked_for() {
    let (dumped, core, target) = crash(Options::default()).await;
    assert!(!dumped && core.is_none(), "{core:?}");

    // With the switch there is one: it was not the machine that kept the kernel from it.
    let options = Options::default().args(["--core-dump"]);
    let (dumped, core, _ended) = crash(options.after(&target)).await;
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    assert!(dumped, "no core was written; core_pattern is {pattern:?}");
    if let Some(core) = core {
        assert!(has(&core, KEY), "the search would not find a key");
    }
}
