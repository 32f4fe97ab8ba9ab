//! The target, the device that is attacked, and a neighbour whose I/O goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::runtime::Runtime;

use crate::common::vfio_user::{Guest, Link};
use crate::common::{
    Client, Options, Resource, Target, malloc, namespace, pcie_spec, poll_blocking, subsystem,
};

/// What each wait of these tests is worth: no other machine may be held up for longer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Group of the sockets, by number: it needs no name.
pub const GROUP: u32 = 54321;

/// Their mode.
pub const MODE: u32 = 0o660;

/// A running target with two devices.
pub struct Lab {
    pub target: Target,
    pub client: Client,
    /// The device of the test.
    pub socket: PathBuf,
    neighbour: Neighbour,
    runtime: Runtime,
}

impl Lab {
    /// Starts the target, both devices and the neighbour.
    pub fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let (target, client) = runtime.block_on(async {
            let group = GROUP.to_string();
            let args = ["--socket-group", &group, "--socket-mode", "0660"];
            let target = Target::start_with(Options::hugepages().args(args)).await;
            let client = target.client().await;
            (target, client)
        });
        let socket = runtime.block_on(device(&target, &client, "attacked", 1));
        let other = runtime.block_on(device(&target, &client, "neighbour", 2));
        Self {
            target,
            client,
            socket,
            neighbour: Neighbour::start(other),
            runtime,
        }
    }

    /// One more device; its socket.
    pub fn device(&self, id: &str, function: i32) -> PathBuf {
        self.block_on(device(&self.target, &self.client, id, function))
    }

    /// Runs calls of the API.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// A guest at the device of the test, with an I/O queue.
    pub fn guest(&self) -> Guest {
        Guest::start(&self.socket)
    }

    /// A client that has introduced itself.
    pub fn link(&self) -> Link {
        Link::attach_within(&self.socket, PATIENCE)
    }

    /// Whether the neighbour's I/O goes on, at once.
    pub fn check_neighbour(&self) {
        self.neighbour.check(&self.target);
    }

    /// What holds after each test.
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

    /// Open descriptors of the program.
    pub fn descriptors(&self) -> usize {
        let dir = format!("/proc/{}/fd", self.target.pid().as_raw_nonzero());
        std::fs::read_dir(dir).expect("the program's").count()
    }

    /// The numbers of the program's eventfds, in order.
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

    /// Stops the target as promised.
    pub fn stop(self) {
        self.neighbour.end();
        self.target.stop();
    }

    /// Gives the target away, once the neighbour has gone.
    pub fn into_target(self) -> Target {
        self.neighbour.end();
        self.target
    }
}

/// A volume behind a vfio-user device; the device's socket.
async fn device(target: &Target, client: &Client, id: &str, function: i32) -> PathBuf {
    let volume = malloc(client, &format!("{id}-volume"), 8).await;
    let exported = subsystem(client, id, json!({})).await;
    namespace(client, &exported, &volume, json!({})).await;
    Resource::new(client, "NvmeController")
        .created(&exported, "", pcie_spec(function))
        .await;
    target.ctrlr_dir().join(id).join("cntrl")
}

/// Another machine, whose I/O nothing may hold up.
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
            "the neighbour's I/O stands still:\n{}",
            target.log()
        );
        // Six rounds take some 20 ms.
        assert!(
            took < Duration::from_secs(1),
            "the neighbour waited for {took:?}"
        );
    }

    /// Ends it; a fault of its data is a fault of the test.
    fn end(mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        thread.join().expect("the neighbour's data is right");
    }
}

fn io(socket: &Path, rounds: &AtomicU64, ends: &AtomicBool) {
    let mut guest = Guest::start(socket);
    while !ends.load(Ordering::Relaxed) {
        let round = rounds.fetch_add(1, Ordering::Relaxed);
        guest.verify(round as u8);
    }
}
