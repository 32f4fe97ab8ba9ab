//! The price of a durable change: a Create of one client beside an fsync of the same file system, in turns, and the
//! creates per second of many clients beside the fsyncs per second.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::client::{Client, Verb};
use crate::report::line;
use crate::stats::Latency;

/// Turns, and creates and fsyncs in each.
const TURNS: u32 = 40;
const EACH: u32 = 10;

/// Results beside an fsync of a page that was appended to a file in the state directory.
#[derive(Debug, Clone, Serialize)]
pub struct Durable {
    pub fsync: Latency,
    /// Creates of a single client, among few volumes.
    pub create: Latency,
}

impl Durable {
    /// Takes turns between both. The volumes are deleted again.
    pub async fn of(client: &mut Client, state_dir: &Path) -> Result<Self> {
        let path = state_dir.with_file_name("fsync");
        let mut file = File::create(&path).with_context(|| path.display().to_string())?;
        let (mut fsyncs, mut creates) = (Vec::new(), Vec::new());
        for turn in 0..TURNS {
            for _ in 0..EACH {
                fsyncs.push(fsync(&mut file)?);
            }
            let ids = (turn * EACH..(turn + 1) * EACH).map(|number| format!("durable{number}"));
            let ids: Vec<String> = ids.collect();
            for id in &ids {
                let begun = Instant::now();
                client.call(Verb::Create, id).await?;
                creates.push(begun.elapsed());
            }
            for id in &ids {
                client.call(Verb::Delete, id).await?;
            }
        }
        std::fs::remove_file(&path)?;
        Ok(Self {
            fsync: Latency::of(fsyncs).context("no fsync")?,
            create: Latency::of(creates).context("no create")?,
        })
    }

    /// How much longer a Create takes than an fsync, at p50, in microseconds.
    pub fn extra_us(&self) -> f64 {
        self.create.p50_us - self.fsync.p50_us
    }

    /// The fsyncs per second of one caller.
    pub fn fsyncs_per_second(&self) -> f64 {
        1e6 / self.fsync.p50_us
    }

    /// Adds rows to the table of many objects.
    pub fn rows(&self, out: &mut String) {
        for (what, of) in [
            ("an fsync of its file system", &self.fsync),
            ("a Create, 1 client", &self.create),
        ] {
            let Latency { p50_us, p99_us, .. } = of;
            line(
                out,
                format_args!("| {what}, p50 / p99 | {p50_us:.0} / {p99_us:.0} µs |"),
            );
        }
    }
}

fn fsync(file: &mut File) -> Result<Duration> {
    file.write_all(&[7; 4096])?;
    let begun = Instant::now();
    file.sync_data()?;
    Ok(begun.elapsed())
}
