//! The process between preflight and exit.
//!
//! ```text
//! SPDK starts ─► data path set up ─► servers serve ── signal ─► drain ─► SPDK stops
//!      └─ fails ─────────┴─ fails ─────────┴─ fails ─► SPDK stops, one line, status 1
//! ```

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use spdk::Runtime;
use tokio::time::timeout;

use crate::access::Access;
use crate::config::{Config, Idle};
use crate::identity::Identity;
use crate::notify::Manager;
use crate::preflight::Ready;
use crate::server::{self, Listeners};
use crate::services::Services;
use crate::shutdown::{self, Signals};
use crate::state::{KeySource, StateKey, Store};
use crate::telemetry::{Telemetry, audit::Audit, chain::Hasher, log, traces};

/// Runs until a signal or a failure. An error is one line for the operator.
pub async fn run(config: Config, ready: Ready) -> Result<(), String> {
    let mut signals = Signals::install().map_err(|error| format!("signals: {error}"))?;
    warn_of_exposure(&config, &ready.listeners.access);
    // Lives until SPDK has stopped, longer than the servers.
    let audit = config.audit_log.as_deref();
    let audit = audit.map(|log| open_audit(log, config.audit_key_file.as_deref()));
    let audit = audit.transpose()?;
    if let Some(audit) = &audit {
        audit.reopen_on_sighup()?;
    }
    let telemetry = Telemetry::new(audit);
    tokio::spawn(log::tell_of_losses());
    let traces = traces::start()?;
    let Ready {
        instance: _instance,
        identity,
        state,
        state_key,
        listeners,
        ..
    } = ready;
    warn_of_state_key(&state_key);
    let starting = Runtime::start(spdk::Options {
        cores: config.cores.clone(),
        longest_sleep: (config.idle == Idle::Nap).then_some(spdk::LONGEST_SLEEP),
        measure_polls: config.measure_polls,
        mem_mib: config.mem_mib,
        no_huge: config.no_huge,
        iobuf: config.iobuf,
        mailbox_capacity: config.max_calls,
        rpc_socket: config.spdk_rpc.as_ref().map(|rpc| rpc.socket.clone()),
        remote_io_timeout: config.remote_io_timeout,
        dhchap: config.dhchap,
    });
    let runtime = tokio::select! {
        started = starting => started.map_err(|error| error.to_string() + hint(&config))?,
        signal = signals.wait() => {
            tracing::info!(signal, "ending before SPDK has started, which cannot be stopped yet");
            log::finish();
            spdk::exit_at_once(0)
        }
    };
    tracing::info!(cores = %config.cores, version = spdk::version(), "data path is up");
    warn_of_missing_changes();

    let mut backends = Vec::new();
    let spdk = runtime.handle();
    let serving = Serving {
        config: &config,
        identity,
        listeners,
        store: Arc::clone(&state) as Arc<dyn Store>,
        spdk,
    };
    let served = serve(serving, &telemetry, &mut signals, &mut backends).await;
    telemetry.finish();
    if let Some(traces) = traces {
        // Blocking: an unresponsive collector takes up to two seconds.
        let _ = tokio::task::spawn_blocking(|| traces.finish()).await;
    }

    if timeout(shutdown::STORE, state.close()).await.is_err() {
        tracing::error!(waited = ?shutdown::STORE, "the disk of state-dir does not answer; leaving it");
    }
    let cost = runtime.handle().control_stats();
    tracing::info!(
        steps = cost.steps,
        busy_us = cost.busy.as_micros(),
        longest_us = cost.longest.as_micros(),
        "what configuration cost the reactor"
    );
    match timeout(shutdown::SPDK_STOP, runtime.stop()).await {
        Ok(0) => {
            tracing::info!("stopped");
            served
        }
        Ok(code) => served.and(Err(format!("SPDK stopped with status {code}"))),
        Err(_) => served.and(Err(format!(
            "SPDK did not stop within {:?}: {}",
            shutdown::SPDK_STOP,
            describe_backends(&backends)
        ))),
    }
}

/// Parameters of the servers.
struct Serving<'a> {
    config: &'a Config,
    identity: Identity,
    listeners: Listeners,
    store: Arc<dyn Store>,
    spdk: spdk::Handle,
}

async fn serve(
    serving: Serving<'_>,
    telemetry: &Arc<Telemetry>,
    signals: &mut Signals,
    backends: &mut Vec<String>,
) -> Result<(), String> {
    let Serving {
        config,
        identity,
        listeners,
        store,
        spdk: handle,
    } = serving;
    let starting = async {
        set_up(config, &handle).await?;
        let services = Services::new(config, identity, handle.clone(), store);
        let restoring = services.restore(config).await?;
        Ok::<_, String>((services, restoring))
    };
    let (services, restoring) = tokio::select! {
        started = starting => started?,
        signal = signals.wait() => {
            tracing::info!(signal, "stopping before anything is served");
            return Ok(());
        }
    };
    let manager = Manager::of_environment();
    // Records are readable when the servers start, and restored while they serve.
    tokio::spawn(restoring);
    let (trigger, stopping) = shutdown::trigger();
    let serving = server::serve(
        listeners,
        services.clone(),
        config.web.clone(),
        config.max_connections,
        Arc::clone(telemetry),
        stopping,
    );
    let mut servers = tokio::spawn(serving);
    let watched = manager.ready(handle);
    let signal = tokio::select! {
        signal = signals.wait() => signal,
        ended = &mut servers => return flatten(ended),
    };
    tracing::info!(signal, "stopping: calls in flight may finish");
    watched.stopping();
    trigger.fire();
    // Drains changes, including those of disconnected clients. Reads are not waited for.
    if timeout(shutdown::DRAIN, services.stop()).await.is_err() {
        tracing::warn!(waited = ?shutdown::DRAIN, "changes in flight did not finish; leaving them");
    }
    *backends = services.backends();
    match timeout(shutdown::GRACE, servers).await {
        Ok(ended) => flatten(ended),
        Err(_) => {
            tracing::info!("clients kept their connections open; leaving them");
            Ok(())
        }
    }
}

