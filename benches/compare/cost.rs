//! What configuration costs the reactor: the calls of [`crate::client`] at a fixed rate, and the
//! reactor's own account of its time.
//!
//! Both programs count on the reactor itself, because on a small machine the initiator shares its
//! core with clients and control threads, and I/O rates would show that instead. opi-spdk times each
//! control step that its reactor takes. spdk_tgt counts the time in which any poller had work; what
//! it counts without calls (its JSON-RPC poller always reports work) is measured first and
//! subtracted. Its longest hold is not counted anywhere; but whatever has come in since the last
//! poll is answered in one, so the mean time of a poll is a lower bound of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::client::{Address, Client, Verb};
use crate::control::Load;
use crate::initiator::Background;
use crate::opi::ControlCost;
use crate::scenario::{Export, Volume};
use crate::settings::Settings;
use crate::target::{Side, Target, Turn};

/// Calls per second, of all clients together.
pub const RATE: u32 = 1000;

/// Connections: on one, spdk_tgt answers some 200 calls a second.
const CLIENTS: u32 = 16;

/// How often spdk_tgt's JSON-RPC poller runs.
const RPC_POLL: Duration = Duration::from_millis(4);

/// One run of calls at the fixed rate.
#[derive(Debug, Clone, Serialize)]
pub struct Cost {
    pub side: Side,
    pub load: Load,
    pub calls: u64,
    pub calls_per_second: f64,
    /// Reactor time for a call, microseconds.
    pub call_us: f64,
    /// Fraction of a reactor that 1,000 calls a second take.
    pub share: f64,
    /// The longest that the reactor was held at once, microseconds.
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

pub async fn run(settings: &Settings) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for round in 0..settings.line.rounds {
        for Turn { side, .. } in settings.turns(round) {
            eprintln!(
                "reactor cost: round {} of {}, {side}",
                round + 1,
                settings.line.rounds
            );
            match side {
                Side::Opi => {
                    costs.push(
                        of_opi(settings, Load::Idle)
                            .await
                            .context("opi-spdk, idle")?,
                    );
                    costs.push(
                        of_opi(settings, Load::Saturated)
                            .await
                            .context("opi-spdk, saturated")?,
                    );
                }
                Side::SpdkTgt => costs.push(of_spdk_tgt(settings).await.context("spdk_tgt")?),
            }
        }
    }
    Ok(costs)
}

/// The program counts from its start to its end, so it runs for this alone. The export is of a null
/// volume: making a malloc volume zeroes memory, and is no measure of a control step.
async fn of_opi(settings: &Settings, load: Load) -> Result<Cost> {
    let mut target = Target::start(settings, Side::Opi).await?;
    let background = match load {
        Load::Idle => None,
        Load::Saturated => {
            let attach = target
                .export(settings, Volume::Null, Export::NvmeTcp)
                .await?;
            Some(Background::start(settings, &attach).await?)
        }
    };
    let address = target.address();
    let before = target.preemptions(settings)?;
    let (calls, took) = calls(&address, window(settings)).await?;
    let preemptions = target.preemptions(settings)? - before;
    if let Some(background) = background {
        background.stop().await?;
    }
    let Target::Opi(opi) = target else {
        unreachable!("this side was started");
    };
    let account = opi.stop().await?;
    let account = account.context("opi-spdk did not log what configuration cost the reactor")?;
    let call_us = account.busy_us as f64 / calls as f64;
    Ok(Cost {
        side: Side::Opi,
        load,
        calls,
        calls_per_second: calls as f64 / took.as_secs_f64(),
        call_us,
        share: share(call_us),
        longest: Longest::Counted(account.longest_us as f64),
        preemptions,
        account: Some(account),
    })
}

async fn of_spdk_tgt(settings: &Settings) -> Result<Cost> {
    let mut target = Target::start(settings, Side::SpdkTgt).await?;
    let address = target.address();
    let before = target.preemptions(settings)?;
    let Target::SpdkTgt(tgt) = &mut target else {
        unreachable!("this side was started");
    };
    let begun = tgt.reactor_time().await?;
    tokio::time::sleep(window(settings)).await;
    let idle = tgt.reactor_time().await?;
    let (calls, took) = calls(&address, window(settings)).await?;
    let loaded = tgt.reactor_time().await?.since(idle);
    let idle = idle.since(begun);
    let preemptions = target.preemptions(settings)? - before;
    target.stop().await?;
    let busy = loaded.busy_share() - idle.busy_share();
    let calls_per_second = calls as f64 / took.as_secs_f64();
    let call_us = busy / calls_per_second * 1e6;
    let calls_per_poll = calls_per_second * RPC_POLL.as_secs_f64();
    Ok(Cost {
        side: Side::SpdkTgt,
        load: Load::Idle,
        calls,
        calls_per_second,
        call_us,
        share: share(call_us),
        longest: Longest::AtLeast(call_us * calls_per_poll.max(1.0)),
        preemptions,
        account: None,
    })
}

fn share(call_us: f64) -> f64 {
    call_us * f64::from(RATE) / 1e6
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
