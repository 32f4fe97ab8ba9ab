//! The state directory from the operator's view: export, import, and the errors for an unusable state. No test here
//! starts SPDK.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use opi_spdk::api::storage::{NullVolume, NvmeSubsystem, NvmeSubsystemSpec};
use opi_spdk::state::{Change, Disk, Entry, Error, StateKey, Store};
use prost::Message;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_opi-spdk");
const SECRET: &[u8] = b"NVMeTLSkey-1:01:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWZhYmNk:";

fn entry(key: &str, kind: &str, revision: u64, message: &impl Message) -> Change {
    Change::Put(Entry {
        key: key.to_owned(),
        kind: format!("opi_api.storage.v1.{kind}"),
        created: revision,
        revision,
        deleting: false,
        wanted: message.encode_to_vec(),
        object: message.encode_to_vec(),
    })
}

fn null(revision: u64) -> Change {
    let volume = NullVolume {
        block_size: 512,
        blocks_count: 64,
        ..NullVolume::default()
    };
    let key = format!("nullVolumes/n{revision}");
    entry(&key, "NullVolume", revision, &volume)
}

fn open(dir: &Path) -> Disk {
    let (key, _) = StateKey::find(dir, None, None, true).expect("a key");
    Disk::open(dir, &key).expect("a state")
}

/// Creates a state of five records, one of which has a key.
async fn state() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let subsystem = NvmeSubsystem {
        spec: Some(NvmeSubsystemSpec {
            nqn: "nqn.2022-09.io.spdk:s".to_owned(),
            psk: SECRET.to_vec(),
            ..NvmeSubsystemSpec::default()
        }),
        ..NvmeSubsystem::default()
    };
    let mut changes: Vec<_> = (1..5).map(null).collect();
    changes.push(entry("nvmeSubsystems/s", "NvmeSubsystem", 9, &subsystem));
    store.commit(changes, Vec::new()).await.expect("it is kept");
    store.close().await;
    dir
}

fn state_command(dir: &Path, verb: &str, args: &[&str]) -> Output {
    let output = Command::new(PROGRAM)
        .args(["state", verb, "--state-dir"])
        .arg(dir)
        .args(args)
        .stdin(Stdio::null())
        .output();
    output.expect("the program starts")
}

