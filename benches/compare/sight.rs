//! Cost of observability for I/O: opi-spdk with audit log, JSON log lines of all changes, traces to a collector, an event
//! watcher and a scrape every second, compared with one that only logs warnings. Both would poll the same core, so
//! they alternate: off, on, on, off, and so on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper::Method;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opi_spdk::api::own::WatchEventsRequest;
use opi_spdk::api::own::object_service_client::ObjectServiceClient;
use rustix::process::Signal;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::attach::Attach;
use crate::client::{Address, Client, Verb};
use crate::http::Http;
use crate::initiator::Initiator;
use crate::jsonrpc::JsonRpc;
use crate::opi::{Counters, Opi, Start, connect};
use crate::reactor::ReactorTime;
use crate::report::line;
use crate::scenario::{Export, Load, Volume, Workload};
use crate::settings::Settings;
use crate::stats::{Latency, Rounds};

/// Turns per side and round.
pub const TURNS: u32 = 4;

/// Creates per turn.
const CREATES: u32 = 1500;

/// Interval of scrapes.
const SCRAPES: Duration = Duration::from_secs(1);

/// Directory in memory for the state: syncing a disk would hide a few microseconds.
const MEMORY: &str = "/dev/shm";

/// Observability features that can be enabled.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts {
    audit: bool,
    /// A JSON line per change, otherwise only warnings.
    lines: bool,
    /// Traces to the collector on this port.
    collector: Option<u16>,
    watcher: bool,
    /// A scrape every second, which also enables latencies per volume.
    scrapes: bool,
}

impl Parts {
    pub fn all(collector: u16) -> Self {
        Self {
            audit: true,
            lines: true,
            collector: Some(collector),
            watcher: true,
            scrapes: true,
        }
    }

    pub fn without_scrapes(self) -> Self {
        Self {
            scrapes: false,
            ..self
        }
    }

    /// Each feature alone.
    pub fn each(collector: u16) -> [(&'static str, Self); 5] {
        let none = Self::default();
        [
            (
                "the audit log",
                Self {
                    audit: true,
                    ..none
                },
            ),
            (
                "JSON lines",
                Self {
                    lines: true,
                    ..none
                },
            ),
            (
                "traces",
                Self {
                    collector: Some(collector),
                    ..none
                },
            ),
            (
                "a watcher",
                Self {
                    watcher: true,
                    ..none
                },
            ),
            (
                "a scrape each second",
                Self {
                    scrapes: true,
                    ..none
                },
            ),
        ]
    }
}

/// Results of one side, a value per turn.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    pub iops: Rounds,
    /// Busy time of the reactor per I/O, in nanoseconds.
    pub reactor_ns: Rounds,
}

/// Results without and with all features.
#[derive(Debug, Clone, Serialize)]
pub struct Sight {
    pub off: Side,
    pub on: Side,
    pub iops_ratio: Rounds,
    pub reactor_ratio: Rounds,
}

impl Sight {
    /// Formats a table.
    pub fn table(&self, out: &mut String) {
        let Self { off, on, .. } = self;
        line(out, format_args!("### Everything seen\n"));
        line(
            out,
            format_args!("| | off | on | on to off, turn by turn |\n|---|---:|---:|---:|"),
        );
        let spread = |of: &Rounds| format!("{:.4} ({:.4} to {:.4})", of.median, of.min, of.max);
        let (iops, reactor) = (spread(&self.iops_ratio), spread(&self.reactor_ratio));
        let (one, other) = (off.iops.median, on.iops.median);
        line(
            out,
            format_args!(
                "| 4 KiB random reads a second, depth 32 | {one:.0} | {other:.0} | {iops} |"
            ),
        );
        let (one, other) = (off.reactor_ns.median, on.reactor_ns.median);
        line(
            out,
            format_args!("| reactor time for one, ns | {one:.0} | {other:.0} | {reactor} |"),
        );
        line(
            out,
            format_args!(
                "\nOn: audit log, JSON log lines, traces to a collector, a watcher of events, a scrape each second, and \
                 with it latencies by volume. Off: warnings alone. Scraper, collector and initiator share the cores \
                 beside the reactor's, so the reactor's time tells the data path's cost, not the rate.\n"
            ),
        );
    }
}

#[derive(Default)]
struct Found {
    iops: Vec<f64>,
    reactor_ns: Vec<f64>,
}

pub async fn run(settings: &Settings) -> Result<Option<Sight>> {
    let collector = collector().await?;
    let mut found = [Found::default(), Found::default()];
    let turns = settings.line.rounds * TURNS;
    for turn in 0..turns {
        eprintln!("everything seen: turn {} of {turns}", turn + 1);
        let mut order = [0, 1];
        if turn % 2 == 1 {
            order.reverse();
        }
        for side in order {
            let (name, parts) = match side {
                0 => ("off", Parts::default()),
                _ => ("on", Parts::all(collector)),
            };
            let measured = measure(settings, parts, &mut found[side]).await;
            measured.context(name)?;
        }
    }
    let [off, on] = found.map(Side::of);
    let (off, on) = (off.context("no turns")?, on.context("no turns")?);
    Ok(Some(Sight {
        iops_ratio: Rounds::ratio(&on.iops, &off.iops).context("no turns")?,
        reactor_ratio: Rounds::ratio(&on.reactor_ns, &off.reactor_ns).context("no turns")?,
        off,
        on,
    }))
}

