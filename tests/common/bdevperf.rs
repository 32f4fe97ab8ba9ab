//! bdevperf with several workloads at once, controlled over its JSON-RPC socket.

use std::fmt::{Display, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::driver::Driver;
use super::eventually;
use super::jsonrpc::JsonRpc;
use super::tools::Running;

/// Deadline for attaching the devices, and for the jobs' threads to exit.
const BOUND: Duration = Duration::from_secs(20);

/// A running bdevperf that has attached its devices.
pub struct Bdevperf {
    running: Running,
    rpc: JsonRpc,
    disk: String,
}

/// One job: a workload that repeats until the run ends.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// The workload: `verify`, `unmap`, `write_zeroes`, `flush`...
    pub kind: &'static str,
    /// Bytes per I/O.
    pub size: u64,
    /// Queue depth.
    pub depth: u32,
    /// The first block of the job's range, and the number of blocks.
    pub blocks: (u64, u64),
}

/// The result of a job.
#[derive(Debug)]
pub struct Done {
    /// The workload.
    pub kind: String,
    /// Number of successful I/Os.
    pub ios: u64,
    /// Run time, s.
    pub seconds: f64,
}

impl Bdevperf {
    /// Starts a bdevperf with these jobs on one disk.
    pub async fn start(driver: &Driver, dir: &Path, disk: &str, jobs: &[Job]) -> Self {
        let mut text = format!("[global]\nfilename={disk}\n");
        for Job {
            kind,
            size,
            depth,
            blocks,
        } in jobs
        {
            let (offset, length) = blocks;
            writeln!(
                text,
                "[{kind}]\nrw={kind}\nbs={size}\niodepth={depth}\noffset={offset}\nlength={length}"
            )
            .expect("a string can be written");
        }
        let (file, socket) = (dir.join("jobs.conf"), dir.join("bdevperf.sock"));
        std::fs::write(&file, text).expect("the directory is writable");
        let tool = driver.app("bdevperf", dir).args(["-z", "-t", "1", "-j"]);
        let running = tool.arg(file).arg("-r").arg(&socket).spawn();
        let rpc = eventually("bdevperf accepts JSON-RPC connections", BOUND, async || {
            JsonRpc::connect(&socket).await.ok()
        })
        .await;
        Self {
            running,
            rpc,
            disk: disk.to_owned(),
        }
    }

    /// Calls a method about the disk.
    async fn ask(&mut self, method: &str) -> Value {
        let params = json!({ "name": self.disk });
        let answer = self.rpc.call(method, params).await;
        answer.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Returns the number of SPDK threads in bdevperf.
    async fn threads(&mut self) -> usize {
        let answer = self.rpc.call("thread_get_stats", Value::Null).await;
        let answer = answer.unwrap_or_else(|error| panic!("{error:#}"));
        answer["threads"].as_array().expect("threads").len()
    }

    /// Returns the bdev's description (`bdev_get_bdevs`).
    pub async fn describe(&mut self) -> Value {
        self.ask("bdev_get_bdevs").await[0].take()
    }

    /// Runs all jobs concurrently for a second and stops bdevperf. Returns each job's result and the
    /// bdev's I/O statistics, or the program's output on failure.
    pub async fn perform(mut self) -> Result<(Vec<Done>, Value), String> {
        let threads = self.threads().await;
        let performed = self.rpc.call("perform_tests", Value::Null).await;
        let mut stats = Value::Null;
        // If the run failed, bdevperf has exited already.
        if performed.is_ok() {
            // Each job has a thread, which adds its counters to the statistics when the thread exits.
            eventually("the jobs' threads have ended", BOUND, async || {
                (self.threads().await == threads).then_some(())
            })
            .await;
            stats = self.ask("bdev_get_iostat").await["bdevs"][0].take();
        }
        // bdevperf exits only after its JSON-RPC client has disconnected.
        drop(self.rpc);
        let said = self.running.stop().await?;
        let failed = |why: &dyn Display| format!("{why}\n{said}");
        let results = performed.map_err(|error| failed(&error))?;
        let jobs = results["results"].as_array().expect("results");
        let jobs: Result<_, _> = jobs.iter().map(done).collect();
        Ok((jobs.map_err(|job: &Value| failed(job))?, stats))
    }
}

/// Parses a job's result; returns the job's JSON if the job failed.
fn done(job: &Value) -> Result<Done, &Value> {
    let number = |name: &str| job[name].as_f64().expect("a number");
    if job["status"] != "finished" || number("io_failed") > 0.0 {
        return Err(job);
    }
    let seconds = number("runtime");
    Ok(Done {
        kind: job["workload"].as_str().expect("a kind").to_owned(),
        ios: (number("iops") * seconds).round() as u64,
        seconds,
    })
}
