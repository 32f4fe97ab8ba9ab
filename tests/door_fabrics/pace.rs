//! Slow operations, and operations that must not wait for them.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::nvme_tcp::{Bystander, Command, Digests, Host, Identity, Pdu, Sgl, flag, kind};
use crate::common::{
    Bdevperf, Client, HOST, Initiator, Job, JsonRpc, Options, PSK, Resource, Target, base64,
    free_port, keep_private, malloc, name_of, namespace, nqn_of, subsystem, tcp_controller,
    tcp_path, tcp_spec,
};

/// Maximum slowdown of large I/O by TLS. Where each record waits for an acknowledgement it is several hundred.
const DEAREST: f64 = 15.0;

/// Sizes of large I/Os (several TLS records each) and queue depths: alone, and with others in flight.
const LARGE: [(u64, u32); 2] = [(64 << 10, 1), (128 << 10, 8)];

/// Timeout of connecting a controller beside slow I/O.
const SOON: Duration = Duration::from_secs(1);

/// Number of 128 KiB reads, under a limit of 1 MB/s.
const READS: u16 = 28;

/// IDs of the two subsystems; the first uses TLS.
const BOTH: [&str; 2] = ["tls", "plain"];

/// Exports both subsystems with a volume each; returns their ports.
async fn exported(target: &Target) -> [u16; 2] {
    let client = target.client().await;
    let mut ports = [0; 2];
    for (id, port) in BOTH.into_iter().zip(&mut ports) {
        let spec = match id {
            "tls" => json!({ "hostnqn": HOST, "psk": base64(PSK) }),
            _ => json!({}),
        };
        let volume = malloc(&client, &format!("{id}-volume"), 16).await;
        let subsystem = subsystem(&client, id, spec).await;
        namespace(&client, &subsystem, &volume, json!({})).await;
        *port = tcp_controller(&client, &subsystem).await.1;
    }
    ports
}

/// Runs each kind and size of large I/O in turn; returns I/Os per second.
async fn rates(host: &Initiator, dir: &Path) -> Vec<f64> {
    let mut rates = Vec::new();
    for kind in ["read", "write"] {
        for (size, depth) in LARGE {
            let job = Job {
                kind,
                size,
                depth,
                blocks: (0, 1024),
            };
            let driver = host.driver();
            let load = Bdevperf::start(&driver, dir, "Remoten1", &[job]).await;
            let (done, _) = load.perform().await.expect("it runs");
            rates.push(done[0].ios as f64 / done[0].seconds);
        }
    }
    rates
}

/// Compares TLS with plain TCP, since a busy machine slows down both.
async fn is_not_slow(secure: &Initiator, plain: &Initiator, dir: &Path) {
    let (secure, plain) = (rates(secure, dir).await, rates(plain, dir).await);
    println!(
        "I/Os a second, reads and writes of {LARGE:?} (bytes, depth): {secure:.0?} over TLS, {plain:.0?} in the clear"
    );
    for (secure, plain) in secure.iter().zip(&plain) {
        assert!(
            plain / secure < DEAREST,
            "{secure:.0} against {plain:.0} a second"
        );
    }
}

#[tokio::test]
async fn large_io_over_tls_is_not_slow_for_a_stock_host() {
    let target = Target::start_with(Options::default().alone()).await;
    let [secure, plain] = exported(&target).await;
    let dir: &Path = target.scratch();
    let key = dir.join("key");
    std::fs::write(&key, PSK).expect("there is room");
    keep_private(&key);
    let host = Initiator::tcp(secure, &nqn_of("tls"))
        .with_host(HOST)
        .with_psk(&key);
    is_not_slow(&host, &Initiator::tcp(plain, &nqn_of("plain")), dir).await;
    target.stop();
}

#[tokio::test]
async fn large_io_over_tls_is_not_slow_from_our_own_initiator() {
    let target = Target::start_with(Options::default().alone()).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let ports = exported(&peer).await;
    let client = target.client().await;
    let mut hosts = Vec::new();
    for (id, port) in BOTH.into_iter().zip(ports) {
        let psk = if id == "tls" {
            base64(PSK)
        } else {
            String::new()
        };
        let controller = json!({
            "multipath": "NVME_MULTIPATH_DISABLE", "tcp": { "psk": psk },
        });
        let controllers = Resource::new(&client, "NvmeRemoteController");
        let controller = name_of(&controllers.created("", id, controller).await);
        let mut path = tcp_path(port, &nqn_of(id));
        path["fabrics"]["hostnqn"] = HOST.into();
        Resource::new(&client, "NvmePath")
            .created(&controller, "path", path)
            .await;
        let subsystem = subsystem(&client, &format!("over-{id}"), json!({})).await;
        namespace(&client, &subsystem, &format!("{id}n1"), json!({})).await;
        let (_, port) = tcp_controller(&client, &subsystem).await;
        hosts.push(Initiator::tcp(port, &nqn_of(&format!("over-{id}"))));
    }
    is_not_slow(&hosts[0], &hosts[1], target.scratch()).await;
    target.stop();
    peer.stop();
}

