//! Metrics at `GET /metrics`, in OpenMetrics and Prometheus format.
//!
//! ```text
//! scrape ─┬─ one at a time ─► Reading (SPDK in one pass, files of /proc) ─┬─► OpenMetrics
//!         └─ others that wait share it                                    └─► Prometheus
//! ```

mod doors;
mod encode;
mod hugepages;
mod latency;
mod out;
mod process;
mod reading;
mod scrape;
mod text;
mod value;
mod volumes;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::server::{CRL, Tls};

pub use scrape::Scrapes;

/// Bounds of the call durations, in seconds.
const BUCKETS: [f64; 11] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0,
];

/// Labels of a call: bounded by the API's methods, whatever clients send.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rpc {
    method: &'static str,
    code: &'static str,
}

/// Label of a file of certificates or lists.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Certificates {
    file: &'static str,
}

/// Live metrics. All others are read at each scrape.
pub struct Metrics {
    rpcs: Family<Rpc, Histogram, fn() -> Histogram>,
    connections: AtomicU64,
    stalls: Mutex<BTreeMap<u32, u64>>,
    started: SystemTime,
    tls: OnceLock<Tls>,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        Self {
            rpcs: Family::new_with_constructor(histogram),
            connections: AtomicU64::new(0),
            stalls: Mutex::default(),
            started: SystemTime::now(),
            tls: OnceLock::new(),
        }
    }
}

impl Metrics {
    /// Counts a call.
    pub(super) fn rpc(&self, method: &'static str, code: &'static str, took: Duration) {
        let rpc = Rpc { method, code };
        self.rpcs.get_or_create(&rpc).observe(took.as_secs_f64());
    }

    /// Exports the expiry of the TLS certificates.
    pub fn show_certificates(&self, tls: &Tls) {
        let _ = self.tls.set(tls.clone());
    }

    fn certificates(&self) -> Family<Certificates, Gauge> {
        let family = Family::<Certificates, Gauge>::default();
        let all = self.tls.get().map(Tls::expiries).unwrap_or_default();
        for expiry in all.iter().filter(|expiry| expiry.file != CRL) {
            let file = Certificates { file: expiry.file };
            family.get_or_create(&file).set(expiry.not_after);
        }
        family
    }

    /// The first of the next updates of the lists of revoked certificates. No series without such a list.
    fn revocation_lists(&self) -> Family<Certificates, Gauge> {
        let family = Family::<Certificates, Gauge>::default();
        let all = self.tls.get().map(Tls::expiries).unwrap_or_default();
        let lists = all.iter().filter(|expiry| expiry.file == CRL);
        if let Some(next) = lists.map(|expiry| expiry.not_after).min() {
            family.get_or_create(&Certificates { file: CRL }).set(next);
        }
        family
    }

    /// Counts a client connection until the guard is dropped.
    pub fn connection(self: &Arc<Self>) -> Connection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connection(Arc::clone(self))
    }

    /// Counts a stall of a reactor.
    pub(super) fn stall(&self, core: u32) {
        *self.stalls.lock().entry(core).or_default() += 1;
    }

    fn stalls(&self, core: u32) -> u64 {
        self.stalls.lock().get(&core).copied().unwrap_or_default()
    }
}

/// An open connection.
pub struct Connection(Arc<Metrics>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
