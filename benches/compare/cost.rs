//! What configuration costs the reactor: the calls of [`crate::client`] at a fixed rate, and two
//! accounts of the reactor's time, both taken on the reactor itself, because on a small machine the
//! initiator shares its core with clients and control threads, and I/O rates would show that instead.
//!
//! SPDK's account is the same for both targets: the time in which any poller or message had work,
//! read over JSON-RPC (which opi-spdk opens for this alone), on an idle data path. What it counts
//! without calls is measured first and subtracted. opi-spdk's own account times each control step,
//! also while I/O runs, and knows the longest. That of spdk_tgt is not counted anywhere; but its
//! JSON-RPC poller answers all that has come in since its last turn in one, so the mean time of a
//! turn is a lower bound of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::client::{Address, Client, Verb};
use crate::control::Load;
use crate::initiator::Background;
use crate::jsonrpc::JsonRpc;
use crate::opi::{ControlCost, Counters, Opi};
use crate::reactor::ReactorTime;
use crate::scenario::{Export, Volume};
use crate::settings::Settings;
use crate::target::{Side, Target, Turn};

/// Calls per second, of all clients together.
pub const RATE: u32 = 1000;

/// Connections: on one, spdk_tgt answers some 125 calls a second.
const CLIENTS: u32 = 16;

/// How often spdk_tgt's JSON-RPC poller runs.
const RPC_POLL: Duration = Duration::from_millis(4);

/// One run of calls at the fixed rate. Times are in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Cost {
    pub side: Side,
    pub load: Load,
    pub calls: u64,
    pub calls_per_second: f64,
    /// Reactor time for a call by SPDK's account, where the data path is idle.
    pub call_us: Option<f64>,
    /// The same by opi-spdk's own account.
    pub steps_us: Option<f64>,
    /// The longest that the reactor was held at once.
    pub longest: Longest,
    /// How often the reactor lost its core meanwhile: the time away counts into a step.
    pub preemptions: u64,
    /// opi-spdk's own account.
    pub account: Option<ControlCost>,
}

/// A longest hold, microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Longest {
    Counted(f64),
    AtLeast(f64),
}

impl Cost {
    /// Fraction of a reactor that 1,000 calls a second take, by the account that counts more.
    pub fn share(&self) -> f64 {
        let call_us = self
            .call_us
            .unwrap_or_default()
            .max(self.steps_us.unwrap_or_default());
        call_us * f64::from(RATE) / 1e6
    }

    pub fn longest_us(&self) -> f64 {
        match self.longest {
            Longest::Counted(us) | Longest::AtLeast(us) => us,
        }
    }
}

pub async fn run(settings: &Settings) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for round in 0..settings.line.rounds {
        for turn in settings.turns(round) {
            let side = turn.side;
            eprintln!(
                "reactor cost: round {} of {}, {side}",
                round + 1,
                settings.line.rounds
            );
            let idle = idle(settings, turn).await;
            costs.push(idle.with_context(|| format!("{side}, idle data path"))?);
            if side == Side::Opi {
                let saturated = saturated(settings).await;
                costs.push(saturated.context("opi-spdk, saturated data path")?);
            }
        }
    }
    Ok(costs)
}

/// Both accounts, without I/O. The targets run for this alone: their counts begin with them.
async fn idle(settings: &Settings, turn: Turn) -> Result<Cost> {
    let target = Target::start(settings, turn, Counters::Wanted).await?;
    let mut rpc = JsonRpc::connect(target.rpc_socket()?).await?;
    let preemptions = target.preemptions(settings)?;
    let begun = ReactorTime::read(&mut rpc).await?;
    tokio::time::sleep(window(settings)).await;
    let idle = ReactorTime::read(&mut rpc).await?;
    let (calls, took) = calls(&target.address(), window(settings)).await?;
    let loaded = ReactorTime::read(&mut rpc).await?;
    let preemptions = target.preemptions(settings)? - preemptions;
    let account = match target {
        Target::Opi(opi) => Some(opi.stop().await?),
        Target::SpdkTgt(tgt) => {
            tgt.stop().await?;
            None
        }
    };
    let calls_per_second = calls as f64 / took.as_secs_f64();
    let busy = loaded.busy_since(idle) - idle.busy_since(begun);
    let call_us = busy / calls_per_second * 1e6;
    let calls_per_poll = (calls_per_second * RPC_POLL.as_secs_f64()).max(1.0);
    Ok(Cost {
        side: turn.side,
        load: Load::Idle,
        calls,
        calls_per_second,
        call_us: Some(call_us),
        steps_us: account.map(|account| account.busy_us as f64 / calls as f64),
        longest: match account {
            Some(account) => Longest::Counted(account.longest_us as f64),
            None => Longest::AtLeast(call_us * calls_per_poll),
        },
        preemptions,
        account,
    })
}

/// opi-spdk's own account while I/O runs. The export is of a null volume: making a malloc volume
/// zeroes memory, and is no measure of a control step.
async fn saturated(settings: &Settings) -> Result<Cost> {
    let mut opi = Opi::start(settings, Counters::Unwanted).await?;
    let attach = opi.export(settings, Volume::Null, Export::NvmeTcp).await?;
    let background = Background::start(settings, &attach).await?;
    let reactor = settings.reactor();
    let preemptions = opi.process.preemptions(&reactor)?;
    let (calls, took) = calls(&Address::Grpc(opi.port), window(settings)).await?;
    let preemptions = opi.process.preemptions(&reactor)? - preemptions;
    background.stop().await?;
    let account = opi.stop().await?;
    Ok(Cost {
        side: Side::Opi,
        load: Load::Saturated,
        calls,
        calls_per_second: calls as f64 / took.as_secs_f64(),
        call_us: None,
        steps_us: Some(account.busy_us as f64 / calls as f64),
        longest: Longest::Counted(account.longest_us as f64),
        preemptions,
        account: Some(account),
    })
}

fn window(settings: &Settings) -> Duration {
    Duration::from_secs(u64::from(settings.line.seconds.max(2)))
}

/// Creates, gets, reads and deletes volumes at [`RATE`] calls a second in all, and gives how many
/// calls were answered in what time.
async fn calls(address: &Address, window: Duration) -> Result<(u64, Duration)> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(address).await?);
    }
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        running.spawn(at_rate(client, format!("c{number}"), begun + window));
    }
    let mut calls = 0;
    while let Some(done) = running.join_next().await {
        calls += done??;
    }
    Ok((calls, begun.elapsed()))
}

/// One client's share of the rate, in whole lives of volumes.
async fn at_rate(mut client: Client, prefix: String, until: Instant) -> Result<u64> {
    let mut ticks = interval(Duration::from_secs(1) * CLIENTS / RATE);
    // A client that was late catches up: the rate is what matters.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut calls = 0;
    while Instant::now() < until {
        let id = format!("{prefix}-{calls}");
        for verb in Verb::ALL {
            ticks.tick().await;
            client
                .call(verb, &id)
                .await
                .with_context(|| format!("{verb:?} {id}"))?;
            calls += 1;
        }
    }
    Ok(calls)
}
