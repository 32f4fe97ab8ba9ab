//! The audit log is a hash chain, which `opi-spdk audit verify` checks.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::log::{audited, line};
use crate::common::{Options, Target};

fn verify(args: &[&str], files: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_opi-spdk"))
        .args(["audit", "verify"])
        .args(args)
        .args(files)
        .output()
        .expect("the program starts")
}

/// Verifies an intact log; returns the output.
fn whole(args: &[&str], files: &[&Path]) -> String {
    let output = verify(args, files);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Verifies a damaged log; returns the lines of the output.
fn faults(args: &[&str], files: &[&Path]) -> Vec<String> {
    let output = verify(args, files);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(str::to_owned).collect()
}

fn private(path: &Path, text: &str) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .expect("written");
}

/// Writes a keyed audit log in two files: by a process that is killed while writing, by its successor,
/// and after a rotation.
async fn written(dir: &Path, key: &Path) -> [PathBuf; 2] {
    let [old, log] = ["audit.log.1", "audit.log"].map(|name| dir.join(name));
    let args = [
        "--log-format".to_owned(),
        "json".to_owned(),
        "--audit-log".to_owned(),
        log.display().to_string(),
        "--audit-key-file".to_owned(),
        key.display().to_string(),
    ];
    let mut first = Target::start_with(Options::default().args(args.clone())).await;
    let volume = |id: &str| json!({ "null_volume_id": id, "null_volume": { "block_size": 512, "blocks_count": 64 } });
    let client = first.client().await;
    for id in ["one", "two", "three"] {
        client.ok("CreateNullVolume", volume(id)).await;
    }
    audited(&log, "volumes/", 3).await;
    first.kill();

    // A torn write: the end of the last line has not reached the disk.
    let text = std::fs::read_to_string(&log).expect("the log");
    std::fs::write(&log, &text[..text.len() - 40]).expect("cut");
    let options = Options::default().args(args).after(&first);
    let mut second = Target::start_with(options).await;
    let client = second.client().await;
    client
        .ok("DeleteNullVolume", json!({ "name": "volumes/one" }))
        .await;
    audited(&log, "DeleteNullVolume", 1).await;

    std::fs::rename(&log, &old).expect("moved away");
    second.signal(Signal::HUP);
    line(&second, &["audit log opened again"]).await;
    client
        .ok("DeleteNullVolume", json!({ "name": "volumes/two" }))
        .await;
    audited(&log, "DeleteNullVolume", 1).await;
    client
        .ok("DeleteNullVolume", json!({ "name": "volumes/three" }))
        .await;
    second.stop_with(Signal::TERM);
    [old, log]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn changed_removed_added_and_moved_audit_lines_are_detected() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let key = dir.join("key");
    private(&key, &"5a".repeat(32));
    let [old, log] = written(dir, &key).await;
    let keyed = ["--audit-key-file", key.to_str().expect("UTF-8")];

    // One chain across a kill, a torn line, a restart and a rotation. The third create is a torn line,
    // followed by an entry about it.
    let told = whole(&keyed, &[&old, &log]);
    assert!(
        told.starts_with("whole: 7 lines from 1, the last is 7:"),
        "{told}"
    );
    let text = std::fs::read_to_string(&old).expect("the log");
    assert!(text.contains("\"cut\":{\"bytes\":"), "{text}");
    let kept = told
        .trim_end()
        .rsplit(' ')
        .next()
        .expect("a hash")
        .to_owned();

    // Verification needs the right key, in a file readable by its owner only.
    let without = verify(&[], &[&old, &log]);
    let said = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(
        !without.status.success() && said.contains("--audit-key-file"),
        "{said}"
    );
    let other = dir.join("other");
    private(&other, &"5b".repeat(32));
    let found = faults(
        &["--audit-key-file", other.to_str().expect("UTF-8")],
        &[&log],
    );
    assert_eq!(found.len(), 3, "{found:?}");

    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let bad = dir.join("bad");
    let found = |lines: &[String]| {
        std::fs::write(&bad, lines.join("\n") + "\n").expect("written");
        faults(&keyed, &[&bad, &log])
    };
    let at = |line: u64| format!("{}:{line}: ", bad.display());
    let mut changed = lines.clone();
    changed[0] = changed[0].replace("volumes/one", "volumes/two");
    let told = found(&changed);
    assert!(
        told[0].starts_with(&format!("{}was changed", at(1))),
        "{told:?}"
    );
    let mut taken = lines.clone();
    taken.remove(1);
    let told = found(&taken);
    assert!(
        told.iter().any(|it| it.contains("line 2: taken out")),
        "{told:?}"
    );
    let mut added = lines.clone();
    added.insert(1, lines[0].replace("\"seq\":1,", "\"seq\":2,"));
    let told = found(&added);
    assert!(
        told[0].starts_with(&at(2)) && told[0].contains("added"),
        "{told:?}"
    );
    let mut moved = lines.clone();
    moved.swap(3, 4);
    let told = found(&moved);
    assert!(told.iter().any(|it| it.contains("moved")), "{told:?}");
    // The remains of the torn line.
    let mut part = lines.clone();
    part[2] = part[2].replace("volumes/three", "volumes/other");
    let told = found(&part);
    assert!(told[0].contains("tells of a cut line"), "{told:?}");

    // Truncation at the end is noticed by the file beside the log, and elsewhere if the last line's hash was kept.
    let newer = std::fs::read_to_string(&log).expect("the log");
    let last = newer.lines().next_back().expect("a line").len() + 1;
    let shorter = dir.join("shorter");
    std::fs::write(&shorter, &newer[..newer.len() - last]).expect("written");
    whole(&keyed, &[&old, &shorter]);
    let told = faults(&[keyed[0], keyed[1], "--kept", &kept], &[&old, &shorter]);
    assert!(
        told[0].contains("line 7 with the hash of --kept is nowhere"),
        "{told:?}"
    );
    whole(&[keyed[0], keyed[1], "--kept", &kept], &[&old, &log]);
    let head =
        std::fs::read_to_string(dir.join("audit.log.head")).expect("the file beside the log");
    assert_eq!(head.trim_end(), kept);
    std::fs::copy(&shorter, &log).expect("written");
    let told = faults(&keyed, &[&old, &log]);
    assert!(
        told[0].contains("line 7: missing at the end (1 in all)"),
        "{told:?}"
    );
    // The head of a file: its first line says that the file begins.
    let (_, rest) = newer.split_once('\n').expect("lines");
    std::fs::write(&log, rest).expect("written");
    let told = faults(&keyed, &[&log]);
    assert!(
        told[0].contains("a file does not begin with line 6"),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_last_line_without_newline_is_no_part_of_a_whole_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let log = dir.join("audit.log");
    let args = ["--audit-log", log.to_str().expect("UTF-8")];
    let mut first = Target::start_with(Options::default().args(args)).await;
    let client = first.client().await;
    for id in ["one", "two"] {
        let volume = json!({ "block_size": 512, "blocks_count": 64 });
        let request = json!({ "null_volume_id": id, "null_volume": volume });
        client.ok("CreateNullVolume", request).await;
    }
    audited(&log, "CreateNullVolume", 2).await;
    first.stop_with(Signal::TERM);
    whole(&[], &[&log]);
    let text = std::fs::read_to_string(&log).expect("the log");

    let forged = r#"{"time":"2026-12-01T00:00:00Z","method":"forged","code":"OK"}"#;
    std::fs::write(&log, text.clone() + forged).expect("written");
    let told = faults(&[], &[&log]);
    assert_eq!(
        told,
        [format!(
            "{}:3: is no line of the chain: it was added, or changed",
            log.display()
        )]
    );
    // The next start notes what it finds as a cut line, which does not make it one.
    let mut second = Target::start_with(Options::default().args(args).after(&first)).await;
    audited(&log, "\"cut\":{\"bytes\":", 1).await;
    let told = faults(&[], &[&log]);
    assert!(
        told.len() == 1 && told[0].contains("it was added"),
        "{told:?}"
    );
    second.stop_with(Signal::TERM);

    // A line that is being written: in a file without its line before beside it.
    let copy = dir.join("copy.log");
    let half = text.len() - 40;
    std::fs::write(&copy, &text[..half]).expect("written");
    let told = faults(&[], &[&copy]);
    assert!(
        told.len() == 1 && told[0].contains(":2: is no whole line"),
        "{told:?}"
    );
    let (writing, rest) = (copy.clone(), text[half..].to_owned());
    let writer = std::thread::spawn(move || {
        use std::io::Write;
        std::thread::sleep(Duration::from_millis(200));
        let mut file = std::fs::File::options()
            .append(true)
            .open(writing)
            .expect("the copy");
        file.write_all(rest.as_bytes()).expect("written");
    });
    let told = whole(&[], &[&copy]);
    assert!(told.contains("whole: 2 lines from 1"), "{told}");
    writer.join().expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_audit_line_names_the_client_and_the_grant_and_no_token() {
    const TOKEN: &str = "operator-0123456789abcdef0123456789ab";
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let at = |name: &str| dir.join(name).display().to_string();
    private(&dir.join("token"), &format!("{TOKEN}\n"));
    let grants = format!(
        "[[grant]]\nrole = \"operator\"\ntoken-file = {:?}\n",
        at("token")
    );
    private(&dir.join("access"), &grants);
    let args = [
        "--audit-log",
        &at("audit.log"),
        "--access-file",
        &at("access"),
        "--listen-uds",
        &at("api.sock"),
    ];
    let target = Target::start_with(Options::default().args(args)).await;
    let client = target.client().await.with_token(TOKEN);
    let volume = json!({ "null_volume": { "block_size": 512, "blocks_count": 64 } });
    client.ok("CreateNullVolume", volume).await;
    let subsystem = json!({ "nvme_subsystem": { "spec": { "nqn": "nqn.2022-09.io.spdk:s" } } });
    client
        .fails(
            "CreateNvmeSubsystem",
            subsystem,
            tonic::Code::PermissionDenied,
        )
        .await;
    let mut shell = Command::new(env!("CARGO_BIN_EXE_opi-spdk"));
    shell.args([
        "create",
        "null-volume",
        "own",
        "block_size=512",
        "blocks_count=64",
        "--addr",
    ]);
    let out = shell.arg(format!("unix:{}", at("api.sock"))).output();
    assert!(out.expect("the program starts").status.success());
    let lines = audited(&dir.join("audit.log"), "Create", 3).await;
    let by_token = format!("token-file {}", at("token"));
    let uid = rustix::process::geteuid().as_raw();
    for (line, (role, grant, code)) in lines.iter().zip([
        ("operator", &by_token, "OK"),
        ("operator", &by_token, "PERMISSION_DENIED"),
        ("admin", &format!("owner uid {uid}"), "OK"),
    ]) {
        assert_eq!(line["role"], role, "{line}");
        assert_eq!(line["grant"], *grant, "{line}");
        assert_eq!(line["code"], code, "{line}");
        assert!(line["peer"].is_string(), "{line}");
    }
    target.stop();
    let text = std::fs::read_to_string(dir.join("audit.log")).expect("the log");
    assert!(!text.contains(TOKEN), "a token is in the audit log");
}
