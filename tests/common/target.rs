//! The program under test as a child process.
//!
//! ```text
//! start ─► answers SERVING ─► stop (SIGTERM, at most 5 s, status 0, nothing left behind)
//!   └ dies: its log            └ late: SIGKILL, and the test fails
//! ```
//!
//! A reactor polls a whole core, so only one target runs on a machine at a time: it holds a file
//! lock. A second one beside it (a host of the first) shares the lock and takes another core.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::port::free_port;
use super::{Client, eventually, hugepages_or_fail, poll_blocking};

/// The built program.
const PROGRAM: &str = env!("CARGO_BIN_EXE_opi-spdk");

/// How long a start may take: with hugepages the kernel zeroes them first.
const START: Duration = Duration::from_secs(30);

/// What is promised of a stop.
const STOP: Duration = Duration::from_secs(5);

/// How a target is started.
#[derive(Clone)]
pub struct Options {
    /// Hugepages in place of ordinary memory.
    pub hugepages: bool,
    /// SPDK's memory.
    pub mem_mib: u32,
    /// The reactor's core.
    pub core: u32,
    /// The cores of its reactors, where they are several.
    pub cores: Option<&'static str>,
    /// The only core that it is started on (by taskset).
    pub pinned_to: Option<u32>,
    /// Further flags.
    pub args: Vec<String>,
    environment: Vec<(&'static str, String)>,
    /// Where its log goes in place of [`Target::log`].
    stderr: Option<PathBuf>,
    /// State, sockets and log go here: a new directory unless it follows another target.
    dir: Option<Arc<TempDir>>,
    machine: Option<Arc<File>>,
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
        }
    }
}

impl Options {
    /// With hugepages; fails when there are not enough.
    pub fn hugepages() -> Self {
        Self {
            hugepages: true,
            ..Self::default()
        }
    }

    /// With this much memory, MiB.
    pub fn memory(mut self, mib: u32) -> Self {
        self.mem_mib = mib;
        self
    }

    /// With these flags too.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// With this variable in its environment.
    pub fn variable(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// With its log in this file, which [`Target::log`] does not read.
    pub fn log_to(mut self, file: impl Into<PathBuf>) -> Self {
        self.stderr = Some(file.into());
        self
    }

    /// With SPDK's JSON-RPC on a socket of its own, which comes along.
    pub fn with_rpc(self) -> (Self, PathBuf) {
        let socket = std::env::temp_dir().join(format!("opi-rpc-{}.sock", free_port()));
        let args = ["--spdk-rpc-socket", socket.to_str().expect("UTF-8")];
        (self.args(args), socket)
    }

    /// In this directory.
    pub fn in_dir(mut self, dir: Arc<TempDir>) -> Self {
        self.dir = Some(dir);
        self
    }

    /// Its cores: two for all that could have them, where `TEST_REACTORS` is 2.
    fn reactors(&self) -> String {
        match self.cores {
            Some(cores) => cores.to_owned(),
            None if two_reactors() && self.core == 0 && self.pinned_to.is_none() => {
                "0,1".to_owned()
            }
            None => self.core.to_string(),
        }
    }

    /// In the directories of a target that has ended, without letting others in between.
    pub fn after(mut self, ended: &Target) -> Self {
        self.dir = Some(Arc::clone(&ended.dir));
        self.machine = Some(Arc::clone(&ended.machine));
        self
    }

    /// On core 1, while `first` runs on core 0.
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
    /// Where it serves gRPC.
    pub grpc: SocketAddr,
    /// Where it serves HTTP.
    pub http: SocketAddr,
    machine: Arc<File>,
    begun: SystemTime,
    hugepages_before: Option<u64>,
}

impl Target {
    /// Starts one without hugepages and waits until it serves.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// Starts one and waits until it serves.
    pub async fn start_with(options: Options) -> Self {
        let mut target = Self::spawn(&options);
        let address = target.grpc;
        eventually("the target serves", START, async || {
            if let Some(status) = target.exited() {
                panic!(
                    "the target ended with {status} at its start:\n{}",
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

    /// Starts one without waiting.
    pub fn spawn(options: &Options) -> Self {
        let machine = options.machine.clone().unwrap_or_else(lock_machine);
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
        let mut command = match options.pinned_to {
            // The first target has this core too: by locks of its own it does not see that.
            None if two_reactors() && options.core != 0 => {
                let mut command = Command::new("unshare");
                let apart = r#"mount -t tmpfs none /var/tmp && exec "$0" "$@""#;
                command.args(["--mount", "sh", "-c", apart, PROGRAM]);
                command
            }
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
            // Where a core dump goes.
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

    /// A new connection to it.
    pub async fn client(&self) -> Client {
        Client::connect(self.grpc)
            .await
            .expect("the target takes connections")
    }

    /// Where its sockets are.
    pub fn ctrlr_dir(&self) -> PathBuf {
        self.dir.path().join("ctrlr")
    }

    /// A place for files of the test, gone with the target.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// What it wrote to stderr and stdout.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it has not been stopped"))
    }

    /// Its exit status, once it has ended by itself.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child
            .as_mut()?
            .try_wait()
            .expect("a child can be waited for")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the target runs");
    }

    /// Waits for the end that a signal brings; SIGKILL and a panic when it does not come in time.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let ended = poll_blocking(within, || self.exited());
        let mut child = self.child.take().expect("it has not been stopped");
        let status = ended.unwrap_or_else(|| {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the target did not stop within {within:?}:\n{}", self.log())
        });
        self.check_no_report(status);
        status
    }

    /// Stops it with SIGTERM as promised, and checks that nothing stays behind.
    pub fn stop(mut self) -> Duration {
        self.stop_with(Signal::TERM)
    }

    /// The same with another signal, on a target that can still be asked for its log.
    pub fn stop_with(&mut self, signal: Signal) -> Duration {
        self.signal(signal);
        self.stopped()
    }

    /// The same for one that somebody else has sent the signal.
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

    /// Ends it without a chance to clean up.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait(STOP);
    }

    /// Forgets all that it made, after its end: a successor begins with nothing.
    pub fn forget(&self) {
        std::fs::remove_dir_all(self.dir.path().join("state")).expect("it has had a state");
    }

    /// A sanitizer has found nothing: AddressSanitizer and the C library's assertions write what they find,
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
        // What is older is of another process that had the number, and was killed.
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

/// Whether the name has the mark in it, and not that of a process whose number is longer.
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

/// Waits for the machine: one target at a time, over all test processes.
pub fn lock_machine() -> Arc<File> {
    let path = std::env::temp_dir().join("opi-spdk-tests.lock");
    let file = File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.lock()
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Arc::new(file)
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

/// Whether targets have two reactors where that is possible.
fn two_reactors() -> bool {
    std::env::var("TEST_REACTORS").is_ok_and(|number| number == "2")
}
