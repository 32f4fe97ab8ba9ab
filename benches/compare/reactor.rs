//! SPDK's own account of a reactor's time, by its JSON-RPC.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::jsonrpc::JsonRpc;

/// What a program's one reactor has done so far, in ticks: busy is the time in which any poller or
/// message had work.
#[derive(Debug, Clone, Copy)]
pub struct ReactorTime {
    busy: u64,
    idle: u64,
    /// Ticks in a second.
    rate: u64,
}

impl ReactorTime {
    pub async fn read(rpc: &mut JsonRpc) -> Result<Self> {
        let answer = rpc.call("framework_get_reactors", Value::Null).await?;
        let reactor = &answer["reactors"][0];
        let ticks = |key: &str| {
            let value = reactor[key].as_u64();
            value.with_context(|| format!("framework_get_reactors: no {key} in {answer}"))
        };
        let rate = answer["tick_rate"].as_u64();
        Ok(Self {
            busy: ticks("busy")?,
            idle: ticks("idle")?,
            rate: rate.context("framework_get_reactors: no tick_rate")?,
        })
    }

    /// The time since `earlier` in which it was busy, nanoseconds.
    pub fn busy_ns_since(self, earlier: Self) -> f64 {
        (self.busy - earlier.busy) as f64 / self.rate as f64 * 1e9
    }

    /// The fraction of the time since `earlier` in which it was busy.
    pub fn busy_since(self, earlier: Self) -> f64 {
        let (busy, idle) = (self.busy - earlier.busy, self.idle - earlier.idle);
        busy as f64 / (busy + idle) as f64
    }
}
