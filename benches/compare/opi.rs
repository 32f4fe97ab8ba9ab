//! opi-spdk as a subprocess, configured over gRPC, and over HTTP where that takes fewer words.

mod setup;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use opi_spdk::api::storage::{
    ListNullVolumesRequest, null_volume_service_client::NullVolumeServiceClient,
};
use rustix::process::Signal;
use serde::Serialize;
use spdk::cores::CoreSet;
use tonic::transport::Channel;

use crate::process::Process;
use crate::settings::{Settings, fresh_directory};
use crate::target::free_port;

/// Timeout of a start: the kernel zeroes the hugepages.
const START: Duration = Duration::from_secs(30);

/// Memory in addition to the volume's, in MiB.
const MEMORY_MIB: u64 = 768;

/// Log line at exit with the cost of configuration.
const COST_LINE: &str = "what configuration cost the reactor";

pub struct Opi {
    pub process: Process,
    /// gRPC port.
    pub port: u16,
    /// HTTP/JSON port.
    pub http_port: u16,
    /// Socket of SPDK's JSON-RPC, if enabled.
    pub rpc_socket: Option<PathBuf>,
}

/// Cost of configuration on the app thread's reactor, by the program's own account.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ControlCost {
    /// Number of control steps.
    pub steps: u64,
    /// Total time of the steps, in microseconds.
    pub busy_us: u64,
    /// Longest step, in microseconds.
    pub longest_us: u64,
}

/// Whether SPDK's reactor counters are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counters {
    Wanted,
    Unwanted,
}

/// Parameters of a start.
#[derive(Debug, Clone)]
pub struct Start {
    /// Cores of the reactors.
    pub cores: CoreSet,
    /// Whether SPDK's counters are read.
    pub counters: Counters,
    /// SPDK's memory, in MiB.
    pub memory_mib: u64,
    /// Whether to run without hugepages.
    pub no_huge: bool,
    /// Keep the existing state instead of a new one.
    pub again: bool,
    /// Directory for state and sockets.
    pub directory: PathBuf,
    /// Additional options.
    pub options: Vec<String>,
    /// Environment variables.
    pub environment: Vec<(&'static str, String)>,
}

impl Start {
    /// The parameters for most parts.
    pub fn new(settings: &Settings, counters: Counters) -> Self {
        Self {
            cores: settings.cores.target.clone(),
            counters,
            memory_mib: MEMORY_MIB + settings.line.volume_mib,
            no_huge: settings.no_huge(),
            again: false,
            directory: settings.scratch().to_owned(),
            options: Vec::new(),
            environment: Vec::new(),
        }
    }
}

impl Opi {
    /// Starts with a new state.
    pub async fn start(settings: &Settings, counters: Counters) -> Result<Self> {
        Self::start_so(settings, &Start::new(settings, counters)).await
    }

    /// Starts, and returns once reads are answered.
    pub async fn start_so(settings: &Settings, start: &Start) -> Result<Self> {
        let (port, http) = (free_port()?, free_port()?);
        let directory = |name: &str| start.directory.join(name);
        let mut arguments = vec![
            format!("--grpc-addr=127.0.0.1:{port}"),
            format!("--http-addr=127.0.0.1:{http}"),
            format!("--cores={}", start.cores),
            format!("--mem-mib={}", start.memory_mib),
            format!("--state-dir={}", directory("state").display()),
            format!("--ctrlr-dir={}", directory("ctrlr").display()),
        ];
        arguments.extend(start.options.iter().cloned());
        if start.no_huge {
            arguments.push("--no-huge".to_owned());
        }
        let wanted = start.counters == Counters::Wanted;
        let rpc_socket = wanted.then(|| directory("opi-rpc.sock"));
        if let Some(socket) = &rpc_socket {
            arguments.push(format!("--spdk-rpc-socket={}", socket.display()));
        }
        for name in ["state", "ctrlr"] {
            if !start.again {
                fresh_directory(&directory(name))?;
            }
        }
        let mut process = Process::start_in(
            "opi-spdk",
            &settings.log_dir(),
            &settings.cores.of_target(&start.cores),
            &settings.line.program,
            &arguments,
            &start.environment,
        )?;
        process
            .poll_until("gRPC", START, async || answers(port).await)
            .await?;
        Ok(Self {
            process,
            port,
            http_port: http,
            rpc_socket,
        })
    }

    /// Stops the process and returns the cost of configuration since its start.
    pub async fn stop(self) -> Result<ControlCost> {
        let output = self.process.stop(Signal::TERM).await?;
        let cost = output.lines().find_map(cost);
        cost.context("opi-spdk did not log what configuration cost the reactor")
    }
}

/// Connects to the gRPC server on `port`.
pub async fn connect(port: u16) -> Result<Channel> {
    let endpoint = Channel::from_shared(format!("http://127.0.0.1:{port}"))?;
    Ok(endpoint.tcp_nodelay(true).connect().await?)
}

/// Checks whether the server on `port` answers calls: the port is bound before it is served.
pub async fn answers(port: u16) -> Result<()> {
    let mut client = NullVolumeServiceClient::new(connect(port).await?);
    client
        .list_null_volumes(ListNullVolumesRequest::default())
        .await?;
    Ok(())
}

/// Parses `steps=1 busy_us=2 longest_us=3` of the cost line.
fn cost(line: &str) -> Option<ControlCost> {
    let (_, values) = line.split_once(COST_LINE)?;
    let value = |key: &str| {
        let mut words = values.split_whitespace();
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
    };
    Some(ControlCost {
        steps: value("steps")?,
        busy_us: value("busy_us")?,
        longest_us: value("longest_us")?,
    })
}
