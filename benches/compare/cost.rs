//! Cost of configuration for the reactor: the calls of [`crate::client`] at a fixed rate, and two accounts of the
//! reactor's time, taken on the reactor itself. I/O rates would not do: on a small machine the initiator shares its
//! core with clients and control threads, which would dominate them.
//!
//! SPDK's account applies to both targets: the time in which any poller or message had work, read over JSON-RPC
//! (enabled in opi-spdk only for this), with an idle data path. The baseline without calls is measured first and
//! subtracted. opi-spdk's own account times each control step, also during I/O, and records the longest. spdk_tgt has
//! no such account; but its JSON-RPC poller answers everything that has arrived since its last turn in one turn, so
//! the mean time of a turn is a lower bound of the longest.

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

/// Calls per second, over all clients.
pub const RATE: u32 = 1000;

/// Connections. On a single one, spdk_tgt answers about 125 calls per second.
const CLIENTS: u32 = 16;

/// Period of spdk_tgt's JSON-RPC poller.
const RPC_POLL: Duration = Duration::from_millis(4);

/// One run of calls at the fixed rate. Times are in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Cost {
    pub side: Side,
    pub load: Load,
    pub calls: u64,
    pub calls_per_second: f64,
    /// Reactor time per call by SPDK's account, with an idle data path.
    pub call_us: Option<f64>,
    /// The same by opi-spdk's account.
    pub steps_us: Option<f64>,
    /// The longest time that the reactor was held in one step.
    pub longest: Longest,
    /// Preemptions of the reactor during the run: time off the core counts into a step.
    pub preemptions: u64,
    /// opi-spdk's account.
    pub account: Option<ControlCost>,
}

/// The longest hold of the reactor, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Longest {
    Counted(f64),
    AtLeast(f64),
}

impl Cost {
    /// Fraction of a reactor used by 1,000 calls per second, by the larger of the two accounts.
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

/// Both accounts, without I/O. The targets are started for this alone, so their counters start at zero.
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

/// opi-spdk's account during I/O. A null volume is exported: creating a malloc volume zeroes memory, which would
/// distort the step times.
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

/// Creates, gets, reads and deletes volumes at [`RATE`] calls per second in total. Returns the number of calls and the
/// time taken.
pub async fn calls(address: &Address, window: Duration) -> Result<(u64, Duration)> {
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

/// One client's share of the rate, in full lifetimes of volumes.
async fn at_rate(mut client: Client, prefix: String, until: Instant) -> Result<u64> {
    let mut ticks = interval(Duration::from_secs(1) * CLIENTS / RATE);
    // A late client catches up, to keep the rate.
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
