//! Cost of scrapes and of latencies per volume for I/O: one target during a continuous run of I/O, with alternating
//! slices with and without, so that other activity of the machine affects both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper::Method;
use serde::Serialize;
use serde_json::{Value, json};

use crate::http::Http;
use crate::initiator::Background;
use crate::jsonrpc::JsonRpc;
use crate::opi::{Counters, Opi, Start};
use crate::reactor::ReactorTime;
use crate::scenario::{Export, Volume};
use crate::settings::Settings;
use crate::stats::Rounds;
use rustix::process::Signal;

/// Pairs of slices per round.
const PAIRS: u32 = 20;

/// Duration of a slice, which includes one scrape.
const SLICE: Duration = Duration::from_secs(1);

/// A switchable feature: ratios of with to without, per pair.
#[derive(Debug, Clone, Serialize)]
pub struct Slices {
    pub what: &'static str,
    pub iops: Rounds,
    /// Reactor time per I/O.
    pub reactor: Rounds,
    /// Standard error of the mean of `reactor`.
    pub reactor_error: f64,
}

/// The switched feature.
#[derive(Clone, Copy)]
enum Switch {
    Scrape,
    Latencies,
}

pub async fn run(settings: &Settings) -> Result<Vec<Slices>> {
    let start = Start::new(settings, Counters::Wanted);
    let mut opi = Opi::start_so(settings, &start).await?;
    let attach = opi
        .export(settings, Volume::Malloc, Export::NvmeTcp)
        .await?;
    let socket = opi.rpc_socket.as_deref().context("no JSON-RPC")?;
    let mut watched = Watched {
        rpc: JsonRpc::connect(socket).await?,
        http_port: opi.http_port,
    };
    let load = Background::start(settings, &attach).await?;
    let mut all = Vec::new();
    // Latencies first, since a scrape leaves them enabled.
    for (what, switch) in [
        ("latencies by volume", Switch::Latencies),
        ("a scrape each second", Switch::Scrape),
    ] {
        let (mut iops, mut reactor) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS * settings.line.rounds {
            let mut slices = [(0.0, 0.0); 2];
            for on in [pair % 2 == 0, pair % 2 == 1] {
                slices[usize::from(on)] = watched.slice(switch, on).await?;
            }
            let [off, on] = slices;
            iops.push(on.0 / off.0);
            reactor.push(on.1 / off.1);
        }
        let reactor = Rounds::of(reactor).context("no pairs")?;
        all.push(Slices {
            what,
            iops: Rounds::of(iops).context("no pairs")?,
            reactor_error: error_of_mean(&reactor.rounds),
            reactor,
        });
    }
    load.stop().await?;
    opi.process.stop(Signal::TERM).await?;
    Ok(all)
}

struct Watched {
    rpc: JsonRpc,
    http_port: u16,
}

impl Watched {
    /// I/O per second, and reactor time per I/O in nanoseconds.
    async fn slice(&mut self, switch: Switch, on: bool) -> Result<(f64, f64)> {
        if let Switch::Latencies = switch {
            for bdev in self.bdevs().await? {
                let parameters = json!({ "name": bdev["name"], "enable": on });
                self.rpc.call("bdev_enable_histogram", parameters).await?;
            }
        }
        let (begun, operations) = (Instant::now(), self.operations().await?);
        let before = ReactorTime::read(&mut self.rpc).await?;
        if matches!(switch, Switch::Scrape) && on {
            // A new connection, since the target closes idle ones.
            let mut http = Http::connect(self.http_port).await?;
            http.body(Method::GET, "/metrics", None).await?;
        }
        tokio::time::sleep(SLICE.saturating_sub(begun.elapsed())).await;
        let busy = ReactorTime::read(&mut self.rpc)
            .await?
            .busy_ns_since(before);
        let operations = self.operations().await? - operations;
        Ok((
            operations / begun.elapsed().as_secs_f64(),
            busy / operations,
        ))
    }

    async fn bdevs(&mut self) -> Result<Vec<Value>> {
        let mut answer = self.rpc.call("bdev_get_iostat", Value::Null).await?;
        let bdevs = answer["bdevs"].take();
        Ok(serde_json::from_value(bdevs)?)
    }

    /// Reads completed by all volumes.
    async fn operations(&mut self) -> Result<f64> {
        let bdevs = self.bdevs().await?;
        Ok(bdevs
            .iter()
            .filter_map(|of| of["num_read_ops"].as_f64())
            .sum())
    }
}

fn error_of_mean(values: &[f64]) -> f64 {
    let number = values.len() as f64;
    let mean = values.iter().sum::<f64>() / number;
    let squares = values.iter().map(|value| (value - mean).powi(2));
    (squares.sum::<f64>() / (number - 1.0)).sqrt() / number.sqrt()
}
