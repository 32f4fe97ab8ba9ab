//! Settings of the command line, and what follows from them and the machine.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use spdk::cores::CoreSet;
use tempfile::TempDir;

use crate::machine::Cores;
use crate::target::{Side, Turn};

/// Compares opi-spdk with SPDK's own target and with a gRPC server that does nothing.
///
/// Both targets get the same core and the same volume, and run alternately with the other one halted; clients and
/// initiators get the other cores. Run it with scripts/bench.sh, on an otherwise idle machine. It writes bench.md
/// (tables), bench.json (all rounds), bench.svg (the data path as a chart) and the programs' logs.
#[derive(Debug, Clone, Parser)]
#[command(name = "scripts/bench.sh")]
pub struct CommandLine {
    /// Rounds: in each, every point is measured on every side; the order alternates
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Length of one data-path measurement, seconds
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: u32,
    /// One round, one queue depth, one second per run: a smoke test, not for figures
    #[arg(long)]
    pub quick: bool,
    /// All sizes and patterns of I/O, and all scenarios
    #[arg(long, conflicts_with = "quick")]
    pub all: bool,
    /// Which parts to run
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::value_variants().to_vec())]
    pub parts: Vec<Part>,
    /// Which data-path scenarios to run, by name [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub scenarios: Vec<String>,
    /// Measure spdk_tgt against itself in the data path, to show the noise of this machine
    #[arg(long)]
    pub noise: bool,
    /// Size of the volume under the data path, MiB
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(16..=65536))]
    pub volume_mib: u64,
    /// Core of the target's reactor [default: the first that this process may use]
    #[arg(long, value_name = "CORE")]
    pub target_core: Option<CoreSet>,
    /// Core of the initiator [default: the next]
    #[arg(long, value_name = "CORE")]
    pub load_core: Option<CoreSet>,
    /// Cores of control threads and clients [default: the others, or the initiator's if there are none]
    #[arg(long, value_name = "LIST")]
    pub control_cores: Option<CoreSet>,
    /// Core of the second reactor in the scenario two-reactors [default: the last, if it is not the initiator's]
    #[arg(long, value_name = "CORE")]
    pub second_core: Option<CoreSet>,
    /// Run without hugepages on all sides, which excludes vfio-user, vhost-user and fio
    #[arg(long)]
    pub no_huge: bool,
    /// Directory for results and logs
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    pub output: PathBuf,
    /// Draw bench.svg of these bench.json, of runs one after the other on one machine, and measure nothing
    #[arg(long, value_delimiter = ',', value_name = "FILES")]
    pub chart: Vec<PathBuf>,
    /// The opi-spdk to measure
    #[arg(long, default_value = env!("CARGO_BIN_EXE_opi-spdk"), value_name = "FILE")]
    pub program: PathBuf,
    /// Directory of spdk_tgt, spdk_nvme_perf and the fio plugin [default: $SPDK_TOOLS]
    #[arg(long, value_name = "DIR")]
    pub tools: Option<PathBuf>,
    /// Number of volumes in the scale part; a tenth as many are exported
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1_000..=100_000))]
    pub objects: u32,
    /// Run as the gRPC server that does nothing, on this port
    #[arg(long, hide = true, value_name = "PORT")]
    pub floor: Option<u16>,
    /// Passed by cargo to benches.
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// I/O through an exported volume
    Data,
    /// Latency and rate of configuration calls
    Control,
    /// Cost of configuration calls on the reactor
    Cost,
    /// Calls, a restart and scrapes with few and with many objects
    Scale,
    /// Cost of logging, tracing, watching and scraping for I/O
    Sight,
    /// The same for a Create
    Creates,
    /// Cost of scrapes and of latencies by volume for I/O, more precisely
    Slices,
    /// Idle load while it is logged, traced, watched and scraped
    Idle,
    /// Reactors that sleep while they have no work, beside reactors that poll
    Naps,
    /// Latencies while calls, scrapes and changes of the subsystem go on
    Latency,
}

/// The command line, and what follows from it.
pub struct Settings {
    pub line: CommandLine,
    pub cores: Cores,
    tools: PathBuf,
    scratch: TempDir,
    volumes: TempDir,
    without_hugepages: Option<String>,
}

/// Prefix of spdk_tgt's files if only one runs.
pub const SPDK_TGT: &str = "spdk_tgt";

/// Hugepages for both targets and an initiator in addition to the two volumes, in MiB: spdk_tgt's iSCSI pools are
/// large.
const HUGEPAGES_MIB: u64 = 2100;