/// Sends reads of 128 KiB without awaiting them.
fn read_slowly(io: &mut Host) {
    for cid in 0..READS {
        let read = Command::io(2, 1000 + cid, 1, 0, 256).sgl(Sgl::Transport(128 << 10));
        io.send(&Pdu::capsule(read, &[])).expect("it goes");
    }
}

/// Waits for the completions of these reads, in any order.
fn reads_end(io: &mut Host) {
    let mut left = READS;
    while left > 0 {
        let answer = io.receive().expect("its I/O ends");
        match answer.kind {
            kind::C2H_DATA if answer.flags & flag::SUCCESS == 0 => {}
            kind::C2H_DATA => left -= 1,
            _ => {
                assert_eq!((answer.kind, answer.status()), (kind::CAPSULE_RESP, 0));
                left -= 1;
            }
        }
    }
}

/// A subsystem with a namespace under a bandwidth limit and one without.
struct Slow {
    identity: Identity,
    subsystem: String,
    namespace: String,
}

impl Slow {
    async fn new(target: &Target) -> Self {
        let client = target.client().await;
        let volume = malloc(&client, "slow", 4).await;
        Self::of(&client, &volume, json!({})).await
    }

    /// Exports this volume in a subsystem of this specification.
    async fn of(client: &Client, volume: &str, spec: Value) -> Self {
        let max = json!({ "rw_bandwidth_mbs": 1 });
        let limit = json!({ "volume_name_ref": volume, "limits": { "max": max } });
        let limited = Resource::new(client, "QosVolume");
        let limited = name_of(&limited.created("", "limited", limit).await);
        let subsystem = subsystem(client, "both", spec).await;
        let slow = namespace(client, &subsystem, &limited, json!({})).await;
        let volume = malloc(client, "fast", 4).await;
        namespace(client, &subsystem, &volume, json!({})).await;
        let (_, port) = tcp_controller(client, &subsystem).await;
        Self {
            identity: Identity::new(port, &nqn_of("both")),
            subsystem,
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

    // SPDK's own command leaves the limit in place.
    let mut rpc = JsonRpc::connect(&socket).await.expect("SPDK's socket");
    let params = json!({ "nqn": identity.subnqn, "nsid": 1 });
    let removal = async move { rpc.call("nvmf_subsystem_remove_ns", params).await };
    let (begin, removal) = (Instant::now(), tokio::spawn(removal));
    // Repeat until the removal is done: draining its I/O takes seconds.
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
    let mut target = Target::start_with(Options::default().alone()).await;
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

/// Operations, each with its inverse, that pause a subsystem or a namespace with slow I/O.
#[derive(Clone, Copy, Debug)]
enum Verb {
    GrowVolume,
    AdmitOther,
    AdmitFirst,
    MakeHost,
    EndHost,
    Listen,
    ListenNoMore,
    MakeNamespace,
    EndNamespace,
    ChangeLimit,
}

impl Verb {
    const ALL: [Self; 10] = [
        Self::GrowVolume,
        Self::AdmitOther,
        Self::AdmitFirst,
        Self::MakeHost,
        Self::EndHost,
        Self::Listen,
        Self::ListenNoMore,
        Self::MakeNamespace,
        Self::EndNamespace,
        Self::ChangeLimit,
    ];

    /// Performs the operation; `file` belongs to the limited volume.
    async fn perform(self, client: &Client, slow: &Slow, file: &Path) {
        let of = |message| Resource::new(client, message);
        let subsystem = slow.subsystem.as_str();
        let host = json!({ "hostnqn": nqn_of("another") });
        match self {
            Self::GrowVolume => {
                std::fs::File::options()
                    .append(true)
                    .open(file)
                    .and_then(|file| file.set_len(8 << 20))
                    .expect("there is room");
                let grown = json!({ "filename": file, "blocks_count": 16384 });
                of("AioVolume").updated("volumes/slow", grown, None).await;
            }
            Self::AdmitOther | Self::AdmitFirst => {
                let id = match self {
                    Self::AdmitOther => "other",
                    _ => "first",
                };
                let change = json!({ "spec": { "hostnqn": nqn_of(id) } });
                of("NvmeSubsystem")
                    .updated(subsystem, change, Some(&["spec.hostnqn"]))
                    .await;
            }
            Self::MakeHost => drop(of("NvmeHost").created(subsystem, "h", host).await),
            Self::EndHost => {
                of("NvmeHost")
                    .deleted(&format!("{subsystem}/nvmeHosts/h"))
                    .await
            }
            Self::Listen => {
                let spec = tcp_spec(free_port());
                drop(of("NvmeController").created(subsystem, "c", spec).await);
            }
            Self::ListenNoMore => {
                of("NvmeController")
                    .deleted(&format!("{subsystem}/nvmeControllers/c"))
                    .await;
            }
            Self::MakeNamespace => {
                let volume = malloc(client, "third", 4).await;
                let spec = json!({ "spec": { "volume_name_ref": volume } });
                drop(of("NvmeNamespace").created(subsystem, "n", spec).await);
            }
            Self::EndNamespace => {
                of("NvmeNamespace")
                    .deleted(&format!("{subsystem}/nvmeNamespaces/n"))
                    .await;
            }
            Self::ChangeLimit => limit(client, 1000).await,
        }
    }
}

/// Sets the bandwidth limit in MB/s.
async fn limit(client: &Client, mbs: i64) {
    let change = json!({ "limits": { "max": { "rw_bandwidth_mbs": mbs } } });
    Resource::new(client, "QosVolume")
        .updated("volumes/limited", change, Some(&["limits"]))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_connect_and_calls_end_beside_slow_io_whatever_is_changed() {
    let mut target = Target::start_with(Options::default().alone()).await;
    let mut bystander = Bystander::new(&target).await;
    let client = target.client().await;
    let file = target.scratch().join("slow");
    std::fs::write(&file, vec![0; 4 << 20]).expect("there is room");
    let object = json!({ "filename": file, "block_size": 512 });
    let volumes = Resource::new(&client, "AioVolume");
    let volume = name_of(&volumes.created("", "slow", object).await);
    let slow = Slow::of(&client, &volume, json!({ "hostnqn": nqn_of("first") })).await;
    let slow = std::sync::Arc::new(slow);
    // Keeps the connected host admitted throughout.
    let host = json!({ "hostnqn": slow.identity.hostnqn });
    Resource::new(&client, "NvmeHost")
        .created(&slow.subsystem, "mine", host)
        .await;
    let identity = &slow.identity;
    let mut admin = identity.admin(Digests::OFF);
    let (mut io, mut other) = (identity.io(&admin, 1), identity.io(&admin, 2));
    for verb in Verb::ALL {
        // Takes over three seconds at the limit.
        read_slowly(&mut io);
        let done = {
            let (client, slow, file) = (client.clone(), slow.clone(), file.clone());
            tokio::spawn(async move { verb.perform(&client, &slow, &file).await })
        };
        let begin = Instant::now();
        loop {
            let ended = done.is_finished();
            let begin = Instant::now();
            drop(identity.admin(Digests::OFF));
            let cid = admin.cid();
            let alive = admin.call(Command::new(0x18, cid), &[]).expect("an answer");
            assert_eq!(alive.status(), 0);
            other.read(2, 0, 8).expect("another namespace");
            let waited = begin.elapsed();
            assert!(waited < SOON, "{verb:?}: a host waited {waited:?}");
            if ended {
                break;
            }
        }
        println!("{verb:?}: {:?}", begin.elapsed());
        done.await.expect("it is done");
        // Raise the limit, so that the I/O in flight drains soon.
        limit(&client, 1000).await;
        reads_end(&mut io);
        limit(&client, 1).await;
    }
    drop((io, other, admin));
    bystander.unharmed(&mut target, "slow I/O").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_does_not_hold_up_the_stop_of_the_program() {
    let target = Target::start_with(Options::default().alone()).await;
    let slow = Slow::new(&target).await;
    let admin = slow.identity.admin(Digests::OFF);
    // Takes ten seconds at the limit.
    let mut queues: Vec<Host> = (1..4).map(|qid| slow.identity.io(&admin, qid)).collect();
    for io in &mut queues {
        read_slowly(io);
    }
    target.stop();
}
