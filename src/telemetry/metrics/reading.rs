//! The data of one scrape, read in one pass over SPDK and shared by concurrent scrapes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use spdk::bdev::nvme::{PathIo, PathState};
use spdk::bdev::{Counters, Most, Stats};
use spdk::nvmf::Doors;
use spdk::{ControlStats, IobufPool, MailboxStats, Memory, Polls, Reactor};

use super::hugepages::{self, Pool};
use super::process::{self, Process};
use crate::backend::path_key;
use crate::services::Services;
use crate::state;
use crate::telemetry::{Telemetry, objects};

/// Volumes with metrics of their own: a bound on cardinality.
const VOLUMES: Most = Most {
    counters: 10_240,
    latencies: 1_024,
};

/// Timeout of the pass over SPDK, after which the reading lacks its part.
const LIMIT: Duration = Duration::from_secs(2);

/// Hosts with metrics of their own.
const HOSTS: usize = 1_024;

/// A subsystem.
#[derive(Debug)]
pub(super) struct Subsystem {
    pub(super) name: String,
    pub(super) nqn: String,
    pub(super) namespaces: u64,
    pub(super) hosts: u64,
}

/// A connected host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) subsystem: String,
    pub(super) host: String,
    pub(super) controller_id: u16,
    pub(super) queues: usize,
    pub(super) operations: u64,
}

/// A path to a remote controller.
#[derive(Debug)]
pub(super) struct Path {
    /// The path's API name, or its address if the API has none.
    pub(super) name: String,
    pub(super) controller: String,
    pub(super) state: PathState,
    pub(super) stats: Option<Stats>,
}

/// Open connections.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) management: u64,
    pub(super) queues: Doors,
    pub(super) vhost_user: u64,
}

/// The data of one scrape.
#[derive(Debug)]
pub(super) struct Reading {
    /// Counters of volumes, by API name.
    pub(super) volumes: Vec<(String, Counters)>,
    pub(super) volumes_left_out: u64,
    pub(super) subsystems: Vec<Subsystem>,
    pub(super) hosts: Vec<Host>,
    pub(super) namespaces: Vec<objects::Namespace>,
    pub(super) paths: Vec<Path>,
    pub(super) reactors: Vec<Reactor>,
    pub(super) stalls: HashMap<u32, u64>,
    /// I/O commands of NVMe-oF hosts, by core.
    pub(super) operations: BTreeMap<u32, u64>,
    /// The polls of each reactor, if they are measured.
    pub(super) polls: Vec<Polls>,
    pub(super) control: ControlStats,
    pub(super) long_steps: Vec<(&'static str, Duration)>,
    pub(super) mailbox: MailboxStats,
    pub(super) store: state::Stats,
    pub(super) replay: Option<Duration>,
    /// The pools of small and of large buffers.
    pub(super) iobuf: [IobufPool; 2],
    pub(super) memory: Memory,
    pub(super) objects: Vec<objects::Count>,
    pub(super) waiting: Vec<objects::Waiting>,
    pub(super) out_of_order: Vec<objects::Waiting>,
    pub(super) connections: Connections,
    pub(super) audit_lost: u64,
    pub(super) audit_last: Option<u64>,
    pub(super) log_lost: u64,
    pub(super) panics: u64,
    pub(super) hugepages: Vec<Pool>,
    pub(super) process: Process,
    /// Whether SPDK's part is present.
    pub(super) complete: bool,
    pub(super) took: Duration,
}

/// Makes readings.
pub(super) struct Reader {
    services: Services,
    telemetry: Arc<Telemetry>,
    /// A pass over SPDK is running: no second one is started, even after a timeout.
    passing: Arc<AtomicBool>,
}

/// The result of a pass over SPDK.
#[derive(Default)]
struct Pass {
    /// Grouped by the app-thread steps that read them.
    volumes: Vec<Vec<Counters>>,
    left_out: u64,
    queues: spdk::nvmf::Connections,
    vhost_user: u64,
    paths: Vec<PathIo>,
    iobuf: [IobufPool; 2],
    memory: Memory,
}

impl Reader {
    pub(super) fn new(services: Services, telemetry: &Arc<Telemetry>) -> Self {
        Self {
            services,
            telemetry: Arc::clone(telemetry),
            passing: Arc::default(),
        }
    }

    pub(super) async fn read(&self) -> Option<Reading> {
        let begun = Instant::now();
        let pass = tokio::time::timeout(LIMIT, self.pass()).await;
        let pass = pass.ok().flatten();
        let complete = pass.is_some();
        let pass = pass.unwrap_or_default();
        let (services, telemetry) = (self.services.clone(), Arc::clone(&self.telemetry));
        // Blocking: reads files of /proc, and formats the names of many volumes.
        let assembled = move || assemble(&services, &telemetry, pass, complete, begun);
        match tokio::task::spawn_blocking(assembled).await {
            Ok(reading) => Some(reading),
            Err(error) => {
                tracing::warn!(%error, "metrics: the reading was cut off by a fault of the program");
                None
            }
        }
    }