impl Settings {
    pub fn new(mut line: CommandLine) -> Result<Self> {
        if line.quick {
            line.rounds = 1;
            line.seconds = 1;
        }
        let tools = line
            .tools
            .clone()
            .or_else(|| std::env::var_os("SPDK_TOOLS").map(PathBuf::from));
        let tools =
            tools.context("SPDK_TOOLS is not set: run scripts/bench.sh, or give --tools")?;
        let cores = Cores::divide(
            line.target_core.clone(),
            line.load_core.clone(),
            line.control_cores.clone(),
            line.second_core.clone(),
        )?;
        let (free, wanted) = (
            spdk::hugepages_free_mib(),
            HUGEPAGES_MIB + 2 * line.volume_mib,
        );
        let without_hugepages = if line.no_huge {
            Some("as asked".to_owned())
        } else if free < wanted {
            Some(format!(
                "{free} MiB of hugepages are free, {wanted} are needed"
            ))
        } else {
            None
        };
        let logs = log_dir(&line.output);
        std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
        let directory = |parent: &Path| {
            let mut builder = tempfile::Builder::new();
            builder.prefix("opi-spdk-bench-").tempdir_in(parent)
        };
        Ok(Self {
            cores,
            tools,
            scratch: directory(&std::env::temp_dir())?,
            // Not in the system's directory for temporary files, which may be in memory.
            volumes: directory(&std::path::absolute(&line.output)?)?,
            without_hugepages,
            line,
        })
    }

    /// Whether all sides run without hugepages.
    pub fn no_huge(&self) -> bool {
        self.without_hugepages.is_some()
    }

    /// The reason, if all sides run without hugepages.
    pub fn without_hugepages(&self) -> Option<&str> {
        self.without_hugepages.as_deref()
    }

    pub fn tool(&self, name: &str) -> PathBuf {
        self.tools.join(name)
    }

    /// Directory for sockets and state, removed at the end. Its path is short, as sockets require.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The file with the pre-shared key, readable by its owner only, as SPDK requires.
    pub fn psk_file(&self) -> Result<PathBuf> {
        let path = self.scratch().join("psk");
        let mut options = std::fs::File::options();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(crate::scenario::PSK.as_bytes())?;
        Ok(path)
    }

    /// Creates a file for a volume under this name, with all its blocks written: the first write to a block of a file
    /// takes longer than the following.
    pub fn volume_file(&self, name: &str) -> Result<PathBuf> {
        let path = self.volumes.path().join(name);
        let mut file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
        let mebibyte = vec![0x5a; 1 << 20];
        for _ in 0..self.line.volume_mib {
            file.write_all(&mebibyte)?;
        }
        file.sync_all()?;
        Ok(path)
    }

    /// Name of the reactor's thread in SPDK.
    pub fn reactor(&self) -> String {
        format!("reactor_{}", self.cores.target)
    }

    pub fn log_dir(&self) -> PathBuf {
        log_dir(&self.line.output)
    }

    pub fn runs(&self, part: Part) -> bool {
        self.line.parts.contains(&part)
    }

    /// Whether the scenario of this name is selected, or none.
    pub fn wants(&self, scenario: &str) -> bool {
        self.line.scenarios.is_empty() || self.names(scenario)
    }

    /// Whether the scenario of this name is selected.
    pub fn names(&self, scenario: &str) -> bool {
        self.line.scenarios.iter().any(|name| name == scenario)
    }

    /// Both sides in the order of this round: A B, then B A.
    pub fn turns(&self, round: u32) -> [Turn; 2] {
        let (ours, name) = match self.line.noise {
            true => (Side::SpdkTgt, "spdk_tgt-again"),
            false => (Side::Opi, "opi-spdk"),
        };
        let turn = |column, side, name| Turn { column, side, name };
        let mut turns = [turn(0, ours, name), turn(1, Side::SpdkTgt, SPDK_TGT)];
        if round % 2 == 1 {
            turns.reverse();
        }
        turns
    }

    pub fn volume_blocks(&self) -> u64 {
        self.line.volume_mib * 1024 * 1024 / crate::scenario::BLOCK_SIZE
    }
}

fn log_dir(output: &Path) -> PathBuf {
    output.join("log")
}

/// Creates an empty directory, replacing an existing one.
pub fn fresh_directory(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    std::fs::create_dir_all(path).with_context(|| path.display().to_string())
}
