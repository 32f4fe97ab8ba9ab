//! A target with devices to attack, and the invariants during and after an attack.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Resource as Limit, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::Held;
use crate::common::{
    Client, Options, Resource, Target, blk_spec, lun_spec, malloc, poll_blocking, scsi_spec,
};
use crate::vhost_user::{Disk, Kind, Options as SessionOptions, Session, Witness};

/// Latency of another client's I/O above which it counts as stalled, on a machine that also runs the
/// test.
const STALL: Duration = Duration::from_millis(500);

/// Deadline for the release of resources.
const BACK: Duration = Duration::from_secs(3);

/// Tolerated growth of resident memory, MiB.
const SLACK: u64 = 16;

/// Size of a volume, MiB.
const SIZE: u64 = 8;

/// A target with devices.
pub struct Lab {
    /// The target.
    pub target: Target,
    /// The gRPC client.
    pub client: Client,
    runtime: Runtime,
    witness: Witness,
}

/// A snapshot of the process's resource usage.
#[derive(Clone, Copy, Debug)]
struct Usage {
    fds: usize,
    hugepages_free: u64,
    resident_mib: u64,
}

impl Lab {
    /// Starts the target and creates its devices.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (target, client) = runtime.block_on(async {
            let target = Target::start_with(Options::hugepages()).await;
            let client = target.client().await;
            make_devices(&client).await;
            (target, client)
        });
        let witness = Witness::start(Kind::Blk, target.ctrlr_dir().join("witness"));
        let lab = Self {
            target,
            client,
            runtime,
            witness,
        };
        // Fill pools and caches, which grow on first use.
        for kind in Kind::ALL {
            lab.serves(kind, &lab.victim(kind));
        }
        lab
    }

    /// Returns the socket of a device.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.target.ctrlr_dir().join(name)
    }

    /// Returns the socket of the device under attack.
    pub fn victim(&self, kind: Kind) -> PathBuf {
        self.socket(match kind {
            Kind::Blk => "blk",
            Kind::Scsi => "scsi",
        })
    }

    /// Returns the socket of a device whose volume is limited to 1 MB/s.
    pub fn slow(&self, kind: Kind) -> PathBuf {
        self.socket(match kind {
            Kind::Blk => "slow-blk",
            Kind::Scsi => "slow-scsi",
        })
    }

    /// Returns the socket of the device of the other kind: not attacked and without a client.
    fn neighbor(&self, kind: Kind) -> (Kind, PathBuf) {
        let other = match kind {
            Kind::Blk => Kind::Scsi,
            Kind::Scsi => Kind::Blk,
        };
        (other, self.victim(other))
    }

    /// Runs API calls.
    pub fn wait<T>(&self, calls: impl Future<Output = T>) -> T {
        self.runtime.block_on(calls)
    }

    /// Opens the disk of the device under attack.
    pub fn disk(&self, kind: Kind) -> Disk {
        self.disk_with(kind, &kind.options())
    }

    /// Opens the disk of the device under attack with session options.
    pub fn disk_with(&self, kind: Kind, options: &SessionOptions) -> Disk {
        patiently(|| Disk::open_with(kind, &self.victim(kind), options))
    }

    /// Opens the disk of a rate-limited device.
    pub fn slow_disk(&self, kind: Kind, options: &SessionOptions) -> Disk {
        patiently(|| Disk::open_with(kind, &self.slow(kind), options))
    }

    /// Opens a session on the device under attack that has neither memory nor rings.
    pub fn negotiated(&self, kind: Kind, options: &SessionOptions) -> Session {
        patiently(|| Session::negotiated(&self.victim(kind), options))
    }

    /// Runs an attack and checks the invariants during and after it.
    pub fn attacked_by(&mut self, kind: Kind, attack: fn(&mut Self, Kind) -> Held) {
        let before = self.usage();
        self.witness.report();
        let held = attack(self, kind);
        self.undisturbed("while it lasts");
        let (other, socket) = self.neighbor(kind);
        self.serves(other, &socket);
        drop(held);
        self.undisturbed("after it");
        for (kind, socket) in [(kind, self.victim(kind)), (other, socket)] {
            self.serves(kind, &socket);
        }
        self.gave_back(before);
    }

    /// Asserts that the target runs and answers calls, and that the witness's I/O was correct and did
    /// not stall.
    pub fn undisturbed(&mut self, when: &str) {
        let end = Instant::now() + STALL;
        loop {
            if let Some(status) = self.target.exited() {
                panic!("{when}: the target ended with {status}");
            }
            let report = self.witness.report();
            assert!(
                report.error.is_none() && report.slowest < STALL,
                "{when}: another client's I/O: {report:?}"
            );
            if report.ios > 0 {
                break;
            }
            assert!(
                Instant::now() < end,
                "{when}: another client's I/O has stalled"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        let blks = Resource::new(&self.client, "VirtioBlk");
        let listed = self.wait(async { tokio::time::timeout(STALL, blks.names("")).await });
        assert!(listed.is_ok(), "{when}: a gRPC call timed out");
    }

    /// Asserts that a new client's I/O on a device is correct.
    pub fn serves(&self, kind: Kind, socket: &std::path::Path) {
        patiently(|| Disk::open(kind, socket).and_then(|mut disk| disk.verify(8, 16384, 77)));
    }

    fn gave_back(&self, before: Usage) {
        let mut now = self.usage();
        let back = poll_blocking(BACK, || {
            now = self.usage();
            let is_back = now.fds <= before.fds
                && now.hugepages_free >= before.hugepages_free
                && now.resident_mib <= before.resident_mib + SLACK;
            is_back.then_some(())
        });
        assert!(
            back.is_some(),
            "resources were not released: {now:?}, before the attack {before:?}"
        );
    }

    fn usage(&self) -> Usage {
        let process = format!("/proc/{}", self.target.pid().as_raw_nonzero());
        let fds = std::fs::read_dir(format!("{process}/fd")).map_or(0, Iterator::count);
        let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
        let free = std::fs::read_to_string(pool).unwrap_or_default();
        Usage {
            fds,
            hugepages_free: free.trim().parse().unwrap_or(0),
            resident_mib: self.target.resident_mib(),
        }
    }

    /// Stops the witness and the target.
    pub fn stop(self) {
        let Self {
            target, witness, ..
        } = self;
        drop(witness);
        target.stop();
    }

    /// Stops the witness and returns the target.
    pub fn into_target(self) -> Target {
        let Self {
            target, witness, ..
        } = self;
        drop(witness);
        target
    }
}

/// Creates for each kind a device to attack and a rate-limited one, and the witness's device.
async fn make_devices(client: &Client) {
    let [blks, controllers, luns, limits, nulls] = [
        "VirtioBlk",
        "VirtioScsiController",
        "VirtioScsiLun",
        "QosVolume",
        "NullVolume",
    ]
    .map(|kind| Resource::new(client, kind));
    let blocks = json!({ "block_size": 512, "blocks_count": 16384 });
    nulls.created("", "grows", blocks).await;
    blks.created("", "grows", blk_spec("volumes/grows")).await;
    for id in ["blk", "slow-blk", "witness"] {
        let volume = malloc(client, id, SIZE).await;
        blks.created("", id, blk_spec(&volume)).await;
    }
    for id in ["scsi", "slow-scsi"] {
        let volume = malloc(client, id, SIZE).await;
        controllers.created("", id, scsi_spec()).await;
        luns.created("", id, lun_spec(id, &volume)).await;
    }
    for id in ["slow-blk", "slow-scsi"] {
        let limit = json!({ "max": { "rw_bandwidth_mbs": 1 } });
        let limited = json!({ "volume_name_ref": format!("volumes/{id}"), "limits": limit });
        limits.created("", &format!("{id}-limit"), limited).await;
    }
}

/// Retries while the previous session is being torn down.
pub fn patiently<T>(mut open: impl FnMut() -> io::Result<T>) -> T {
    let mut last = None;
    let opened = poll_blocking(BACK, || open().map_err(|error| last = Some(error)).ok());
    opened.unwrap_or_else(|| panic!("the device does not serve a new client: {last:?}"))
}

/// Some attacks open more connections than the default limit of file descriptors.
pub fn raise_limits() {
    let limit = getrlimit(Limit::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Limit::Nofile, raised).expect("the limit can be raised to its maximum");
}
