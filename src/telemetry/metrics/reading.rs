//! What one scrape tells: read once, in one pass over SPDK, and shared by all who ask meanwhile.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use spdk::bdev::{Counters, Most};
use spdk::{ControlStats, IobufWaits, MailboxStats, Reactor};

use super::hugepages::{self, Pool};
use super::process::{self, Process};
use crate::services::Services;
use crate::telemetry::{Telemetry, objects};

/// Volumes that have metrics of their own. More would be too much for those who store them.
const VOLUMES: Most = Most {
    counters: 10_240,
    latencies: 1_024,
};

/// How long SPDK may take. Beyond that the rest is told without it.
const LIMIT: Duration = Duration::from_secs(2);

/// A subsystem's figures.
#[derive(Debug)]
pub(super) struct Subsystem {
    pub(super) name: String,
    pub(super) nqn: String,
    pub(super) namespaces: u64,
    pub(super) hosts: u64,
}

/// Everything that one scrape tells.
#[derive(Debug)]
pub(super) struct Reading {
    /// Each with the name that the API has for it.
    pub(super) volumes: Vec<(String, Counters)>,
    pub(super) volumes_left_out: u64,
    pub(super) subsystems: Vec<Subsystem>,
    pub(super) reactors: Vec<Reactor>,
    pub(super) stalls: HashMap<u32, u64>,
    pub(super) control: ControlStats,
    pub(super) mailbox: MailboxStats,
    pub(super) waits: IobufWaits,
    pub(super) objects: Vec<objects::Count>,
    pub(super) connections: u64,
    pub(super) audit_lost: u64,
    pub(super) hugepages: Vec<Pool>,
    pub(super) process: Process,
    /// Whether SPDK told its part.
    pub(super) complete: bool,
    pub(super) took: Duration,
}

/// Reads them.
pub(super) struct Reader {
    services: Services,
    telemetry: Arc<Telemetry>,
    /// SPDK still works on a pass: it gets no second one.
    passing: Arc<AtomicBool>,
}

/// What SPDK tells.
#[derive(Default)]
struct Pass {
    volumes: Vec<Counters>,
    left_out: u64,
    hosts: spdk::nvmf::Connections,
    waits: IobufWaits,
}

impl Reader {
    pub(super) fn new(services: Services, telemetry: &Arc<Telemetry>) -> Self {
        Self {
            services,
            telemetry: Arc::clone(telemetry),
            passing: Arc::default(),
        }
    }

    pub(super) async fn read(&self) -> Reading {
        let begun = Instant::now();
        let pass = tokio::time::timeout(LIMIT, self.pass()).await;
        let pass = pass.ok().flatten();
        let complete = pass.is_some();
        let pass = pass.unwrap_or_default();
        let started = self.telemetry.metrics.started;
        let files = tokio::task::spawn_blocking(move || {
            let pools = Path::new("/sys/kernel/mm/hugepages");
            (process::read(started), hugepages::read(pools))
        });
        let (process, hugepages) = files.await.unwrap_or_default();
        let spdk = self.services.spdk();
        let reactors = spdk.reactors();
        let metrics = &self.telemetry.metrics;
        let stalls = reactors.iter().map(|r| (r.core, metrics.stalls(r.core)));
        let hosts = pass.hosts.counts();
        let subsystems = objects::subsystems(&self.services).into_iter();
        let subsystems = subsystems.map(|(name, nqn, namespaces)| Subsystem {
            hosts: hosts.get(&nqn).copied().unwrap_or_default(),
            name,
            nqn,
            namespaces,
        });
        let volumes = pass.volumes.into_iter().map(|counters| {
            let name = objects::volume_of(&self.services, &counters.name);
            (name, counters)
        });
        Reading {
            volumes: volumes.collect(),
            volumes_left_out: pass.left_out,
            subsystems: subsystems.collect(),
            stalls: stalls.collect(),
            reactors,
            control: spdk.control_stats(),
            mailbox: spdk.mailbox_stats(),
            waits: pass.waits,
            objects: objects::counts(&self.services),
            connections: metrics.connections.load(Ordering::Relaxed),
            audit_lost: self.telemetry.audit_lost(),
            hugepages,
            process,
            complete,
            took: begun.elapsed(),
        }
    }

    /// `None` if SPDK does not tell.
    async fn pass(&self) -> Option<Pass> {
        if self.passing.swap(true, Ordering::AcqRel) {
            return None;
        }
        let passing = Passing(Arc::clone(&self.passing));
        let pass = self.services.spdk().call(async move |spdk| {
            let _passing = passing;
            let (volumes, left_out) = spdk::bdev::survey(spdk, VOLUMES).await?;
            Ok::<_, spdk::Error>(Pass {
                volumes,
                left_out,
                hosts: spdk::nvmf::connections(spdk).await?,
                waits: IobufWaits::read(spdk).await?,
            })
        });
        match pass.await {
            Ok(Ok(pass)) => Some(pass),
            Ok(Err(error)) => {
                tracing::debug!(%error, "metrics: SPDK's counters cannot be read");
                None
            }
            Err(_) => None,
        }
    }
}

/// A pass over SPDK, until it ends or is dropped without having begun.
struct Passing(Arc<AtomicBool>);

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
