//! A target with devices to attack, and what must hold while and after they are.

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

/// The longest I/O of another client that is no stall, on a machine that also runs the test.
const STALL: Duration = Duration::from_millis(500);

/// How long it may take until what was taken is back.
const BACK: Duration = Duration::from_secs(3);

/// Resident memory may differ by this much, MiB.
const SLACK: u64 = 16;

/// Size of a volume, MiB.
const SIZE: u64 = 8;

/// A target with devices.
pub struct Lab {
    /// The target.
    pub target: Target,
    /// The connection of the calls.
    pub client: Client,
    runtime: Runtime,
    witness: Witness,
}

/// What a process has taken.
#[derive(Clone, Copy, Debug)]
struct Usage {
    fds: usize,
    hugepages_free: u64,
    resident_mib: u64,
}

impl Lab {
    /// Starts the target and makes its devices.
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
        // Pools and caches fill up with the first use.
        for kind in Kind::ALL {
            lab.serves(kind, &lab.victim(kind));
        }
        lab
    }

    /// The socket of a device.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.target.ctrlr_dir().join(name)
    }

    /// The socket of the device to attack.
    pub fn victim(&self, kind: Kind) -> PathBuf {
        self.socket(match kind {
            Kind::Blk => "blk",
            Kind::Scsi => "scsi",
        })
    }

    /// The socket of a device whose volume moves 1 MB a second.
    pub fn slow(&self, kind: Kind) -> PathBuf {
        self.socket(match kind {
            Kind::Blk => "slow-blk",
            Kind::Scsi => "slow-scsi",
        })
    }

    /// The socket of a device that is not attacked and has no client.
    fn neighbor(&self, kind: Kind) -> (Kind, PathBuf) {
        let other = match kind {
            Kind::Blk => Kind::Scsi,
            Kind::Scsi => Kind::Blk,
        };
        (other, self.victim(other))
    }

    /// Waits for calls.
    pub fn wait<T>(&self, calls: impl Future<Output = T>) -> T {
        self.runtime.block_on(calls)
    }

    /// The disk of the device to attack, as a driver has it.
    pub fn disk(&self, kind: Kind) -> Disk {
        self.disk_with(kind, &kind.options())
    }

    /// The same with options of its own.
    pub fn disk_with(&self, kind: Kind, options: &SessionOptions) -> Disk {
        patiently(|| Disk::open_with(kind, &self.victim(kind), options))
    }

    /// The disk of a device whose volume is slow.
    pub fn slow_disk(&self, kind: Kind, options: &SessionOptions) -> Disk {
        patiently(|| Disk::open_with(kind, &self.slow(kind), options))
    }

    /// A session with the device to attack that has neither memory nor rings.
    pub fn negotiated(&self, kind: Kind, options: &SessionOptions) -> Session {
        patiently(|| Session::negotiated(&self.victim(kind), options))
    }

    /// Runs an attack, and checks what must hold meanwhile and afterwards.
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

    /// The program runs, answers calls, and another client's I/O was right and without a stall.
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
                "{when}: another client's I/O stands still"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        let blks = Resource::new(&self.client, "VirtioBlk");
        let listed = self.wait(async { tokio::time::timeout(STALL, blks.names("")).await });
        assert!(listed.is_ok(), "{when}: a call is not answered");
    }

    /// A new client's I/O at a device is right.
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
        assert!(back.is_some(), "not given back: {now:?}, before {before:?}");
    }

    fn usage(&self) -> Usage {
        let process = format!("/proc/{}", self.target.pid().as_raw_nonzero());
        let fds = std::fs::read_dir(format!("{process}/fd")).map_or(0, Iterator::count);
        let pages = std::fs::read_to_string(format!("{process}/statm")).unwrap_or_default();
        let resident = pages
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse::<u64>().ok());
        let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
        let free = std::fs::read_to_string(pool).unwrap_or_default();
        Usage {
            fds,
            hugepages_free: free.trim().parse().unwrap_or(0),
            resident_mib: resident.unwrap_or(0) / 256,
        }
    }

    /// Ends all of it.
    pub fn stop(self) {
        let Self {
            target, witness, ..
        } = self;
        drop(witness);
        target.stop();
    }

    /// Takes the target out; the other client stops.
    pub fn into_target(self) -> Target {
        let Self {
            target, witness, ..
        } = self;
        drop(witness);
        target
    }
}

/// One of each to attack, one of each that is slow, and one for the other client.
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

/// Tries again while the session before it is being ended.
fn patiently<T>(mut open: impl FnMut() -> io::Result<T>) -> T {
    let mut last = None;
    let opened = poll_blocking(BACK, || open().map_err(|error| last = Some(error)).ok());
    opened.unwrap_or_else(|| panic!("the device does not serve a new client: {last:?}"))
}

/// Some attacks have more connections than a process may have files by default.
pub fn raise_limits() {
    let limit = getrlimit(Limit::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Limit::Nofile, raised).expect("the limit can be raised to its maximum");
}