impl Side {
    fn of(found: Found) -> Option<Self> {
        Some(Self {
            iops: Rounds::of(found.iops)?,
            reactor_ns: Rounds::of(found.reactor_ns)?,
        })
    }
}

/// One turn of a side.
async fn measure(settings: &Settings, parts: Parts, found: &mut Found) -> Result<()> {
    let mut side = Watched::start(settings, parts).await?;
    let (iops, reactor_ns) = side.io(settings).await?;
    found.iops.push(iops);
    found.reactor_ns.push(reactor_ns);
    side.stop().await
}

/// A target with one exported volume.
pub struct Watched {
    opi: Opi,
    attach: Attach,
    client: Client,
    /// In memory.
    directory: tempfile::TempDir,
    watcher: Option<JoinHandle<()>>,
    scrapes: Option<JoinHandle<Result<()>>>,
}

impl Watched {
    pub async fn start(settings: &Settings, parts: Parts) -> Result<Self> {
        let builder = tempfile::Builder::new()
            .prefix("opi-spdk-bench-")
            .tempdir_in(MEMORY);
        let directory = builder.context(MEMORY)?;
        let mut start = Start::new(settings, Counters::Wanted);
        start.directory = directory.path().to_owned();
        start.options = vec![match parts.lines {
            true => "--log-format=json".to_owned(),
            false => "--log-level=warn".to_owned(),
        }];
        if parts.audit {
            let audit: PathBuf = directory.path().join("audit.log");
            let audit = format!("--audit-log={}", audit.display());
            start.options.push(audit);
        }
        if let Some(port) = parts.collector {
            let endpoint = format!("http://127.0.0.1:{port}");
            start.environment = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)];
        }
        let mut opi = Opi::start_so(settings, &start).await?;
        let attach = opi
            .export(settings, Volume::Malloc, Export::NvmeTcp)
            .await?;
        let mut watcher = None;
        if parts.watcher {
            let mut objects = ObjectServiceClient::new(connect(opi.port).await?);
            let request = WatchEventsRequest::default();
            let mut events = objects.watch_events(request).await?.into_inner();
            watcher = Some(tokio::spawn(async move {
                while let Ok(Some(_)) = events.message().await {}
            }));
        }
        let mut side = Self {
            client: Client::connect(&Address::Grpc(opi.port)).await?,
            opi,
            attach,
            directory,
            watcher,
            scrapes: None,
        };
        side.scraped(parts);
        Ok(side)
    }

    /// Starts scraping, if enabled in `parts`.
    pub fn scraped(&mut self, parts: Parts) {
        let port = self.opi.http_port;
        self.scrapes = parts.scrapes.then(|| tokio::spawn(scrapes(port)));
    }

    /// I/O per second, and reactor time per I/O in nanoseconds.
    async fn io(&mut self, settings: &Settings) -> Result<(f64, f64)> {
        let load = Load::random(Workload::RandRead, 32);
        let seconds = settings.line.seconds;
        let socket = self.opi.rpc_socket.as_deref();
        let mut rpc = JsonRpc::connect(socket.context("no JSON-RPC")?).await?;
        let before = ReactorTime::read(&mut rpc).await?;
        let perf = Initiator::Perf;
        let measured = perf.run(settings, &self.attach, load, seconds).await?;
        let busy = ReactorTime::read(&mut rpc).await?.busy_ns_since(before);
        Ok((measured.iops, busy / (measured.iops * f64::from(seconds))))
    }

    /// Median time of creates, in microseconds.
    pub async fn creates(&mut self) -> Result<f64> {
        let mut times = Vec::new();
        for number in 0..CREATES {
            let id = format!("v{number}");
            let begun = Instant::now();
            self.client.call(Verb::Create, &id).await?;
            times.push(begun.elapsed());
        }
        Ok(Latency::of(times).context("no creates")?.p50_us)
    }

    /// CPU usage of the control threads without calls, in percent of a core.
    pub async fn idle(&self, settings: &Settings, window: Duration) -> Result<f64> {
        let process = &self.opi.process;
        process.idles_at(&settings.reactor(), window).await
    }

    pub fn grpc_port(&self) -> u16 {
        self.opi.port
    }

    pub fn http_port(&self) -> u16 {
        self.opi.http_port
    }

    pub async fn stop(self) -> Result<()> {
        if let Some(watcher) = self.watcher {
            watcher.abort();
        }
        if let Some(scrapes) = self.scrapes {
            if scrapes.is_finished() {
                scrapes.await?.context("scraping")?;
            } else {
                scrapes.abort();
            }
        }
        // Not [`Opi::stop`]: only one of the two sides logs the cost of configuration.
        self.opi.process.stop(Signal::TERM).await?;
        drop(self.directory);
        Ok(())
    }
}

/// Scrapes every second.
async fn scrapes(port: u16) -> Result<()> {
    let mut http = Http::connect(port).await?;
    let mut ticks = tokio::time::interval(SCRAPES);
    loop {
        ticks.tick().await;
        http.body(Method::GET, "/metrics", None).await?;
    }
}

/// Starts a collector of spans. Returns its port.
pub async fn collector() -> Result<u16> {
    struct Collector;

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            _: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            Ok(Response::new(ExportTraceServiceResponse::default()))
        }
    }

    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let server = Server::builder().add_service(TraceServiceServer::new(Collector));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    Ok(port)
}
