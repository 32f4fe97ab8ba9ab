//! Several kinds of I/O at once: a bdevperf with jobs of its own, which takes orders at its JSON-RPC
//! socket and says there what came of them.

use std::fmt::{Display, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::driver::Driver;
use super::eventually;
use super::jsonrpc::JsonRpc;
use super::tools::Running;

/// How long it may take to attach its devices, and to end its jobs.
const BOUND: Duration = Duration::from_secs(20);

/// A bdevperf that has attached its devices.
pub struct Bdevperf {
    running: Running,
    rpc: JsonRpc,
    disk: String,
}

/// What one job does, over and over.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// `verify`, `unmap`, `write_zeroes`, `flush`...
    pub kind: &'static str,
    /// Bytes of one I/O.
    pub size: u64,
    /// I/Os under way at once.
    pub depth: u32,
    /// The first block that it touches, and how many.
    pub blocks: (u64, u64),
}

/// What came of a job.
#[derive(Debug)]
pub struct Done {
    /// Its kind.
    pub kind: String,
    /// I/Os that succeeded.
    pub ios: u64,
    /// Seconds that it ran.
    pub seconds: f64,
}

impl Bdevperf {
    /// Starts one that has these jobs for a disk.
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
            .expect("a text takes more");
        }
        let (file, socket) = (dir.join("jobs.conf"), dir.join("bdevperf.sock"));
        std::fs::write(&file, text).expect("the directory is writable");
        let tool = driver.app("bdevperf", dir).args(["-z", "-t", "1", "-j"]);
        let running = tool.arg(file).arg("-r").arg(&socket).spawn();
        let rpc = eventually("bdevperf takes orders", BOUND, async || {
            JsonRpc::connect(&socket).await.ok()
        })
        .await;
        Self {
            running,
            rpc,
            disk: disk.to_owned(),
        }
    }

    /// Asks about the disk.
    async fn ask(&mut self, method: &str) -> Value {
        let params = json!({ "name": self.disk });
        let answer = self.rpc.call(method, params).await;
        answer.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// How many threads SPDK has there.
    async fn threads(&mut self) -> usize {
        let answer = self.rpc.call("thread_get_stats", Value::Null).await;
        let answer = answer.unwrap_or_else(|error| panic!("{error:#}"));
        answer["threads"].as_array().expect("threads").len()
    }

    /// What the driver says of the disk.
    pub async fn describe(&mut self) -> Value {
        self.ask("bdev_get_bdevs").await[0].take()
    }

    /// Runs all jobs at once, for a second, and ends; what came of each and what the driver has counted,
    /// or all that the program wrote.
    pub async fn perform(mut self) -> Result<(Vec<Done>, Value), String> {
        let threads = self.threads().await;
        let performed = self.rpc.call("perform_tests", Value::Null).await;
        let mut stats = Value::Null;
        // It has ended by itself if it failed.
        if performed.is_ok() {
            // Each job has a thread, which hands in its counters when it ends.
            eventually("the jobs' threads have ended", BOUND, async || {
                (self.threads().await == threads).then_some(())
            })
            .await;
            stats = self.ask("bdev_get_iostat").await["bdevs"][0].take();
        }
        // It waits for its client to go first.
        drop(self.rpc);
        let said = self.running.stop().await?;
        let failed = |why: &dyn Display| format!("{why}\n{said}");
        let results = performed.map_err(|error| failed(&error))?;
        let jobs = results["results"].as_array().expect("results");
        let jobs: Result<_, _> = jobs.iter().map(done).collect();
        Ok((jobs.map_err(|job: &Value| failed(job))?, stats))
    }
}

/// What came of a job; all that is known of it when it failed.
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
