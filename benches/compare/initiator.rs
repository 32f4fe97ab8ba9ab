//! The I/O programs, and parsing their output.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::attach::{Attach, fio_filename, transport_id};
use crate::process::Process;
use crate::scenario::{Load, READS_OF_MIXED, Workload};
use crate::settings::Settings;

/// An I/O program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Initiator {
    /// spdk_nvme_perf.
    Perf,
    /// fio with SPDK's NVMe plugin.
    Fio,
    /// bdevperf with a virtio bdev.
    Bdevperf,
}

/// Memory of an initiator that has to be told the amount, in MiB.
const MEMORY_MIB: u32 = 256;

/// Memory of bdevperf, half of which its I/O buffer pools take, in MiB.
const BDEVPERF_MIB: u32 = 512;

/// Time for an initiator to connect and to end, in addition to its run.
const OVERHEAD: Duration = Duration::from_secs(30);

/// Result of one run. Latencies are in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    pub iops: f64,
    pub mean_us: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
    pub max_us: Option<f64>,
}

impl Initiator {
    pub fn name(self) -> &'static str {
        match self {
            Self::Perf => "spdk_nvme_perf",
            Self::Fio => "fio",
            Self::Bdevperf => "bdevperf",
        }
    }

    /// SPDK's fio plugin cannot run without hugepages.
    pub fn needs_hugepages(self) -> bool {
        match self {
            Self::Perf => false,
            Self::Fio | Self::Bdevperf => true,
        }
    }

    /// Does I/O for this many seconds.
    pub async fn run(
        self,
        settings: &Settings,
        attach: &Attach,
        load: Load,
        seconds: u32,
    ) -> Result<Measured> {
        let timeout = Duration::from_secs(seconds.into()) + OVERHEAD;
        match self {
            Self::Perf => {
                let output = perf(settings, "perf", attach, load, seconds, &[])?;
                perf_total(&output.finish(timeout).await?)
            }
            Self::Fio => fio(settings, attach, load, seconds, timeout).await,
            Self::Bdevperf => {
                let process = bdevperf(settings, attach, load, seconds)?;
                let output = process.finish(timeout).await?;
                bdevperf_total(&output)
            }
        }
    }
}

/// Maximum duration of background I/O, in seconds.
const LONG: u32 = 600;

/// Name of background I/O in the logs.
const BACKGROUND: &str = "perf-background";

/// I/O in the background, until it is stopped.
pub struct Background(Process);

impl Background {
    /// Starts the program. Returns once it does I/O.
    pub async fn start(settings: &Settings, attach: &Attach) -> Result<Self> {
        let load = Load::random(Workload::RandRead, 32);
        let process = perf(settings, BACKGROUND, attach, load, LONG, &[])?;
        Self::begun(settings, process).await
    }

    /// Starts the program for this many seconds of I/O whose latencies it counts. Returns once it does I/O.
    pub async fn timed(
        settings: &Settings,
        attach: &Attach,
        load: Load,
        seconds: u32,
    ) -> Result<Self> {
        let process = perf(settings, BACKGROUND, attach, load, seconds, &["-L"])?;
        Self::begun(settings, process).await
    }

    async fn begun(settings: &Settings, mut process: Process) -> Result<Self> {
        let log = settings.log_dir().join(format!("{BACKGROUND}.log"));
        process
            .poll_until("start of its I/O", OVERHEAD, async || {
                let begun = fs::read_to_string(&log)?.contains("Launching workers");
                if begun {
                    Ok(())
                } else {
                    bail!("it has not begun")
                }
            })
            .await?;
        Ok(Self(process))
    }

    /// Waits until the time is over, and returns the result.
    pub async fn finish(self, seconds: u32) -> Result<Measured> {
        let timeout = Duration::from_secs(seconds.into()) + OVERHEAD;
        perf_total(&self.0.finish(timeout).await?)
    }

    /// Stops the program and returns its result.
    pub async fn stop(self) -> Result<Measured> {
        perf_total(&self.0.stop(Signal::INT).await?)
    }
}

