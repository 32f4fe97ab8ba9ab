//! The program under test as a child process.
//!
//! ```text
//! start ─► SERVING ─► stop (SIGTERM: status 0 within 5 s, no files left behind)
//!   └ exits: panic with the log  └ timeout: SIGKILL and panic
//! ```
//!
//! Targets share the machine by file locks ([`Machine`]). A second target of a test (an initiator of the first) shares
//! the first one's and uses another core.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::machine::Machine;
use super::port::free_port;
use super::{Client, eventually, hugepages_or_fail, poll_blocking};

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_opi-spdk");

/// Start timeout: the kernel zeroes hugepages first.
const START: Duration = Duration::from_secs(30);

/// Documented upper bound of a stop.
const STOP: Duration = Duration::from_secs(5);

/// Options of a target.
#[derive(Clone)]
pub struct Options {
    /// Use hugepages in place of ordinary memory.
    pub hugepages: bool,
    /// SPDK's memory, MiB.
    pub mem_mib: u32,
    /// The reactor's core.
    pub core: u32,
    /// The reactors' cores, if several.
    pub cores: Option<&'static str>,
    /// The only core of the process's affinity mask (set by taskset).
    pub pinned_to: Option<u32>,
    /// Additional command line flags.
    pub args: Vec<String>,
    environment: Vec<(&'static str, String)>,
    /// File for the log in place of the one read by [`Target::log`].
    stderr: Option<PathBuf>,
    /// Directory for state, sockets and log: a new one unless the target succeeds another.
    dir: Option<Arc<TempDir>>,
    machine: Option<Arc<Machine>>,
    /// No target of another test runs meanwhile.
    alone: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hugepages: false,
            mem_mib: 512,
            core: 0,
            cores: None,
            pinned_to: None,
            args: Vec::new(),
            environment: Vec::new(),
            stderr: None,
            dir: None,
            machine: None,
            alone: false,
        }
    }
}

impl Options {
    /// Uses hugepages; the start fails if too few are free.
    pub fn hugepages() -> Self {
        Self {
            hugepages: true,
            ..Self::default()
        }
    }

    /// Has the machine for this test alone: for what is measured, and for mounts that come after the start.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Sets SPDK's memory, MiB.
    pub fn memory(mut self, mib: u32) -> Self {
        self.mem_mib = mib;
        self
    }

    /// Appends command line flags.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub fn variable(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Appends the log to this file, which [`Target::log`] does not read.
    pub fn log_to(mut self, file: impl Into<PathBuf>) -> Self {
        self.stderr = Some(file.into());
        self
    }

    /// Enables SPDK's JSON-RPC on a new socket; returns the socket's path too.
    pub fn with_rpc(self) -> (Self, PathBuf) {
        let socket = std::env::temp_dir().join(format!("opi-rpc-{}.sock", free_port()));
        let args = ["--spdk-rpc-socket", socket.to_str().expect("UTF-8")];
        (self.args(args), socket)
    }

    /// Sets the directory.
    pub fn in_dir(mut self, dir: Arc<TempDir>) -> Self {
        self.dir = Some(dir);
        self
    }

    /// Returns the reactors' cores: `0,1` for every target that can have two, if `TEST_REACTORS` is 2.
    fn reactors(&self) -> String {
        match self.cores {
            Some(cores) => cores.to_owned(),
            None if two_reactors() && self.core == 0 && self.pinned_to.is_none() => {
                "0,1".to_owned()
            }
            None => self.core.to_string(),
        }
    }

    /// Waits for its part of the machine: all of it unless the target is small.
    fn wait_for_machine(&self) -> Machine {
        let chooses = self.core != 0 || self.cores.is_some() || self.pinned_to.is_some();
        let is_small = self.mem_mib <= 512 && !self.hugepages && !chooses && !two_reactors();
        match is_small && !self.alone && Machine::can_be_shared() {
            true => Machine::shared(),
            false => Machine::alone(),
        }
    }

    /// Succeeds a stopped target: same directory, and the machine lock is handed over.
    pub fn after(mut self, ended: &Target) -> Self {
        self.dir = Some(Arc::clone(&ended.dir));
        self.machine = Some(Arc::clone(&ended.machine));
        self
    }

