//! SPDK's account of a reactor's time, over JSON-RPC.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::jsonrpc::JsonRpc;

/// Ticks of a program's reactors together; busy means that a poller or message had work.
#[derive(Debug, Clone, Copy)]
pub struct ReactorTime {
    busy: u64,
    idle: u64,
    /// Ticks per second.
    rate: u64,
}

impl ReactorTime {
    pub async fn read(rpc: &mut JsonRpc) -> Result<Self> {
        let answer = rpc.call("framework_get_reactors", Value::Null).await?;
        let reactors = answer["reactors"].as_array();
        let reactors = reactors.context("framework_get_reactors: no reactors")?;
        let ticks = |key: &str| {
            let sum: Option<u64> = reactors.iter().map(|one| one[key].as_u64()).sum();
            sum.with_context(|| format!("framework_get_reactors: no {key} in {answer}"))
        };
        let rate = answer["tick_rate"].as_u64();
        Ok(Self {
            busy: ticks("busy")?,
            idle: ticks("idle")?,
            rate: rate.context("framework_get_reactors: no tick_rate")?,
        })
    }

    /// Busy time since `earlier`, in nanoseconds.
    pub fn busy_ns_since(self, earlier: Self) -> f64 {
        (self.busy - earlier.busy) as f64 / self.rate as f64 * 1e9
    }

    /// Busy fraction of the time since `earlier`.
    pub fn busy_since(self, earlier: Self) -> f64 {
        let (busy, idle) = (self.busy - earlier.busy, self.idle - earlier.idle);
        busy as f64 / (busy + idle) as f64
    }
}
