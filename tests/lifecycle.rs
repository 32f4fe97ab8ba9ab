//! Start and stop of the program: in order, in time, and with a single clear line if the start fails.

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    Client, Fixture, Initiator, Options, Resource, Target, eventually, find_method, malloc,
    namespace, nqn_of, path_of, pcie_spec, poll_blocking, subsystem, tcp_controller,
};
use futures_util::FutureExt;
use rustix::process::Signal;
use serde_json::json;

/// Upper bound for reporting that the program cannot start.
const REFUSAL: Duration = Duration::from_secs(2);

/// Runs the program with invalid arguments; returns the only line of its error output.
fn refusal(args: &[&str]) -> String {
    let begin = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_opi-spdk"))
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let ended = poll_blocking(REFUSAL, || {
        child.try_wait().expect("a child can be waited for")
    });
    if ended.is_none() {
        child.kill().expect("the program runs");
    }
    let output = child
        .wait_with_output()
        .expect("the program's output can be read");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        ended.is_some(),
        "{args:?}: still runs after {:?}:\n{text}",
        begin.elapsed()
    );
    assert!(!output.status.success(), "{args:?} was accepted:\n{text}");
    assert_eq!(
        output.status.code().map(|code| code > 0),
        Some(true),
        "{args:?}: {}",
        output.status
    );
    assert_eq!(
        text.trim_end().lines().count(),
        1,
        "{args:?}: not one line:\n{text}"
    );
    text
}

fn refused_naming(args: &[&str], parts: &[&str]) {
    let line = refusal(args);
    for part in parts {
        assert!(line.contains(part), "{args:?}: {part:?} is not in: {line}");
    }
}