    /// Runs a pass over SPDK; `None` at the timeout or while another one runs.
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
                queues: spdk::nvmf::connections(spdk).await?,
                vhost_user: spdk::vhost::connections(spdk) as u64,
                paths: spdk::bdev::nvme::io_by_path(spdk).await?,
                iobuf: spdk::iobuf_pools(spdk).await?,
                memory: spdk::memory(spdk),
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

/// Combines a pass over SPDK with everything else. Slow.
fn assemble(
    services: &Services,
    telemetry: &Telemetry,
    pass: Pass,
    complete: bool,
    begun: Instant,
) -> Reading {
    let spdk = services.spdk();
    let metrics = &telemetry.metrics;
    let reactors = spdk.reactors();
    let stalls = reactors.iter().map(|of| (of.core, metrics.stalls(of.core)));
    let queues = pass.queues.doors();
    let operations = pass.queues.operations().clone();
    let (store, replay) = services.store();
    let (mut subsystems, namespaces) = subsystems(services);
    let mut hosts = Vec::new();
    for host in pass.queues.hosts() {
        let Some(at) = subsystems.get_mut(&host.subsystem) else {
            continue;
        };
        at.hosts += 1;
        if hosts.len() < HOSTS {
            hosts.push(Host {
                subsystem: at.name.clone(),
                controller_id: host.controller_id,
                queues: host.queues.len(),
                operations: host.queues.iter().map(|queue| queue.completed_io).sum(),
                host: host.host,
            });
        }
    }
    let volumes = pass.volumes.into_iter().flatten().map(|counters| {
        let name = objects::volume_of(services, &counters.name);
        (name, counters)
    });
    Reading {
        volumes: volumes.collect(),
        volumes_left_out: pass.left_out,
        subsystems: subsystems.into_values().take(VOLUMES.counters).collect(),
        hosts,
        namespaces,
        paths: paths(services, pass.paths),
        stalls: stalls.collect(),
        reactors,
        operations,
        polls: spdk.polls(),
        control: spdk.control_stats(),
        long_steps: spdk.long_steps(),
        mailbox: spdk.mailbox_stats(),
        store,
        replay,
        iobuf: pass.iobuf,
        memory: pass.memory,
        objects: objects::counts(services),
        waiting: objects::waiting(services),
        out_of_order: objects::out_of_order(services),
        connections: Connections {
            management: metrics.connections.load(Ordering::Relaxed),
            queues,
            vhost_user: pass.vhost_user,
        },
        audit_lost: telemetry.audit_lost(),
        audit_last: telemetry.audit_last(),
        log_lost: crate::telemetry::log::lost(),
        panics: crate::telemetry::log::panics(),
        hugepages: hugepages::read(std::path::Path::new("/sys/kernel/mm/hugepages")),
        process: process::read(metrics.started),
        complete,
        took: begun.elapsed(),
    }
}

/// The subsystems by NQN, and the namespaces with metrics of their own.
fn subsystems(services: &Services) -> (BTreeMap<String, Subsystem>, Vec<objects::Namespace>) {
    let mut namespaces = objects::namespaces(services);
    let mut numbers: HashMap<String, u64> = HashMap::new();
    for namespace in &namespaces {
        *numbers.entry(namespace.subsystem.clone()).or_default() += 1;
    }
    namespaces.truncate(VOLUMES.counters);
    let subsystems = objects::subsystems(services).into_iter();
    let named = subsystems.map(|(name, nqn)| {
        let of = Subsystem {
            namespaces: numbers.get(&name).copied().unwrap_or_default(),
            hosts: 0,
            nqn: nqn.clone(),
            name,
        };
        (nqn, of)
    });
    (named.collect(), namespaces)
}

/// The paths with their API names.
fn paths(services: &Services, paths: Vec<PathIo>) -> Vec<Path> {
    let named = paths.into_iter().map(|of| {
        let id = of.path.id();
        let key = id.map(|id| path_key(&of.controller, &id));
        let name = key.and_then(|key| services.registry().owner(&key));
        Path {
            name: match (name, &of.path.address) {
                (Some(name), _) => name.to_string(),
                (None, Some(address)) => address.to_string(),
                (None, None) => "unknown".to_owned(),
            },
            controller: format!("nvmeRemoteControllers/{}", of.controller),
            state: of.path.state,
            stats: of.stats,
        }
    });
    named.collect()
}

/// A pass over SPDK, until it ends or is dropped without having started.
struct Passing(Arc<AtomicBool>);

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
