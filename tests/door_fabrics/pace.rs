//! What is slow, and what does not wait for it.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::nvme_tcp::{Bystander, Command, Digests, Host, Identity, Pdu, Sgl};
use crate::common::{
    Bdevperf, HOST, Initiator, Job, JsonRpc, Options, PSK, Resource, Target, base64, malloc,
    name_of, namespace, nqn_of, subsystem, tcp_controller,
};

/// I/Os of 64 KiB a second over TLS, at the least: some 25 where each waits for acknowledgements.
const LEAST: f64 = 400.0;

/// Bytes of a large I/O.
const LARGE: u64 = 64 << 10;

/// What a host waits for its controller beside slow I/O.
const SOON: Duration = Duration::from_secs(1);

/// Reads of 128 KiB under a limit of 1 MB a second.
const READS: u16 = 28;

#[tokio::test]
async fn large_io_over_tls_is_not_slow() {
    let target = Target::start().await;
    let client = target.client().await;
    let volume = malloc(&client, "volume", 16).await;
    let spec = json!({ "hostnqn": HOST, "psk": base64(PSK) });
    let subsystem = subsystem(&client, "tls", spec).await;
    namespace(&client, &subsystem, &volume, json!({})).await;
    let (_, port) = tcp_controller(&client, &subsystem).await;
    let dir: &Path = target.scratch();
    let key = dir.join("key");
    std::fs::write(&key, PSK).expect("there is room");
    let owner = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&key, owner).expect("it is ours");
    let host = Initiator::tcp(port, &nqn_of("tls"))
        .with_host(HOST)
        .with_psk(&key);
    for kind in ["read", "write"] {
        let job = Job {
            kind,
            size: LARGE,
            blocks: (0, 1024),
        };
        let driver = host.driver();
        let load = Bdevperf::start(&driver, dir, "Remoten1", &[job]).await;
        let (done, _) = load.perform().await.expect("it runs");
        let rate = done[0].ios as f64 / done[0].seconds;
        println!("{kind}: {rate:.0} I/Os of 64 KiB a second");
        assert!(rate > LEAST, "{kind}: {rate:.0} a second");
    }
    target.stop();
}

/// Sends reads of 128 KiB without waiting for them.
fn read_slowly(io: &mut Host) {
    for cid in 0..READS {
        let read = Command::io(2, 1000 + cid, 1, 0, 256).sgl(Sgl::Transport(128 << 10));
        io.send(&Pdu::capsule(read, &[])).expect("it goes");
    }
}

/// A subsystem with a namespace under a limit and one without.
struct Slow {
    identity: Identity,
    namespace: String,
}

impl Slow {
    async fn new(target: &Target) -> Self {
        let client = target.client().await;
        let volume = malloc(&client, "slow", 4).await;
        let max = json!({ "rw_bandwidth_mbs": 1 });
        let limit = json!({ "volume_name_ref": volume, "limits": { "max": max } });
        let limited = Resource::new(&client, "QosVolume");
        let limited = name_of(&limited.created("", "limited", limit).await);
        let subsystem = subsystem(&client, "both", json!({})).await;
        let slow = namespace(&client, &subsystem, &limited, json!({})).await;
        let volume = malloc(&client, "fast", 4).await;
        namespace(&client, &subsystem, &volume, json!({})).await;
        let (_, port) = tcp_controller(&client, &subsystem).await;
        Self {
            identity: Identity::new(port, &nqn_of("both")),
            namespace: slow,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_connect_while_a_namespace_with_slow_io_is_removed() {
    let (options, socket) = Options::default().with_rpc();
    let mut target = Target::start_with(options).await;
    let mut bystander = Bystander::new(&target).await;
    let Slow { identity, .. } = Slow::new(&target).await;
    let mut admin = identity.admin(Digests::OFF);
    let (mut io, mut other) = (identity.io(&admin, 1), identity.io(&admin, 2));
    read_slowly(&mut io);

    // SPDK's own command leaves the limit where it is.
    let mut rpc = JsonRpc::connect(&socket).await.expect("SPDK's socket");
    let params = json!({ "nqn": identity.subnqn, "nsid": 1 });
    let removal = async move { rpc.call("nvmf_subsystem_remove_ns", params).await };
    let (begin, removal) = (Instant::now(), tokio::spawn(removal));
    // Round and round until it is done: with its I/O it takes seconds.
    while !removal.is_finished() {
        let begin = Instant::now();
        let newcomer = identity.clone().named("newcomer").admin(Digests::OFF);
        let cid = admin.cid();
        let alive = admin.call(Command::new(0x18, cid), &[]).expect("an answer");
        assert_eq!(alive.status(), 0);
        other.read(2, 0, 8).expect("another namespace");
        assert!(
            begin.elapsed() < SOON,
            "a host waited {:?}",
            begin.elapsed()
        );
        drop(newcomer);
    }
    assert!(begin.elapsed() > SOON, "its I/O was not slow");
    removal.await.expect("no panic").expect("it is removed");
    drop((io, other, admin));
    bystander.unharmed(&mut target, "slow I/O").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_does_not_hold_up_the_removal_of_its_namespace() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let slow = Slow::new(&target).await;
    let admin = slow.identity.admin(Digests::OFF);
    let mut io = slow.identity.io(&admin, 1);
    read_slowly(&mut io);
    let namespaces = bystander.fixture.resource("NvmeNamespace");
    let begin = Instant::now();
    namespaces.deleted(&slow.namespace).await;
    assert!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
    let volumes = bystander.fixture.resource("QosVolume");
    volumes.deleted("volumes/limited").await;
    drop((io, admin));
    bystander.unharmed(&mut target, "slow I/O").await;
}
