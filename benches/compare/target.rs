//! The two sides of the comparison behind one interface.

use std::fmt;
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde::Serialize;
use spdk::cores::CoreSet;

use crate::attach::Attach;
use crate::client::Address;
use crate::opi::{Counters, Opi, Start};
use crate::process::Process;
use crate::scenario::{Export, Volume};
use crate::settings::Settings;
use crate::spdk_tgt::SpdkTgt;

/// A side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Side {
    #[serde(rename = "opi-spdk")]
    Opi,
    #[serde(rename = "spdk_tgt")]
    SpdkTgt,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opi => "opi-spdk",
            Self::SpdkTgt => "spdk_tgt",
        })
    }
}

/// A side's turn in a round.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Column in the comparison: 0 is ours, 1 is theirs.
    pub column: usize,
    pub side: Side,
    /// Prefix of spdk_tgt's files.
    pub name: &'static str,
}

/// A target. Only one runs at a time, since a reactor uses its whole core: the others are halted or not started.
pub enum Target {
    Opi(Opi),
    SpdkTgt(SpdkTgt),
}

impl Target {
    /// Starts a target with one reactor.
    pub async fn start(settings: &Settings, turn: Turn, counters: Counters) -> Result<Self> {
        Self::start_on(settings, turn, counters, &settings.cores.target).await
    }

    /// Starts a target with reactors on these cores.
    pub async fn start_on(
        settings: &Settings,
        turn: Turn,
        counters: Counters,
        cores: &CoreSet,
    ) -> Result<Self> {
        Ok(match turn.side {
            Side::Opi => {
                let cores = cores.clone();
                let start = Start {
                    cores,
                    ..Start::new(settings, counters)
                };
                Self::Opi(Opi::start_so(settings, &start).await?)
            }
            Side::SpdkTgt => Self::SpdkTgt(SpdkTgt::start_on(settings, turn.name, cores).await?),
        })
    }

    /// Halts the process (SIGSTOP).
    pub fn halt(&self) -> Result<()> {
        self.process().signal(Signal::STOP)
    }

    /// Resumes the process (SIGCONT).
    pub fn wake(&self) -> Result<()> {
        self.process().signal(Signal::CONT)
    }

    /// Creates a volume and exports it to initiators.
    pub async fn export(
        &mut self,
        settings: &Settings,
        volume: Volume,
        export: Export,
    ) -> Result<Attach> {
        match self {
            Self::Opi(opi) => opi.export(settings, volume, export).await,
            Self::SpdkTgt(tgt) => tgt.export(settings, volume, export).await,
        }
    }

    /// Adds a small volume to the subsystem of [`Self::export`].
    pub async fn add_small_namespace(&mut self, id: &str) -> Result<()> {
        match self {
            Self::Opi(opi) => opi.add_small_namespace(id).await,
            Self::SpdkTgt(tgt) => tgt.add_small_namespace(id).await,
        }
    }

    /// Address for configuration calls.
    pub fn address(&self) -> Address {
        match self {
            Self::Opi(opi) => Address::Grpc(opi.port),
            Self::SpdkTgt(tgt) => Address::JsonRpc(tgt.socket.clone()),
        }
    }

    /// Socket of its SPDK's JSON-RPC.
    pub fn rpc_socket(&self) -> Result<&Path> {
        match self {
            Self::Opi(opi) => opi.rpc_socket.as_deref(),
            Self::SpdkTgt(tgt) => Some(tgt.socket.as_path()),
        }
        .context("its JSON-RPC is not open")
    }

    /// Preemptions of its reactor: on an idle machine, hardly any.
    pub fn preemptions(&self, settings: &Settings) -> Result<u64> {
        self.process().preemptions(&settings.reactor())
    }

    pub async fn stop(self) -> Result<()> {
        match self {
            Self::Opi(opi) => opi.stop().await.map(drop),
            Self::SpdkTgt(tgt) => tgt.stop().await,
        }
    }

    fn process(&self) -> &Process {
        match self {
            Self::Opi(opi) => &opi.process,
            Self::SpdkTgt(tgt) => &tgt.process,
        }
    }
}

/// A port on which nothing listens at the moment.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
