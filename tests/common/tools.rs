//! Programs that tests run: SPDK's tools, and others.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Timeout for a tool's next line of output and for its exit: a hang is an error.
const BOUND: Duration = Duration::from_secs(40);

/// Bytes of a tool's output that are buffered until they are read.
const PIPE: usize = 1 << 20;

/// A command line.
pub struct Tool {
    program: PathBuf,
    args: Vec<OsString>,
}

impl Tool {
    /// One of SPDK's tools.
    pub fn new(name: &str) -> Self {
        Self::at(tools_dir().join(name))
    }

    /// Any program.
    pub fn at(program: PathBuf) -> Self {
        Self {
            program,
            args: Vec::new(),
        }
    }

    /// SPDK's JSON-RPC command line client.
    pub fn rpc(socket: &Path) -> Self {
        let program =
            std::env::var_os("SPDK_RPC").expect("SPDK_RPC is not set: run scripts/test.sh");
        Self::at(program.into()).arg("-s").arg(socket)
    }

    /// Appends an argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Appends arguments.
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Runs the tool to its end; returns its output, as an error if the exit status is not 0.
    pub async fn run(self) -> Result<String, String> {
        let running = self.spawn();
        running.ended().await
    }

    /// Starts the tool; it is killed on drop.
    pub fn spawn(self) -> Running {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        // A tool that runs for long is read at its end: a full pipe would stop it. The limit is the system's.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE);
        let child = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(writer.try_clone().expect("one pipe for both"))
            .stderr(writer)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", self.program.display()));
        let reader =
            tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).expect("a pipe");
        Running {
            name: self.program.display().to_string(),
            pid: child.id(),
            child,
            lines: BufReader::new(reader),
            text: String::new(),
        }
    }
}

/// A running tool.
pub struct Running {
    name: String,
    pid: Option<u32>,
    child: Child,
    lines: BufReader<tokio::net::unix::pipe::Receiver>,
    text: String,
}

impl Running {
    /// Waits until the output contains `what`.
    pub async fn says(&mut self, what: &str) {
        while !self.text.contains(what) {
            let more = self.line().await;
            assert!(more, "{} ended before {what:?}:\n{}", self.name, self.text);
        }
    }

    /// Stops the tool with SIGTERM; returns its output.
    pub async fn stop(self) -> Result<String, String> {
        let pid = self.pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
        // The tool may have exited already; the exit status decides.
        let _ = kill_process(pid.expect("the process has an ID"), Signal::TERM);
        self.ended().await
    }

    /// Waits for the exit; returns the output, as an error if the exit status is not 0.
    pub async fn ended(mut self) -> Result<String, String> {
        while self.line().await {}
        let status = tokio::time::timeout(BOUND, self.child.wait()).await;
        let status = status
            .expect("the tool exits once its output is closed")
            .expect("a child can be waited for");
        if status.success() {
            Ok(std::mem::take(&mut self.text))
        } else {
            Err(format!("{}: {status}\n{}", self.name, self.text))
        }
    }

    async fn line(&mut self) -> bool {
        let mut line = Vec::new();
        let read = tokio::time::timeout(BOUND, self.lines.read_until(b'\n', &mut line)).await;
        let read = read
            .unwrap_or_else(|_| panic!("{} is silent for {BOUND:?}:\n{}", self.name, self.text));
        self.text += &String::from_utf8_lossy(&line);
        read.expect("a pipe can be read") > 0
    }
}

/// With `-g`, SPDK leaves its hugepage file behind at exit: remove it.
impl Drop for Running {
    fn drop(&mut self) {
        let Some(pid) = self.pid else { return };
        let _ = std::fs::remove_file(format!("/dev/hugepages/spdk_pid{pid}map_0"));
    }
}

/// Returns the directory of SPDK's tools.
pub fn tools_dir() -> PathBuf {
    let dir = std::env::var_os("SPDK_TOOLS");
    dir.expect("SPDK_TOOLS is not set: run the tests through scripts/test.sh, which builds them")
        .into()
}

/// Panics if fewer than `mib` MiB of hugepages are free.
pub fn hugepages_or_fail(mib: u32) {
    let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let text = std::fs::read_to_string(pool).unwrap_or_default();
    let free: u32 = text.trim().parse().unwrap_or(0);
    assert!(
        free * 2 >= mib,
        "this test needs {mib} MiB of hugepages and {} are free: run scripts/hugepages.sh",
        free * 2
    );
}