/// Warns about an SPDK built without this project's changes, which enforces fewer limits on peers.
fn warn_of_missing_changes() {
    let missing = spdk::hooks::CHANGES_MISSING.len();
    if missing > 0 {
        tracing::warn!(
            missing,
            applied = spdk::hooks::CHANGES.len(),
            "this SPDK was built without changes that keep hosts, peers and virtual machines in bounds; see docs/security.md"
        );
    }
}

fn flatten(ended: Result<Result<(), String>, tokio::task::JoinError>) -> Result<(), String> {
    ended.unwrap_or_else(|error| Err(format!("servers: {error}")))
}

/// Describes the backends that SPDK may have waited for.
fn describe_backends(backends: &[String]) -> String {
    const SHOWN: usize = 5;
    match backends {
        [] => "there is no backend to wait for: SPDK's lines in this log say what it was doing"
            .to_owned(),
        _ => {
            let more = match backends.len().saturating_sub(SHOWN) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let names = backends[..backends.len().min(SHOWN)].join(", ");
            format!("one of its backends may not answer: {names}{more}")
        }
    }
}

/// Creates what the API requires: transports and socket directories.
async fn set_up(config: &Config, handle: &spdk::Handle) -> Result<(), String> {
    use spdk::nvmf::{Transport, transport};
    let sizes = config.tcp;
    let create = move |spdk| transport::create_tcp(spdk, sizes);
    let tcp = in_spdk(handle, "NVMe/TCP transport", create).await;
    tcp.map_err(|error| error + hint(config))?;
    if config.no_huge {
        tracing::warn!(
            "running without hugepages: no PCIE controllers (vfio-user) and no vhost-user"
        );
    } else {
        let create = |spdk| transport::create(spdk, Transport::VfioUser);
        in_spdk(handle, "vfio-user transport", create).await?;
        let sockets = config.ctrlr_dir.display().to_string();
        in_spdk(handle, "ctrlr-dir", move |spdk| async move {
            spdk::vhost::set_directory(spdk, &sockets)
        })
        .await?;
    }
    Ok(())
}

async fn in_spdk<F, Fut>(handle: &spdk::Handle, what: &str, recipe: F) -> Result<(), String>
where
    F: FnOnce(spdk::Spdk) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), spdk::Error>> + 'static,
{
    match handle.call(recipe).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{what}: {error}")),
        Err(error) => Err(format!("{what}: {error}")),
    }
}

/// Advice for a start of SPDK or of its first transport that failed, since SPDK's message for too little memory is
/// obscure.
fn hint(config: &Config) -> &'static str {
    match config.mem_mib {
        0..512 => " (mem-mib may be too little: 512 is enough to start)",
        _ => "",
    }
}

/// Warns if the key is beside the state: a copy of the directory includes the key.
fn warn_of_state_key(source: &KeySource) {
    if let KeySource::StateDir(file) = source {
        tracing::warn!(
            file = %file.display(),
            "the state is sealed with a key that lies beside it: give the key with --state-key-file"
        );
    }
}

fn open_audit(log: &Path, key: Option<&Path>) -> Result<Audit, String> {
    let read = |path: &Path| {
        let key = StateKey::read(path);
        key.map_err(|reason| format!("audit-key-file {}: {reason}", path.display()))
    };
    let key = key.map(read).transpose()?;
    Audit::open(log, Hasher::new(key.as_ref()))
}

/// Warns about settings that expose more than the API, or expose it without TLS or authentication.
fn warn_of_exposure(config: &Config, access: &Access) {
    if config.spdk_rpc.is_some() {
        tracing::warn!("spdk-rpc-socket: SPDK takes commands that the API knows nothing of");
    }
    if config.tls.is_some() {
        return;
    }
    if access.has_tokens()
        && !(config.grpc_addr.ip().is_loopback() && config.http_addr.ip().is_loopback())
    {
        tracing::warn!("access-file has tokens, which can be read on the way without TLS");
    }
    if let Some(address) = config
        .spdk_rpc
        .as_ref()
        .and_then(|rpc| Some(rpc.http.as_ref()?.address))
        && !address.ip().is_loopback()
    {
        tracing::warn!(%address, "spdk-rpc-http is served without TLS: its password can be read on the way");
    }
    let who = match config.access_file {
        None => "reaches it controls the storage",
        Some(_) => "is on the way can read and change what is sent",
    };
    for (what, address) in [
        ("grpc-addr", config.grpc_addr),
        ("http-addr", config.http_addr),
    ] {
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "{what} is served without TLS: whoever {who}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_that_takes_too_long_names_the_backends_that_there_are_and_no_other() {
        assert!(describe_backends(&[]).starts_with("there is no backend"));
        let names: Vec<String> = (1..=7).map(|n| format!("volumes/v{n}")).collect();
        let few = describe_backends(&names[..2]);
        assert!(
            few.ends_with("may not answer: volumes/v1, volumes/v2"),
            "{few}"
        );
        assert!(describe_backends(&names).ends_with("volumes/v5 and 2 more"));
    }
}