fn perf(
    settings: &Settings,
    name: &str,
    attach: &Attach,
    load: Load,
    seconds: u32,
    options: &[&str],
) -> Result<Process> {
    let Attach::Nvme {
        keys,
        single_segment,
        psk,
    } = attach
    else {
        bail!("spdk_nvme_perf speaks NVMe only");
    };
    let program = settings.tool("spdk_nvme_perf");
    // Line-buffered, so that the log shows immediately when I/O starts.
    let mut arguments = vec![
        "-oL".to_owned(),
        program.display().to_string(),
        "-q".to_owned(),
        load.queue_depth.to_string(),
        "-o".to_owned(),
        load.bytes.to_string(),
        "-w".to_owned(),
        load.workload.word().to_owned(),
        "-t".to_owned(),
        seconds.to_string(),
        "-c".to_owned(),
        format!("[{}]", settings.cores.load),
        "-r".to_owned(),
        transport_id(keys),
        "-s".to_owned(),
        MEMORY_MIB.to_string(),
        "-P".to_owned(),
        load.connections.to_string(),
    ];
    arguments.extend(options.iter().map(|&option| option.to_owned()));
    if load.workload == Workload::RandRw {
        arguments.extend(["-M".to_owned(), READS_OF_MIXED.to_string()]);
    }
    if *single_segment {
        arguments.push("-g".to_owned());
    }
    if let Some(psk) = psk {
        arguments.extend(["-S", "ssl", "--psk-path"].map(str::to_owned));
        arguments.push(psk.display().to_string());
    }
    if settings.no_huge() {
        arguments.push("--no-huge".to_owned());
    }
    Process::start(
        name,
        &settings.log_dir(),
        &settings.cores.load,
        "stdbuf".as_ref(),
        &arguments,
    )
}

/// Parses the total line: IOPS, MiB/s, then average, minimum and maximum latency in microseconds.
fn perf_total(output: &str) -> Result<Measured> {
    match total(output)[..] {
        [iops, _, mean_us, _, max_us, ..] => Ok(Measured {
            iops,
            mean_us,
            p50_us: perf_percentile(output, "50.00000"),
            p99_us: perf_percentile(output, "99.00000"),
            p999_us: perf_percentile(output, "99.90000"),
            max_us: Some(max_us),
        }),
        _ => bail!("spdk_nvme_perf printed no total:\n{output}"),
    }
}

/// A line such as ` 99.00000% :   123.456us` of the latency summary, in microseconds.
fn perf_percentile(output: &str, percent: &str) -> Option<f64> {
    let mut lines = output.lines().filter_map(|line| line.split_once("% :"));
    let (_, latency) = lines.find(|(of, _)| of.trim() == percent)?;
    latency.trim().strip_suffix("us")?.parse().ok()
}

/// The numbers of the total line.
fn total(output: &str) -> Vec<f64> {
    let line = output.lines().find(|line| line.trim().starts_with("Total"));
    line.and_then(|line| line.split_once(':'))
        .map(|(_, numbers)| numbers.split_whitespace().flat_map(str::parse).collect())
        .unwrap_or_default()
}

/// Queues of a virtio device for I/O and descriptors of each, enough for the deepest load.
const VIRTIO_QUEUES: (u32, u32) = (1, 512);

fn bdevperf(settings: &Settings, attach: &Attach, load: Load, seconds: u32) -> Result<Process> {
    let Attach::VhostUser { device, socket } = attach else {
        bail!("bdevperf is for vhost-user only");
    };
    let (vq_count, vq_size) = VIRTIO_QUEUES;
    let attach = json!({"subsystems": [{"subsystem": "bdev", "config": [{
        "method": "bdev_virtio_attach_controller",
        "params": {
            "name": "Virtio0", "dev_type": device.word(), "trtype": "user", "traddr": socket,
            "vq_count": vq_count, "vq_size": vq_size,
        },
    }]}]});
    let config = settings.scratch().join("bdevperf.json");
    fs::write(&config, attach.to_string()).with_context(|| config.display().to_string())?;
    let arguments = [
        "-m",
        &format!("[{}]", settings.cores.load),
        "-r",
        &settings
            .scratch()
            .join("bdevperf.sock")
            .display()
            .to_string(),
        "-c",
        &config.display().to_string(),
        "-q",
        &load.queue_depth.to_string(),
        "-o",
        &load.bytes.to_string(),
        "-w",
        load.workload.word(),
        "-M",
        &READS_OF_MIXED.to_string(),
        "-t",
        &seconds.to_string(),
        "-s",
        &BDEVPERF_MIB.to_string(),
        "-g",
        "--no-pci",
    ];
    Process::start(
        "bdevperf",
        &settings.log_dir(),
        &settings.cores.load,
        &settings.tool("bdevperf"),
        &arguments,
    )
}

