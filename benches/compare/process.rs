//! A child process pinned to its cores. It is ended by its PID when requested, when dropped, and by the kernel when
//! the bench dies.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use spdk::cores::CoreSet;

/// Timeout for ending after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// Poll interval.
const INTERVAL: Duration = Duration::from_millis(10);

/// Time after a start before idle CPU usage is measured.
const SETTLE: Duration = Duration::from_secs(3);

/// A running program with its output in a file.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `program` on `cores`. Only for the main thread: the kernel kills the program when the thread that
    /// started it ends (PDEATHSIG).
    pub fn start<A: AsRef<std::ffi::OsStr>>(
        name: &str,
        log_dir: &Path,
        cores: &CoreSet,
        program: &Path,
        arguments: &[A],
    ) -> Result<Self> {
        Self::start_in(name, log_dir, cores, program, arguments, &[])
    }

    /// The same with environment variables.
    pub fn start_in<A: AsRef<std::ffi::OsStr>>(
        name: &str,
        log_dir: &Path,
        cores: &CoreSet,
        program: &Path,
        arguments: &[A],
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let log = log_dir.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("log {}", log.display()))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "taskset", "-c"])
            .arg(cores.to_string())
            .arg(program)
            .args(arguments)
            .env("NO_COLOR", "1")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| {
                format!(
                    "starting {} (through setpriv and taskset)",
                    program.display()
                )
            })?;
        Ok(Self {
            child,
            name: name.to_owned(),
            log,
        })
    }

    /// The output so far.
    pub fn output(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| self.log.display().to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Retries `attempt` until it succeeds, the program ends, or the timeout passes.
    pub async fn poll_until<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut attempt: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended ({status}) before {what}:\n{}",
                    self.name,
                    self.last_words()
                );
            }
            if Instant::now() > deadline {
                let words = self.last_words();
                return Err(error.context(format!(
                    "{}: no {what} within {timeout:?}:\n{words}",
                    self.name
                )));
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Sends a signal, then waits as in [`Self::finish`].
    pub async fn stop(self, signal: Signal) -> Result<String> {
        self.signal(signal)?;
        self.finish(STOP_TIMEOUT).await
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("signal {signal:?} to {}", self.name))
    }

    /// Waits for a successful exit and returns the output.
    pub async fn finish(mut self, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            match self.child.try_wait()? {
                Some(status) if status.success() => return self.output(),
                Some(status) => bail!("{} failed ({status}):\n{}", self.name, self.last_words()),
                None => tokio::time::sleep(INTERVAL).await,
            }
        }
        bail!(
            "{} did not end within {timeout:?}:\n{}",
            self.name,
            self.last_words()
        )
    }

    /// CPU usage of all threads but `name` over a period, in percent of a core, after a pause for the start to settle.
    pub async fn idles_at(&self, name: &str, window: Duration) -> Result<f64> {
        self.uses(window, |thread| thread != name).await
    }

    /// As [`Self::idles_at`], of the thread `name` alone.
    pub async fn works_at(&self, name: &str, window: Duration) -> Result<f64> {
        self.uses(window, |thread| thread == name).await
    }

    async fn uses(&self, window: Duration, counts: impl Fn(&str) -> bool) -> Result<f64> {
        tokio::time::sleep(SETTLE).await;
        let before = self.time(&counts)?;
        tokio::time::sleep(window).await;
        let spent = self.time(&counts)? - before;
        Ok(spent.as_secs_f64() / window.as_secs_f64() * 100.0)
    }

    /// Processor time of the threads that count, to the nanosecond: /proc/PID/task/TID/stat counts in units of 10 ms.
    fn time(&self, counts: impl Fn(&str) -> bool) -> Result<Duration> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let mut time = Duration::ZERO;
        for task in fs::read_dir(&tasks).with_context(|| tasks.display().to_string())? {
            let task = task?.path();
            if !counts(fs::read_to_string(task.join("comm"))?.trim()) {
                continue;
            }
            let statistics = fs::read_to_string(task.join("schedstat"))?;
            let on_core = statistics.split_whitespace().next();
            let on_core = on_core.context("an empty schedstat")?.parse()?;
            time += Duration::from_nanos(on_core);
        }
        Ok(time)
    }

    /// Involuntary context switches of the thread `name`.
    pub fn preemptions(&self, name: &str) -> Result<u64> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        for task in fs::read_dir(&tasks).with_context(|| tasks.display().to_string())? {
            let task = task?.path();
            if fs::read_to_string(task.join("comm"))?.trim() != name {
                continue;
            }
            let status = fs::read_to_string(task.join("status"))?;
            let count = status
                .lines()
                .find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
            return Ok(count
                .context("no count of context switches")?
                .trim()
                .parse()?);
        }
        bail!("{} has no thread {name}", self.name)
    }

    fn last_words(&self) -> String {
        let output = self.output().unwrap_or_default();
        let lines: Vec<_> = output.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // The child is unreaped, so its PID cannot have been reused.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
