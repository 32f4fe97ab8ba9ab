//! SPDK's log lines about one event (a call, a path or many I/Os) become one line, or a few lines and a
//! count.

mod common;

use std::time::Duration;

use common::nvme_tcp::{Command, Digests, Identity};
use common::vhost_user::{Disk, Kind, SECTOR, blk_header};
use common::{
    Client, Fixture, JsonRpc, Options, PSK, Resource, Target, base64, blk_spec, eventually,
    free_port, malloc, name_of, namespace, nqn_of, remote_controller, subsystem, tcp_controller,
    tcp_path, tcp_spec, unique,
};
use serde_json::{Value, json};

/// Returns SPDK's warnings and errors in a log.
fn of_spdk(log: &str) -> Vec<&str> {
    let levels = [" WARN spdk: ", " ERROR spdk: "];
    let lines = log.lines();
    lines
        .filter(|line| levels.iter().any(|level| line.contains(level)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn repeated_lines_are_counted() {
    const CALLS: usize = 200;
    let (options, socket) = Options::default().with_rpc();
    let mut target = Target::start_with(options).await;
    let mut rpc = JsonRpc::connect(&socket).await.expect("SPDK listens");
    // The NQN is invalid: SPDK logs an error for each call.
    let wrong = json!({ "nqn": "nqn.wrong" });
    for _ in 0..CALLS {
        let refused = rpc.call("nvmf_create_subsystem", wrong.clone()).await;
        assert!(refused.is_err(), "the NQN is invalid");
    }
    let lines = |log: &str| {
        let lines = log.lines().filter(|line| !line.contains("more such lines"));
        lines.filter(|line| line.contains("nqn.wrong")).count()
    };
    eventually("the first is logged", Duration::from_secs(2), async || {
        (lines(&target.log()) > 0).then_some(())
    })
    .await;
    target.stop_with(rustix::process::Signal::TERM);
    let log = target.log();
    assert!(lines(&log) <= 9, "{} lines:\n{log}", lines(&log));
    let surplus = format!("{} more such lines", CALLS - 3);
    assert!(log.contains(&surplus), "{log}");
}

/// Creates a remote controller and a path that must fail.
async fn refused_path(client: &Client, mut controller: Value, path: Value) {
    let id = unique("refused");
    controller["multipath"] = "NVME_MULTIPATH_DISABLE".into();
    let controllers = Resource::new(client, "NvmeRemoteController");
    let controller = name_of(&controllers.created("", &id, controller).await);
    let paths = Resource::new(client, "NvmePath");
    let made = paths.create(&controller, "path", path).await;
    made.expect_err("the path cannot be attached");
    controllers.deleted(&controller).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_call_is_one_log_line() {
    let mut target = Target::start().await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 4).await;
    let closed = subsystem(
        &export.client,
        "closed",
        json!({ "hostnqn": nqn_of("nobody"), "psk": base64(PSK) }),
    )
    .await;
    let (_, closed_port) = tcp_controller(&export.client, &closed).await;
    let elsewhere = subsystem(
        &export.client,
        "elsewhere",
        json!({ "hostnqn": nqn_of("nobody") }),
    )
    .await;
    let (_, elsewhere_port) = tcp_controller(&export.client, &elsewhere).await;

    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    let plain = json!({});
    let keyed = json!({ "tcp": { "psk": base64(PSK) } });
    for (controller, port, subsystem) in [
        (&plain, export.port, "unknown"),
        (&plain, elsewhere_port, "elsewhere"),
        (&plain, free_port(), "elsewhere"),
        (&plain, peer.http.port(), "elsewhere"),
        (&plain, closed_port, "closed"),
        (&keyed, closed_port, "closed"),
        (&keyed, export.port, "unknown"),
        (&keyed, peer.http.port(), "elsewhere"),
    ] {
        let path = tcp_path(port, &nqn_of(subsystem));
        refused_path(&client, controller.clone(), path).await;
    }
    // The path's namespace has the UUID of a local volume.
    let far = export.resource("MallocVolume").get(&export.volume).await;
    let twin = json!({
        "block_size": 512, "blocks_count": 64, "uuid": far.expect("the volume exists")["uuid"],
    });
    of("MallocVolume").created("", "twin", twin).await;
    refused_path(&client, plain, tcp_path(export.port, &export.nqn)).await;
    let paths = 9;

    let volume = malloc(&client, "volume", 4).await;
    let sub = subsystem(&client, "sub", json!({})).await;
    let mut of_no_interface = tcp_spec(free_port());
    of_no_interface["spec"]["fabrics_id"]["traddr"] = "192.0.2.1".into();
    let missing = target.scratch().join("missing");
    let other = malloc(&client, "other", 4).await;
    let spec =
        |nsid: i64, of: &str| json!({ "spec": { "host_nsid": nsid, "volume_name_ref": of } });
    of("NvmeNamespace")
        .created(&sub, "shown", spec(7, &volume))
        .await;
    for (message, parent, object, reason) in [
        (
            "NvmeController",
            sub.as_str(),
            tcp_spec(target.http.port()),
            "in use",
        ),
        ("NvmeController", &sub, of_no_interface, "192.0.2.1"),
        ("NvmeNamespace", &sub, spec(7, &other), "7"),
        ("NvmeNamespace", &sub, spec(4096, &other), "4096"),
        (
            "AioVolume",
            "",
            json!({ "filename": missing, "block_size": 512 }),
            "No such file",
        ),
        (
            "AioVolume",
            "",
            json!({ "filename": target.scratch(), "block_size": 512 }),
            "a directory",
        ),
        (
            "MallocVolume",
            "",
            json!({ "block_size": 512, "blocks_count": 1_i64 << 30 }),
            "mem-mib",
        ),
        (
            "NullVolume",
            "",
            json!({ "block_size": 512, "blocks_count": 8, "uuid": "x" }),
            "uuid",
        ),
    ] {
        let resource = of(message);
        let made = resource.create(parent, &unique("refused"), object).await;
        let refused = made.expect_err(message);
        assert!(refused.message().contains(reason), "{refused}");
    }
    target.stop_with(rustix::process::Signal::TERM);
    let log = target.log();
    let lines = of_spdk(&log);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("already exists"), "{lines:#?}");
    let told = log
        .lines()
        .filter(|line| line.contains("CreateNvmePath") && line.contains("reason="));
    assert_eq!(told.count(), paths, "{log}");
    peer.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_path_is_logged_once_with_the_reason() {
    let mut target = Target::start().await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 4).await;
    let client = target.client().await;
    let controller = remote_controller(&client, "remote", "DISABLE").await;
    let path = tcp_path(export.port, &export.nqn);
    Resource::new(&client, "NvmePath")
        .created(&controller, "path", path)
        .await;
    peer.stop();
    let dropped = |log: &str| {
        let lines = log
            .lines()
            .filter(|line| line.contains("backend::path_monitor: the path"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let told = eventually(
        "the lost path is logged",
        Duration::from_secs(10),
        async || dropped(&target.log()).pop(),
    )
    .await;
    assert!(
        told.contains("the peer cannot be connected: Connection refused"),
        "{told}"
    );
    // A new reason is logged, once.
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let elsewhere = peer.client().await;
    let other = subsystem(&elsewhere, "other", json!({})).await;
    Resource::new(&elsewhere, "NvmeController")
        .created(&other, "", tcp_spec(export.port))
        .await;
    let path = "nvmeRemoteControllers/remote/nvmePaths/path";
    let refused = "the peer refuses Connect: it has no subsystem of this NQN";
    eventually(
        "the new reason is logged",
        Duration::from_secs(30),
        async || (dropped(&target.log()).len() == 2).then_some(()),
    )
    .await;
    let stats = client.call("StatsNvmePath", json!({ "name": path })).await;
    let stats = stats.expect_err("the path is down");
    assert!(stats.message().contains(refused), "{stats}");
    let told = dropped(&target.log()).pop().expect("two lines");
    assert!(told.contains(refused), "{told}");
    peer.stop();
    target.stop_with(rustix::process::Signal::TERM);
    let log = target.log();
    assert_eq!(dropped(&log).len(), 2, "{log}");
    assert!(of_spdk(&log).is_empty(), "{:#?}", of_spdk(&log));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rejected_write_zeroes_of_a_host_are_a_few_lines_and_a_count() {
    /// Write Zeroes with DEAC in command dword 12 (NVM command set), which SPDK rejects.
    const WRITE_ZEROES: u8 = 0x08;
    const DEAC: u32 = 1 << 25;
    let mut target = Target::start().await;
    let export = Fixture::tcp(&target, 4).await;
    let file = target.scratch().join("disk");
    std::fs::write(&file, vec![7; 4 << 20]).expect("the file can be written");
    let object = json!({ "filename": file, "block_size": 512 });
    let aio = Resource::new(&export.client, "AioVolume")
        .created("", "file", object)
        .await;
    let second = namespace(&export.client, &export.subsystem, &name_of(&aio), json!({})).await;
    let second = Resource::new(&export.client, "NvmeNamespace")
        .get(&second)
        .await;
    let second = second.expect("the namespace exists")["spec"]["host_nsid"].as_i64();

    let identity = Identity::new(export.port, &export.nqn);
    let admin = identity.admin(Digests::OFF);
    let mut host = identity.io(&admin, 1);
    for nsid in [
        1,
        second
            .and_then(|nsid| u32::try_from(nsid).ok())
            .expect("an nsid"),
    ] {
        for _ in 0..200 {
            let cid = host.cid();
            let command = Command::io(WRITE_ZEROES, cid, nsid, 0, 8).cdw(12, DEAC | 7);
            let answer = host.call(command, &[]).expect("the command is completed");
            assert_ne!(answer.status(), 0, "nsid {nsid}");
        }
    }
    target.stop_with(rustix::process::Signal::TERM);
    let log = target.log();
    let lines = of_spdk(&log);
    assert!(lines.len() <= 4, "{lines:#?}");
    let surplus = lines.last().expect("SPDK's lines are logged");
    assert!(surplus.contains("397 more such lines"), "{surplus}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn write_zeroes_with_unmap_of_a_machine_are_not_logged() {
    /// The request, and the unmap flag of its segment (virtio 1.2, 5.2.6).
    const WRITE_ZEROES: u32 = 13;
    const UNMAP: u32 = 1;
    let mut target = Target::start_with(Options::hugepages()).await;
    let client = target.client().await;
    let path = target.scratch().join("file");
    std::fs::write(&path, vec![7; 4 << 20]).expect("the file can be written");
    let object = json!({ "filename": path, "block_size": 512 });
    let aio = Resource::new(&client, "AioVolume")
        .created("", "aio", object)
        .await;
    let memory = malloc(&client, "memory", 4).await;
    for (id, volume) in [("of-file", name_of(&aio)), ("of-memory", memory)] {
        Resource::new(&client, "VirtioBlk")
            .created("", id, blk_spec(&volume))
            .await;
        let disk = Disk::open(Kind::Blk, &target.ctrlr_dir().join(id));
        let mut disk = disk.expect("the driver connects");
        let segment: Vec<u8> = [0, 0, 8, UNMAP]
            .iter()
            .flat_map(|word: &u32| word.to_le_bytes())
            .collect();
        for _ in 0..200 {
            let request = blk_header(WRITE_ZEROES, 0);
            let answer = disk.session.transfer(0, &[&request, &segment], &[1]);
            let status = answer.expect("the request is completed").parts.remove(0);
            assert_eq!(status, [0], "{id}");
        }
        let zeroes = disk.read(0, 8 * SECTOR).expect("the blocks can be read");
        assert!(zeroes.iter().all(|byte| *byte == 0), "{id}");
    }
    target.stop_with(rustix::process::Signal::TERM);
    let log = target.log();
    assert!(of_spdk(&log).is_empty(), "{:#?}", of_spdk(&log));
    assert!(log.lines().count() < 60, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_level_changes_without_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.toml");
    let level = |level: &str| std::fs::write(&config, format!("log-level = \"{level}\"\n"));
    level("info").expect("the file can be written");
    let args = ["--config", config.to_str().expect("UTF-8")];
    let target = Target::start_with(Options::default().args(args)).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 4).await;
    let client = target.client().await;
    let refused = || tcp_path(export.port, &nqn_of("unknown"));
    refused_path(&client, json!({}), refused()).await;
    let detail = "Connect command completed with error";

    level("debug").expect("the file can be written");
    let pid = target.pid();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("the target runs");
    let soon = Duration::from_secs(10);
    eventually("the new log level is active", soon, async || {
        let log = target.log();
        assert!(!log.contains(detail), "{log}");
        log.contains("level of the log is now debug").then_some(())
    })
    .await;
    refused_path(&client, json!({}), refused()).await;
    eventually("SPDK's line is logged", soon, async || {
        let log = target.log();
        let mut lines = log.lines().filter(|line| line.contains(detail));
        lines
            .any(|line| line.contains("DEBUG spdk: "))
            .then_some(())
    })
    .await;
    target.stop();
    peer.stop();
}