    /// Runs on core 1 next to `first` on core 0.
    pub fn beside(mut self, first: &Target) -> Self {
        self.core = 1;
        self.machine = Some(Arc::clone(&first.machine));
        self
    }
}

/// A running target; stopped on drop.
pub struct Target {
    child: Option<Child>,
    dir: Arc<TempDir>,
    /// gRPC address.
    pub grpc: SocketAddr,
    /// HTTP address.
    pub http: SocketAddr,
    machine: Arc<Machine>,
    begun: SystemTime,
    hugepages_before: Option<u64>,
}

impl Target {
    /// Starts a target without hugepages and waits until it reports SERVING.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// Starts a target and waits until it reports SERVING.
    pub async fn start_with(options: Options) -> Self {
        let mut target = Self::spawn(&options);
        let address = target.grpc;
        eventually("the target serves", START, async || {
            if let Some(status) = target.exited() {
                panic!(
                    "the target ended with {status} during its start:\n{}",
                    target.log()
                );
            }
            Client::connect(address)
                .await?
                .is_serving()
                .await
                .then_some(())
        })
        .await;
        target
    }

    /// Starts a target without waiting for it.
    pub fn spawn(options: &Options) -> Self {
        let machine = options.machine.clone();
        let machine = machine.unwrap_or_else(|| Arc::new(options.wait_for_machine()));
        let hugepages_before = options.hugepages.then(|| {
            hugepages_or_fail(options.mem_mib);
            hugepages_free()
        });
        let dir = options.dir.clone().unwrap_or_else(|| {
            let dir = tempfile::Builder::new().prefix("opi-").tempdir();
            Arc::new(dir.expect("a temporary directory"))
        });
        let [grpc, http] =
            [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.path().join("log"))
            .expect("a log file");
        let begun = SystemTime::now();
        let cores = options.reactors();
        let is_second = two_reactors() && options.core != 0;
        let mut command = match options.pinned_to {
            // Another target uses this core too: a private /var/tmp hides SPDK's core lock files.
            None if is_second || machine.is_shared => Machine::apart(PROGRAM),
            None => Command::new(PROGRAM),
            Some(core) => {
                let mut command = Command::new("taskset");
                command.args(["--cpu-list", &core.to_string(), PROGRAM]);
                command
            }
        };
        command
            .args(["--grpc-addr", &grpc.to_string()])
            .args(["--http-addr", &http.to_string()])
            .args(["--cores", &cores])
            .args(["--mem-mib", &options.mem_mib.to_string()])
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .arg("--ctrlr-dir")
            .arg(dir.path().join("ctrlr"))
            .args(&options.args)
            .envs(options.environment.iter().cloned())
            // Core dumps are written here.
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("one file for both"))
            .stderr(match &options.stderr {
                None => log,
                Some(file) => File::options()
                    .append(true)
                    .open(file)
                    .expect("a file for the log"),
            });
        if !options.hugepages {
            command.arg("--no-huge");
        }
        Self {
            child: Some(command.spawn().expect("the program starts")),
            dir,
            grpc,
            http,
            machine,
            begun,
            hugepages_before,
        }
    }

    /// Opens a new gRPC connection.
    pub async fn client(&self) -> Client {
        Client::connect(self.grpc)
            .await
            .expect("the target accepts connections")
    }

    /// Returns the directory of the vfio-user and vhost-user sockets.
    pub fn ctrlr_dir(&self) -> PathBuf {
        self.dir.path().join("ctrlr")
    }

    /// Returns a directory for the test's files; removed with the target.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the target's stderr and stdout.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns the resident memory of the process, in MiB, without hugepages; 0 once it has ended.
    pub fn resident_mib(&self) -> u64 {
        let path = format!("/proc/{}/statm", self.pid().as_raw_nonzero());
        let pages = std::fs::read_to_string(path).unwrap_or_default();
        let pages = pages.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
        pages.unwrap_or(0) / 256
    }

    /// Returns the process ID.
    pub fn pid(&self) -> Pid {
        Pid::from_child(
            self.child
                .as_ref()
                .expect("the target has not been stopped"),
        )
    }

    /// Returns the exit status if the target has exited.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child
            .as_mut()?
            .try_wait()
            .expect("a child can be waited for")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the target runs");
    }

    /// Waits for the exit after a signal. Kills the target and panics when the timeout expires.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let ended = poll_blocking(within, || self.exited());
        let mut child = self.child.take().expect("the target has not been stopped");
        let status = ended.unwrap_or_else(|| {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the target did not stop within {within:?}:\n{}", self.log())
        });
        self.check_no_report(status);
        status
    }

    /// Stops the target with SIGTERM and checks that it exits with status 0, in time, and leaves no
    /// files behind.
    pub fn stop(mut self) -> Duration {
        self.stop_with(Signal::TERM)
    }

    /// Stops the target with `signal`, with the same checks; its log can still be read.
    pub fn stop_with(&mut self, signal: Signal) -> Duration {
        self.signal(signal);
        self.stopped()
    }

    /// Waits for a target that has been sent a stop signal, with the same checks.
    pub fn stopped(&mut self) -> Duration {
        let begin = Instant::now();
        let pid = self.pid();
        let status = self.wait(STOP);
        let took = begin.elapsed();
        assert!(
            status.success(),
            "the target ended with {status}:\n{}",
            self.log()
        );
        self.check_nothing_left(pid);
        took
    }

    /// Kills the target with SIGKILL.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait(STOP);
    }

    /// Deletes the state of a stopped target: a successor starts empty.
    pub fn forget(&self) {
        std::fs::remove_dir_all(self.dir.path().join("state")).expect("the state directory exists");
    }

    /// Asserts that no sanitizer found anything: AddressSanitizer and C assertions write to the log,
    /// UndefinedBehaviorSanitizer traps.
    fn check_no_report(&self, status: ExitStatus) {
        let trapped = status.signal() == Some(Signal::ILL.as_raw());
        let log = self.log();
        let reported = ["AddressSanitizer: ", "Assertion `"]
            .iter()
            .any(|mark| log.contains(mark));
        assert!(
            !trapped && !reported,
            "the target ended with {status} and a report:\n{log}"
        );
    }

    fn check_nothing_left(&self, pid: Pid) {
        let sockets = files_under(&self.ctrlr_dir());
        assert!(sockets.is_empty(), "left in ctrlr-dir: {sockets:?}");
        let mark = format!("pid{}", pid.as_raw_nonzero());
        // Older files belong to a killed process that had the same PID.
        let is_younger = |path: &PathBuf| {
            let modified = path.metadata().and_then(|about| about.modified());
            modified.is_ok_and(|modified| modified >= self.begun)
        };
        for dir in ["/dev/shm", "/dev/hugepages", "/var/tmp"] {
            let left: Vec<_> = entries(Path::new(dir))
                .filter(|path| is_of(&path.to_string_lossy(), &mark))
                .filter(is_younger)
                .collect();
            assert!(left.is_empty(), "left behind: {left:?}");
        }
        if let Some(before) = self.hugepages_before {
            let back = poll_blocking(Duration::from_secs(5), || {
                (hugepages_free() >= before).then_some(())
            });
            assert!(
                back.is_some(),
                "{} hugepages are free, {before} were",
                hugepages_free()
            );
        }
    }
}

/// Returns whether the name contains the mark, and not as the prefix of a longer PID.
fn is_of(name: &str, mark: &str) -> bool {
    name.match_indices(mark)
        .any(|(at, _)| !name[at + mark.len()..].starts_with(|next: char| next.is_ascii_digit()))
}

impl Drop for Target {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        if !std::thread::panicking() {
            self.stop_with(Signal::TERM);
            return;
        }
        let _ = kill_process(Pid::from_child(child), Signal::TERM);
        if poll_blocking(STOP, || child.try_wait().ok().flatten()).is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        eprintln!("--- log of the target ---\n{}", self.log());
    }
}

fn hugepages_free() -> u64 {
    let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let text = std::fs::read_to_string(pool).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path()))
}

fn files_under(dir: &Path) -> Vec<PathBuf> {
    let (dirs, mut files): (Vec<_>, Vec<_>) = entries(dir).partition(|path| path.is_dir());
    files.extend(dirs.iter().flat_map(|dir| files_under(dir)));
    files
}

/// Returns whether targets use two reactors where possible.
fn two_reactors() -> bool {
    std::env::var("TEST_REACTORS").is_ok_and(|number| number == "2")
}