/// Asserts a rejection of these arguments; the others are valid, with the directories in `dir`.
fn refused_in(dir: &str, args: &[&str], parts: &[&str]) {
    let usual = [
        ["--state-dir", dir],
        ["--ctrlr-dir", dir],
        ["--grpc-addr", "127.0.0.1:0"],
        ["--http-addr", "127.0.0.1:0"],
    ];
    let others = usual.iter().filter(|[flag, _]| !args.contains(flag));
    let all: Vec<_> = others.flatten().chain(args).copied().collect();
    refused_naming(&[&["--no-huge"], &all[..]].concat(), parts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn it_starts_and_stops_twenty_times() {
    let mut options = Options::default();
    for _ in 0..20 {
        let target = Target::start_with(options.clone()).await;
        options = options.after(&target);
        let client = target.client().await;
        Resource::new(&client, "NullVolume").list("").await;
        target.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn signals_stop_it_in_time_with_hosts_connected_and_calls_in_flight() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut target = Target::start_with(Options::default().alone()).await;
        let export = Fixture::tcp(&target, 16).await;
        let load = export.load(30).await;
        let calls: Vec<_> = (0..16)
            .map(|n| {
                let client = export.client.clone();
                tokio::spawn(async move {
                    let volumes = Resource::new(&client, "MallocVolume");
                    let object = json!({ "block_size": 512, "blocks_count": 2048 });
                    let id = format!("in-flight-{n}");
                    // Until the target stops.
                    while volumes.create("", &id, object.clone()).await.is_ok() {
                        if volumes.delete(&id).await.is_err() {
                            break;
                        }
                    }
                })
            })
            .collect();
        let took = target.stop_with(signal);
        assert!(took < Duration::from_secs(5), "{took:?}");
        for call in calls {
            call.await.expect("the calling task does not panic");
        }
        // The host's connection has ended; its exit status does not matter.
        load.ended().await.ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn endless_requests_block_neither_others_nor_the_stop() {
    let target = Target::start().await;
    let client = target.client().await;
    let path = path_of(&find_method("CreateNullVolume"));
    let mut open: Vec<_> = (0..64)
        .map(|_| Box::pin(client.call_without_end(&path)))
        .collect();
    for call in &mut open {
        assert!(call.as_mut().now_or_never().is_none());
    }
    let nulls = Resource::new(&client, "NullVolume");
    let object = json!({ "block_size": 512, "blocks_count": 8 });
    nulls.created("", "beside-them", object).await;
    let took = target.stop();
    assert!(took < Duration::from_secs(5), "{took:?}");
    for call in open {
        call.await.expect_err("the call's connection was closed");
    }
}

/// The client neither reads nor closes: its runtime is blocked while the target stops.
#[tokio::test]
async fn an_unresponsive_client_does_not_block_the_stop() {
    let target = Target::start().await;
    let client = target.client().await;
    Resource::new(&client, "NullVolume").list("").await;
    // This call blocks the test's only thread, so that nothing drives the client's connection.
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_second_instance_is_rejected_and_the_first_keeps_running() {
    let first = Target::start_with(Options::default().alone()).await;
    let state = first.scratch().join("state").display().to_string();
    let pid = first.pid().as_raw_nonzero().to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let other = dir.path().display().to_string();
    let taken = ["--state-dir", &state, "--cores", "1"];
    refused_in(&other, &taken, &[&pid, &state]);
    // A different directory, but the same core.
    refused_in(&other, &["--cores", "0"], &["core 0", &pid]);
    // A different state directory, but the same socket directory.
    let sockets = first.ctrlr_dir().display().to_string();
    let taken = ["--ctrlr-dir", &sockets, "--cores", "1"];
    refused_in(&other, &taken, &["ctrlr-dir", &sockets]);
    assert!(first.client().await.is_serving().await);
}

#[test]
fn a_port_in_use_fails_the_start() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = other
        .local_addr()
        .expect("the listener is bound")
        .to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().display().to_string();
    for flag in ["--grpc-addr", "--http-addr", "--discovery-addr"] {
        refused_in(&path, &[flag, &address], &[&address, &flag[2..]]);
    }
}

#[test]
fn invalid_settings_fail_the_start_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().display().to_string();
    let refused = |args: &[&str], parts: &[&str]| refused_in(&path, args, parts);
    refused(&["--cores", "x"], &["cores", "x"]);
    refused(&["--cores", ""], &["cores"]);
    refused(&["--cores", "3-1"], &["cores", "3-1"]);
    refused(&["--cores", "0x"], &["cores", "0x"]);
    refused(&["--cores", "997"], &["cores", "997"]);
    refused(&["--cores", "99999999999999999999"], &["cores"]);
    refused(&["--mem-mib", "1"], &["mem-mib", "1"]);
    refused(&["--mem-mib", "-5"], &["mem-mib"]);
    refused(&["--mem-mib", "lots"], &["mem-mib", "lots"]);
    refused(&["--max-calls", "3"], &["max-calls", "3"]);
    refused(&["--grpc-addr", "nowhere"], &["grpc-addr", "nowhere"]);
    refused(&["--http-addr", "127.0.0.1"], &["http-addr", "127.0.0.1"]);
    refused(
        &["--discovery-addr", "0.0.0.0:0"],
        &["discovery-addr", "port 0"],
    );
    // An address of TEST-NET-1, which no local interface has.
    refused(
        &["--grpc-addr", "192.0.2.1:50051"],
        &["grpc-addr", "192.0.2.1"],
    );
    refused(&["--log-level", "=loud="], &["log-level"]);
    refused(&["--tls", "a:b"], &["tls", "a:b"]);
    refused(
        &["--tls", "/nowhere/c:/nowhere/k:/nowhere/a"],
        &["tls", "/nowhere/c"],
    );
    refused(&["--colour"], &["--colour", "--help tells"]);
    refused(
        &["--grpc_addr", "127.0.0.1:1"],
        &["did you mean --grpc-addr"],
    );
    refused(
        &["--grpc-addr", "localhost:50051"],
        &[
            "grpc-addr",
            "localhost:50051",
            "127.0.0.1:50051 or [::1]:50051",
        ],
    );
    let same = [
        "--grpc-addr",
        "0.0.0.0:50051",
        "--http-addr",
        "127.0.0.1:50051",
    ];
    refused(&same, &["http-addr: 127.0.0.1:50051 is where grpc-addr is"]);
    refused(&["surplus"], &["surplus"]);
    let nowhere = "/dev/null/x";
    for flag in ["--state-dir", "--ctrlr-dir"] {
        refused(&[flag, nowhere], &[&flag[2..], nowhere]);
    }
}

#[test]
fn an_invalid_configuration_fails_the_start_with_its_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().display().to_string();
    let file = dir.path().join("config.toml");
    let shown = file.display().to_string();
    let refused = |text: &[u8], parts: &[&str]| {
        std::fs::write(&file, text).expect("the directory is writable");
        refused_in(&path, &["--config", &shown], parts);
    };
    refused(b"cores = ", &[&shown, "line 1"]);
    refused(
        b"mem-mib = 256\ncolour = \"red\"",
        &[&shown, "line 2", "colour"],
    );
    refused(b"mem-mib = \"much\"", &[&shown, "line 1"]);
    refused(
        b"cores = 0",
        &["line 1: cores", "write it in quotes, \"0\""],
    );
    refused(b"\xff\xfe", &[&shown]);
    refused(
        b"[[volume]]\nkind = \"floppy\"\nname = \"a\"",
        &[&shown, "floppy"],
    );
    refused(
        b"[[volume]]\nkind = \"malloc\"\nname = \"a\"",
        &[&shown, "size-mib"],
    );
    let twice = "[[volume]]\nkind = \"null\"\nname = \"twin\"\nsize-mib = 1\n".repeat(2);
    refused(twice.as_bytes(), &["twin"]);
    let missing = dir.path().join("missing").display().to_string();
    refused_naming(&["--config", &missing], &[&missing]);
    refused_naming(&["--config", &path], &[&path]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_invalid_configured_volume_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let uneven = dir.path().join("uneven");
    std::fs::write(&uneven, [0; 1000]).expect("the directory is writable");
    let uneven = format!("kind = \"aio\"\nname = \"u\"\nfilename = {uneven:?}\nblock-size = 0");
    for (text, part) in [
        (uneven.as_str(), "no multiple of blocks of 512"),
        (
            "kind = \"malloc\"\nname = \"odd\"\nsize-mib = 1\nblock-size = 513",
            "odd",
        ),
        (
            "kind = \"malloc\"\nname = \"vast\"\nsize-mib = 1048576",
            "vast",
        ),
        (
            "kind = \"aio\"\nname = \"file\"\nfilename = \"/nowhere\"",
            "\"file\": filename: \"/nowhere\": No such file",
        ),
    ] {
        let file = dir.path().join("config.toml");
        std::fs::write(&file, format!("[[volume]]\n{text}\n")).expect("the directory is writable");
        let config = file.display().to_string();
        let mut target = Target::spawn(&Options::default().args(["--config", &config]));
        // The rejection comes from SPDK, so that SPDK must start first.
        let status = target.wait(Duration::from_secs(5));
        assert!(!status.success(), "{text} was accepted");
        let log = target.log();
        let last = log.lines().last().unwrap_or_default();
        assert!(
            last.contains(part),
            "{part} is not in the last line of:\n{log}"
        );
    }
}

#[test]
fn missing_hugepages_fail_the_start_with_a_remedy() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().display().to_string();
    refused_naming(
        &[
            "--mem-mib",
            "1048576",
            "--state-dir",
            &path,
            "--ctrlr-dir",
            &path,
            "--grpc-addr",
            "127.0.0.1:0",
            "--http-addr",
            "127.0.0.1:0",
            "--cores",
            "1",
        ],
        &["hugepages", "1048576", "nr_hugepages", "--no-huge"],
    );
}

#[test]
fn help_explains_every_flag() {
    let output = Command::new(env!("CARGO_BIN_EXE_opi-spdk"))
        .arg("--help")
        .output()
        .expect("the program starts");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("help is text");
    for flag in [
        "config",
        "grpc-addr",
        "http-addr",
        "cores",
        "mem-mib",
        "no-huge",
        "state-dir",
        "ctrlr-dir",
        "log-level",
        "tls",
    ] {
        let at = text
            .find(&format!("--{flag}"))
            .unwrap_or_else(|| panic!("no --{flag} in:\n{text}"));
        let section: String = text[at..].lines().take(2).collect();
        let words = section
            .split_whitespace()
            .filter(|word| !word.starts_with(['-', '<', '[']))
            .count();
        assert!(words >= 3, "--{flag} is not explained: {section}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn configured_volumes_are_referenced_by_bdev_name() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples/lab.toml")
        .display()
        .to_string();
    let target =
        Target::start_with(Options::default().memory(1024).args(["--config", &config])).await;
    let client = target.client().await;
    let parent = subsystem(&client, "sub", json!({})).await;
    for volume in ["Malloc0", "Malloc1", "Malloc2"] {
        namespace(&client, &parent, volume, json!({})).await;
    }
    let (_, port) = tcp_controller(&client, &parent).await;
    let initiator = Initiator::tcp(port, &nqn_of("sub"));
    initiator
        .verify(target.scratch(), 1)
        .await
        .expect("patterns match");
    let text = initiator.identify().await.expect("identified");
    let sizes = text
        .lines()
        .filter(|line| line.starts_with("Size (in LBAs):"));
    // 64 MiB in blocks of 512 bytes.
    assert!(sizes.clone().all(|line| line.contains("131072")), "{text}");
    assert_eq!(sizes.count(), 3, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_start_after_a_kill_cleans_up_leftovers() {
    let mut first = Target::start_with(Options::hugepages()).await;
    let pid = first.pid();
    let set_up = async |client: &Client, nvme: &str, virtio: &str| {
        let volume = malloc(client, "memory", 16).await;
        let parent = subsystem(client, nvme, json!({})).await;
        let object = json!({ "spec": { "volume_name_ref": volume } });
        Resource::new(client, "NvmeNamespace")
            .created(&parent, "ns", object)
            .await;
        Resource::new(client, "NvmeController")
            .created(&parent, "pcie", pcie_spec(1))
            .await;
        let function = json!({ "port_id": 0, "physical_function": 2, "virtual_function": 0 });
        let spare = malloc(client, "spare", 16).await;
        let object = json!({ "pcie_id": function, "volume_name_ref": spare });
        Resource::new(client, "VirtioBlk")
            .created("", virtio, object)
            .await;
    };
    set_up(&first.client().await, "one", "other").await;
    first.kill();
    let sockets = ["one/cntrl", "other"].map(|socket| first.ctrlr_dir().join(socket));
    assert!(
        sockets.iter().all(|socket| socket.exists()),
        "a killed process cannot remove its sockets"
    );

    // The socket names are swapped between the kinds.
    first.forget();
    let second = Target::start_with(Options::hugepages().after(&first)).await;
    set_up(&second.client().await, "other", "one").await;
    let initiator = Initiator::vfio_user(&second.ctrlr_dir().join("other"), &nqn_of("other"));
    initiator
        .verify(second.scratch(), 1)
        .await
        .expect("patterns match");
    let mark = format!("pid_{}", pid.as_raw_nonzero());
    eventually(
        "the killed process's hugepage files are removed",
        Duration::from_secs(2),
        async || {
            let maps = std::fs::read_dir("/dev/hugepages").expect("hugetlbfs is there");
            let left = maps
                .filter_map(Result::ok)
                .any(|file| file.file_name().to_string_lossy().contains(&mark));
            (!left).then_some(())
        },
    )
    .await;
}
