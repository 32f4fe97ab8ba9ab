//! The target, the device under attack, and a neighbour with continuous I/O.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::runtime::Runtime;

use crate::common::vfio_user::{Guest, Link};
use crate::common::{Client, Options, Resource, Target, pcie_export, poll_blocking};

/// Deadline of every wait in these tests, and so the longest delay accepted for other clients.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Size of each volume.
const MIB: u64 = 8;

/// Group ID of the sockets; it needs no name.
pub const GROUP: u32 = 54321;

/// Mode of the sockets.
pub const MODE: u32 = 0o660;

/// A running target with a device under attack and one of a neighbour.
pub struct Lab {
    pub target: Target,
    pub client: Client,
    /// The socket of the device under attack.
    pub socket: PathBuf,
    neighbour: Neighbour,
    runtime: Runtime,
}

impl Lab {
    /// Starts the target, both devices and the neighbour's I/O.
    pub fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let (target, client) = runtime.block_on(async {
            let group = GROUP.to_string();
            let args = ["--socket-group", &group, "--socket-mode", "0660"];
            let target = Target::start_with(Options::hugepages().args(args)).await;
            let client = target.client().await;
            (target, client)
        });
        let socket = runtime.block_on(pcie_export(&target, &client, "attacked", MIB, 1));
        let other = runtime.block_on(pcie_export(&target, &client, "neighbour", MIB, 2));
        Self {
            target,
            client,
            socket,
            neighbour: Neighbour::start(other),
            runtime,
        }
    }

    /// Creates another device; returns its socket.
    pub fn device(&self, id: &str, function: i32) -> PathBuf {
        self.block_on(pcie_export(&self.target, &self.client, id, MIB, function))
    }

    /// Runs API calls.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Starts a guest with an I/O queue on the device under attack.
    pub fn guest(&self) -> Guest {
        Guest::start(&self.socket)
    }

    /// Connects a client to the device under attack and negotiates the version.
    pub fn link(&self) -> Link {
        Link::attach_within(&self.socket, PATIENCE)
    }

    /// Asserts that the neighbour's I/O makes progress without delay.
    pub fn check_neighbour(&self) {
        self.neighbour.check(&self.target);
    }

    /// Checks the invariants after each test.
    pub fn check(&mut self) {
        let ended = self.target.exited();
        assert!(ended.is_none(), "the program ended with {ended:?}");
        self.check_neighbour();
        let resource = Resource::new(&self.client, "NullVolume");
        self.block_on(async {
            let object = json!({ "block_size": 512, "blocks_count": 64 });
            resource.created("", "probe", object).await;
            resource.deleted("nullVolumes/probe").await;
        });
        self.guest().verify(7);
    }

    /// Returns the number of the target's open file descriptors.
    pub fn descriptors(&self) -> usize {
        let dir = format!("/proc/{}/fd", self.target.pid().as_raw_nonzero());
        std::fs::read_dir(dir).expect("the program's").count()
    }

    /// Returns the paths of the target's eventfds, sorted.
    pub fn eventfds(&self) -> Vec<String> {
        let dir = format!("/proc/{}/fd", self.target.pid().as_raw_nonzero());
        let all = std::fs::read_dir(dir).expect("the program's").flatten();
        let is_eventfd = |path: &PathBuf| {
            std::fs::read_link(path).is_ok_and(|to| to.as_os_str() == "anon_inode:[eventfd]")
        };
        let paths = all.map(|entry| entry.path()).filter(is_eventfd);
        let mut numbers: Vec<String> = paths.map(|path| path.display().to_string()).collect();
        numbers.sort();
        numbers
    }

    /// Stops the neighbour and the target.
    pub fn stop(self) {
        self.neighbour.end();
        self.target.stop();
    }

    /// Stops the neighbour and returns the target.
    pub fn into_target(self) -> Target {
        self.neighbour.end();
        self.target
    }
}

/// Another guest with continuous verified I/O.
struct Neighbour {
    rounds: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    fn start(socket: PathBuf) -> Self {
        let (rounds, ends) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, end) = (Arc::clone(&rounds), Arc::clone(&ends));
        let thread = std::thread::spawn(move || io(&socket, &count, &end));
        Self {
            rounds,
            ends,
            thread: Some(thread),
        }
    }

    fn check(&self, target: &Target) {
        let before = self.rounds.load(Ordering::Relaxed);
        let begin = Instant::now();
        let goes_on = poll_blocking(PATIENCE, || {
            (self.rounds.load(Ordering::Relaxed) > before + 5).then_some(())
        });
        let took = begin.elapsed();
        assert!(
            goes_on.is_some(),
            "the neighbour's I/O has stalled:\n{}",
            target.log()
        );
        // Six rounds take about 20 ms.
        assert!(
            took < Duration::from_secs(1),
            "the neighbour waited for {took:?}"
        );
    }

    /// Stops the I/O; panics if the neighbour's data was wrong.
    fn end(mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("the neighbour is stopped once");
        thread.join().expect("the neighbour's data is correct");
    }
}

fn io(socket: &Path, rounds: &AtomicU64, ends: &AtomicBool) {
    let mut guest = Guest::start(socket);
    while !ends.load(Ordering::Relaxed) {
        let round = rounds.fetch_add(1, Ordering::Relaxed);
        guest.verify(round as u8);
    }
}