/// Parses the total line: IOPS, MiB/s, failures and timeouts per second, then average, minimum and maximum latency in
/// microseconds.
fn bdevperf_total(output: &str) -> Result<Measured> {
    match total(output)[..] {
        [iops, _, 0.0, _, mean_us, ..] => Ok(Measured {
            iops,
            mean_us,
            p50_us: None,
            p99_us: None,
            p999_us: None,
            max_us: None,
        }),
        _ => bail!("bdevperf printed no total without failures:\n{output}"),
    }
}

/// I/O is submitted and reaped in batches: one by one, fio itself would be the bottleneck.
async fn fio(
    settings: &Settings,
    attach: &Attach,
    load: Load,
    seconds: u32,
    timeout: Duration,
) -> Result<Measured> {
    let Attach::Nvme { keys, .. } = attach else {
        bail!("fio with SPDK's NVMe plugin speaks NVMe only");
    };
    let job = settings.scratch().join("job.fio");
    let result = settings.scratch().join("fio.json");
    let engine: PathBuf = settings.tool("spdk_nvme");
    let text = format!(
        "[bench]\n\
         ioengine={engine}\n\
         thread=1\n\
         mem_size_mb={MEMORY_MIB}\n\
         filename={filename}\n\
         rw={workload}\n\
         rwmixread={READS_OF_MIXED}\n\
         bs={bytes}\n\
         iodepth={depth}\n\
         iodepth_batch={batch}\n\
         iodepth_batch_complete_max={depth}\n\
         {rate}\
         time_based=1\n\
         runtime={seconds}\n\
         norandommap=1\n\
         cpus_allowed={core}\n",
        engine = engine.display(),
        filename = fio_filename(keys),
        workload = load.workload.word(),
        depth = load.queue_depth,
        // A rate is kept by waiting after each I/O.
        batch = match load.rate {
            Some(_) => 1,
            None => (load.queue_depth / 2).max(1),
        },
        rate = match load.rate {
            Some(rate) => format!("rate_iops={rate}\n"),
            None => String::new(),
        },
        bytes = load.bytes,
        core = settings.cores.load,
    );
    fs::write(&job, text).with_context(|| job.display().to_string())?;
    let output = format!("--output={}", result.display());
    let arguments = ["--output-format=json", &output, &job.display().to_string()];
    Process::start(
        "fio",
        &settings.log_dir(),
        &settings.cores.load,
        "fio".as_ref(),
        &arguments,
    )?
    .finish(timeout)
    .await?;
    fio_result(&fs::read_to_string(&result)?, load.workload)
}

#[derive(Deserialize)]
struct FioOutput {
    jobs: Vec<FioJob>,
}

#[derive(Deserialize)]
struct FioJob {
    error: i32,
    read: FioDirection,
    write: FioDirection,
}

#[derive(Deserialize)]
struct FioDirection {
    iops: f64,
    clat_ns: FioLatency,
}

#[derive(Deserialize)]
struct FioLatency {
    mean: f64,
    max: f64,
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

fn fio_result(text: &str, workload: Workload) -> Result<Measured> {
    let output: FioOutput = serde_json::from_str(text).context("fio's output")?;
    let [job] = &output.jobs[..] else {
        bail!("fio reports {} jobs, not 1", output.jobs.len());
    };
    if job.error != 0 {
        bail!("fio reports error {}", job.error);
    }
    // For mixed I/O, the latencies are those of the reads.
    let direction = match workload {
        Workload::RandRead | Workload::Read | Workload::RandRw => &job.read,
        Workload::RandWrite | Workload::Write => &job.write,
    };
    let percentile = |key: &str| direction.clat_ns.percentile.get(key).map(|ns| ns / 1000.0);
    Ok(Measured {
        iops: job.read.iops + job.write.iops,
        mean_us: direction.clat_ns.mean / 1000.0,
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        p999_us: percentile("99.900000"),
        max_us: Some(direction.clat_ns.max / 1000.0),
    })
}