fn done(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {error}", output.status);
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// Returns the single error line of a program that refused to run.
fn refused(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    error
}

/// Returns the error of a start with this directory.
fn start_refused(dir: &Path, args: &[&str]) -> String {
    let sockets = tempfile::tempdir().expect("a directory");
    let output = Command::new(PROGRAM)
        .args([
            "--no-huge",
            "--grpc-addr",
            "127.0.0.1:0",
            "--http-addr",
            "127.0.0.1:0",
        ])
        .arg("--ctrlr-dir")
        .arg(sockets.path())
        .arg("--state-dir")
        .arg(dir)
        .args(args)
        .stdin(Stdio::null())
        .output();
    refused(&output.expect("the program starts"))
}

fn file(dir: &TempDir) -> PathBuf {
    dir.path().join("state.redb")
}

#[tokio::test]
async fn an_export_goes_into_another_directory_and_comes_out_of_it_the_same() {
    let [from, to] = [state().await, tempfile::tempdir().expect("a directory")];
    let export = from.path().join("export.json");
    let path = export.to_str().expect("UTF-8");
    done(&state_command(
        from.path(),
        "export",
        &["--with-secrets", "--output", path],
    ));
    let mode = std::fs::metadata(&export)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(done(&state_command(to.path(), "import", &[path])).contains("5 records"));
    let checked = done(&state_command(to.path(), "check", &[]));
    assert_eq!(checked, "whole: 5 records, revision 9\n");
    let again = done(&state_command(to.path(), "export", &["--with-secrets"]));
    assert_eq!(again, std::fs::read_to_string(&export).expect("text"));
    let twice = refused(&state_command(to.path(), "import", &[path]));
    assert!(twice.contains("5 records already"), "{twice}");
    let plain = done(&state_command(from.path(), "export", &[]));
    assert!(
        plain.contains("nqn.2022-09.io.spdk:s") && !plain.contains("TlZNZVRMU"),
        "{plain}"
    );
}

#[tokio::test]
async fn an_export_that_was_cut_or_edited_makes_nothing() {
    let [from, to] = [state().await, tempfile::tempdir().expect("a directory")];
    let whole = done(&state_command(from.path(), "export", &["--with-secrets"]));
    let export = to.path().join("export.json");
    let path = export.to_str().expect("UTF-8");
    for (text, place) in [
        (whole[..whole.len() / 2].to_owned(), "line "),
        (
            whole.replacen("\"64\"", "\"65\"", 1),
            "record 1 (\"nullVolumes/n1\"): was edited",
        ),
        ("{}".to_owned(), "is no export"),
    ] {
        std::fs::write(&export, text).expect("a file");
        let error = refused(&state_command(to.path(), "import", &[path]));
        assert!(error.contains(place), "{error}");
        assert!(!file(&to).exists(), "a state was made");
    }
}

#[tokio::test]
async fn a_directory_in_use_is_left_alone() {
    let dir = state().await;
    let lock = File::create(dir.path().join("lock")).expect("a file");
    lock.lock().expect("nobody else has it");
    for (verb, args) in [
        ("export", &[][..]),
        ("check", &[]),
        ("import", &["/dev/null"]),
    ] {
        let error = refused(&state_command(dir.path(), verb, args));
        assert!(error.contains("another opi-spdk"), "{error}");
    }
    drop(lock);
    done(&state_command(dir.path(), "check", &[]));
    let none = tempfile::tempdir().expect("a directory");
    let error = refused(&state_command(none.path(), "export", &[]));
    assert!(error.contains("has no state"), "{error}");
    assert!(!file(&none).exists(), "a state was made");
}

#[tokio::test]
async fn a_start_names_a_state_that_it_cannot_use_and_leaves_it() {
    let dir = state().await;
    let whole = std::fs::read(file(&dir)).expect("a file");
    let record = b"nullVolumes/n3";
    let at = whole.windows(record.len()).rposition(|part| part == record);
    let mut flipped = whole.clone();
    let at = at.expect("keys are not sealed") + 40;
    flipped[at] ^= 1;
    let page = at / 4096 * 4096;
    let place = format!("at bytes {page} to {} of {}", page + 4095, whole.len());
    for (content, says) in [
        (whole[..whole.len() / 2].to_vec(), "is damaged"),
        (flipped, place.as_str()),
        (Vec::new(), "is damaged (it is empty)"),
        (b"colour = \"red\"\n".to_vec(), "is no state of opi-spdk"),
    ] {
        std::fs::write(file(&dir), &content).expect("a file");
        for error in [
            start_refused(dir.path(), &[]),
            refused(&state_command(dir.path(), "check", &[])),
        ] {
            assert!(
                error.contains(says) && error.contains("state.redb"),
                "{error}"
            );
        }
        assert!(
            std::fs::read(file(&dir)).expect("a file") == content,
            "{says}: it was changed"
        );
    }
    std::fs::write(file(&dir), &whole).expect("a file");
    done(&state_command(dir.path(), "check", &[]));
}

#[tokio::test]
async fn a_start_names_a_newer_format() {
    let dir = state().await;
    let database = redb::Database::open(file(&dir)).expect("a database");
    let write = database.begin_write().expect("a transaction");
    let meta = redb::TableDefinition::<&str, &[u8]>::new("meta");
    let newer = 7_u32.to_le_bytes();
    let mut table = write.open_table(meta).expect("a table");
    table
        .insert("format", newer.as_slice())
        .expect("there is room");
    drop(table);
    write.commit().expect("there is room");
    drop(database);
    for error in [
        start_refused(dir.path(), &[]),
        refused(&state_command(dir.path(), "export", &[])),
    ] {
        assert!(error.contains("has format 7"), "{error}");
    }
}

#[tokio::test]
async fn a_start_names_a_key_that_does_not_fit() {
    let dir = state().await;
    let key = dir.path().join("other-key");
    let flag = ["--state-key-file", key.to_str().expect("UTF-8")];
    let write = |content: &[u8], mode| {
        std::fs::write(&key, content).expect("a file");
        std::fs::set_permissions(&key, Permissions::from_mode(mode)).expect("it is ours");
    };
    write(&[7; 32], 0o600);
    let error = start_refused(dir.path(), &flag);
    assert!(error.contains("was sealed with another key"), "{error}");
    write(&[7; 31], 0o600);
    assert!(start_refused(dir.path(), &flag).contains("has 31 bytes that are no key"));
    write(&[7; 32], 0o644);
    assert!(start_refused(dir.path(), &flag).contains("chmod 0600"));
    std::fs::remove_file(dir.path().join("state-key")).expect("it is there");
    assert!(start_refused(dir.path(), &[]).contains("state-key: is missing"));
    assert!(
        !dir.path().join("state-key").exists(),
        "another one was made"
    );
}

/// A file system of this size, unmounted when dropped.
struct Mount(TempDir);

impl Mount {
    fn new(options: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        mount(&["-t", "tmpfs", "-o", options, "tmpfs"], dir.path());
        Self(dir)
    }
}

fn mount(args: &[&str], at: &Path) {
    let status = Command::new("mount").args(args).arg(at).status();
    assert!(
        status.expect("mount(8)").success(),
        "mount {args:?}: the tests need root"
    );
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_file_system_fails_changes_and_nothing_else_until_there_is_room() {
    let disk = Mount::new("size=12m");
    let filler = disk.0.path().join("filler");
    let store = open(disk.0.path());
    store
        .commit(vec![null(1)], Vec::new())
        .await
        .expect("there is room");
    let room = rustix::fs::statvfs(disk.0.path()).expect("it is mounted");
    let rest = usize::try_from(room.f_bavail * room.f_frsize).expect("little");
    std::fs::write(&filler, vec![1; rest]).expect("there is room");
    let mut kept = vec![1];
    let mut failed = 0;
    for revision in 2..200 {
        let Change::Put(mut large) = null(revision) else {
            unreachable!()
        };
        large.object.resize(100_000, 0);
        match store.commit(vec![Change::Put(large)], Vec::new()).await {
            Ok(()) => kept.push(revision),
            Err(Error::Full(_)) => failed += 1,
            Err(other) => panic!("{other}"),
        }
        if failed == 3 {
            break;
        }
    }
    assert_eq!(failed, 3, "it was never full");
    let revisions = async |store: &Disk| -> Vec<u64> {
        let all = store.scan("").await.expect("they can be read");
        let mut all: Vec<_> = all.iter().map(|entry| entry.revision).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(revisions(&store).await, kept);
    std::fs::remove_file(&filler).expect("it is there");
    store
        .commit(vec![null(500)], Vec::new())
        .await
        .expect("there is room again");
    kept.push(500);
    assert_eq!(revisions(&store).await, kept);
    store.close().await;
    drop(store);
    let store = open(disk.0.path());
    assert_eq!(revisions(&store).await, kept);
    store.close().await;
}

#[tokio::test]
async fn a_read_only_mount_is_told() {
    let disk = Mount::new("size=12m");
    let store = open(disk.0.path());
    store
        .commit(vec![null(1)], Vec::new())
        .await
        .expect("there is room");
    store.close().await;
    drop(store);
    std::fs::write(disk.0.path().join("lock"), "").expect("there is room");
    mount(&["-o", "remount,ro"], disk.0.path());
    for error in [
        start_refused(disk.0.path(), &[]),
        refused(&state_command(disk.0.path(), "check", &[])),
    ] {
        assert!(error.contains("Read-only file system"), "{error}");
    }
}
