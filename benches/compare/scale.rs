//! Scaling with the number of objects: creates per second among 100 and among 10,000 volumes, a restart with these
//! plus subsystems over a tenth of them, and scrapes and lists of all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper::Method;
use opi_spdk::api::own::ListObjectsRequest;
use opi_spdk::api::own::object_service_client::ObjectServiceClient;
use opi_spdk::api::storage::{
    CreateMallocVolumeRequest, CreateNvmeControllerRequest, CreateNvmeNamespaceRequest,
    CreateNvmeSubsystemRequest, FabricsEndpoint, MallocVolume, NvmeAddressFamily, NvmeController,
    NvmeControllerSpec, NvmeNamespace, NvmeNamespaceSpec, NvmeSubsystem, NvmeSubsystemSpec,
    NvmeTransportType, frontend_nvme_service_client::FrontendNvmeServiceClient,
    malloc_volume_service_client::MallocVolumeServiceClient, nvme_controller_spec::Endpoint,
};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinSet;

use crate::client::{Address, Client, Verb};
use crate::durable::Durable;
use crate::http::Http;
use crate::opi::{Counters, Opi, Start, connect};
use crate::report::line;
use crate::settings::Settings;
use crate::stats::{Latency, Rounds};
use crate::target::free_port;

/// Connections with a call in flight on each.
const CLIENTS: u32 = 16;

/// Memory for all objects, in MiB.
const MEMORY_MIB: u64 = 3072;

/// The small number of objects.
const FEW: u32 = 100;

/// Creates per measurement, and measurements in a row, with deletes in between.
const CREATES: u32 = 480;
const REPEATS: u32 = 4;

/// Measured scrapes, and measured lists of all objects.
const READS: u32 = 15;

/// Page size of lists.
const PAGE: i32 = 250;

/// Timeout of a start with many objects.
const RESTORED: Duration = Duration::from_secs(60);

/// Duration of the measurement of an idle process.
const IDLE: Duration = Duration::from_secs(20);

/// Results of this part.
#[derive(Debug, Clone, Serialize)]
pub struct Scale {
    pub few: u32,
    pub many: u32,
    pub durable: Durable,
    pub creates_among_few: Rounds,
    pub creates_among_many: Rounds,
    pub creates_ratio: Rounds,
    /// Time from "data path is up" until everything is restored, and until the process is ready, in milliseconds.
    pub restored_ms: Rounds,
    pub ready_ms: Rounds,
    /// Number of objects at the restart.
    pub restored: u32,
    pub scrape: Latency,
    pub scrape_bytes: usize,
    /// The longest step on the app thread before and after the scrapes and lists, in microseconds.
    pub longest_step_us: [f64; 2],
    /// Steps that took more than 100 µs during the reads, or longer than before: the longest of each recipe, in
    /// microseconds.
    pub long_steps_us: BTreeMap<String, f64>,
    /// All pages of a list of all objects.
    pub list: Latency,
    pub list_page: Latency,
    /// CPU usage of all threads but the reactor, in percent of a core.
    pub idle_percent: f64,
}

impl Scale {
    /// Formats a table.
    pub fn table(&self, out: &mut String) {
        let Self { few, many, .. } = self;
        let ms = |us: f64| us / 1e3;
        let [before, after] = self.longest_step_us;
        line(out, format_args!("### Many objects\n"));
        line(out, format_args!("| | measured |\n|---|---:|"));
        self.durable.rows(out);
        for (what, rates) in [
            (few, &self.creates_among_few),
            (many, &self.creates_among_many),
        ] {
            let rate = rates.median;
            let what = format!("creates a second among {what} volumes, {CLIENTS} clients");
            line(out, format_args!("| {what} | {rate:.0} |"));
        }
        let Rounds {
            median, min, max, ..
        } = self.creates_ratio;
        line(
            out,
            format_args!("| ratio | {median:.3} ({min:.3} to {max:.3}) |"),
        );
        let what = format!("SPDK up until {} objects are restored", self.restored);
        line(
            out,
            format_args!("| {what} | {:.0} ms |", self.restored_ms.median),
        );
        line(
            out,
            format_args!("| SPDK up until ready | {:.0} ms |", self.ready_ms.median),
        );
        let scrape = &self.scrape;
        let megabytes = self.scrape_bytes as f64 / 1e6;
        line(
            out,
            format_args!(
                "| a scrape of {megabytes:.1} MB, p50 / max | {:.0} / {:.0} ms |",
                ms(scrape.p50_us),
                ms(scrape.max_us)
            ),
        );
        let (list, page) = (&self.list, &self.list_page);
        line(
            out,
            format_args!(
                "| a list of all objects, p50 / max | {:.0} / {:.0} ms |",
                ms(list.p50_us),
                ms(list.max_us)
            ),
        );
        line(
            out,
            format_args!(
                "| a page of {PAGE}, p50 / max | {:.1} / {:.1} ms |",
                ms(page.p50_us),
                ms(page.max_us)
            ),
        );
        line(
            out,
            format_args!(
                "| longest step since the start, before and after these | {before:.0}, {after:.0} µs |"
            ),
        );
        for (step, us) in &self.long_steps_us {
            line(
                out,
                format_args!(
                    "| longest step of {step} in these, if more than 100 µs | {us:.0} µs |"
                ),
            );
        }
        line(
            out,
            format_args!(
                "| control threads without calls | {:.2} % of a core |\n",
                self.idle_percent
            ),
        );
    }
}

pub async fn run(settings: &Settings) -> Result<Option<Scale>> {
    let many = settings.line.objects;
    // No hugepages: nothing here shares memory, and many subsystems need more than there are.
    let start = Start {
        memory_mib: MEMORY_MIB,
        no_huge: true,
        ..Start::new(settings, Counters::Unwanted)
    };
    let opi = Opi::start_so(settings, &start).await?;
    let mut population = Population::new(&opi).await?;
    population.grow_to(FEW).await?;
    eprintln!("many objects: creates and fsyncs");
    let client = population.clients.first_mut().context("no client")?;
    let durable = Durable::of(client, &start.directory.join("state")).await?;
    let (mut among_few, mut among_many) = (Vec::new(), Vec::new());
    for round in 0..settings.line.rounds {
        eprintln!("many objects: creates, round {}", round + 1);
        population.grow_to(FEW).await?;
        among_few.push(population.rate().await?);
        population.grow_to(many).await?;
        among_many.push(population.rate().await?);
    }
    eprintln!("many objects: subsystems");
    export(&opi, many / 10).await?;
    opi.stop().await?;
    let again = Start {
        again: true,
        ..start
    };
    let (mut restored, mut ready) = (Vec::new(), Vec::new());
    for round in 0..settings.line.rounds {
        eprintln!("many objects: restart, round {}", round + 1);
        let mut opi = Opi::start_so(settings, &again).await?;
        let times = restart(settings, &mut opi).await?;
        restored.push(times.0);
        ready.push(times.1);
        if round + 1 < settings.line.rounds {
            opi.stop().await?;
            continue;
        }
        eprintln!("many objects: scrapes and lists");
        let reads = Reads::of(&opi, settings).await?;
        opi.stop().await?;
        let rounds = |values: Vec<f64>| Rounds::of(values).context("no rounds");
        let (few_rate, many_rate) = (rounds(among_few)?, rounds(among_many)?);
        return Ok(Some(Scale {
            few: FEW,
            many,
            durable,
            creates_ratio: Rounds::ratio(&many_rate, &few_rate).context("no rounds")?,
            creates_among_few: few_rate,
            creates_among_many: many_rate,
            restored_ms: rounds(restored)?,
            ready_ms: rounds(ready)?,
            restored: many + many / 10 * 4,
            scrape: Latency::of(reads.scrapes).context("no scrape")?,
            scrape_bytes: reads.scrape_bytes,
            longest_step_us: reads.longest_step_us,
            long_steps_us: reads.long_steps_us,
            list: Latency::of(reads.lists).context("no list")?,
            list_page: Latency::of(reads.pages).context("no page")?,
            idle_percent: reads.idle_percent,
        }));
    }
    Ok(None)
}

/// The existing null volumes, numbered, and the clients that create and delete them.
struct Population {
    clients: Vec<Client>,
    number: u32,
}

impl Population {
    async fn new(opi: &Opi) -> Result<Self> {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(Client::connect(&Address::Grpc(opi.port)).await?);
        }
        Ok(Self { clients, number: 0 })
    }

    async fn grow_to(&mut self, wanted: u32) -> Result<()> {
        if self.number < wanted {
            self.all(Verb::Create, self.number, wanted).await?;
        } else {
            self.all(Verb::Delete, wanted, self.number).await?;
        }
        self.number = wanted;
        Ok(())
    }

    /// Creates per second among the existing volumes.
    async fn rate(&mut self) -> Result<f64> {
        let mut took = Duration::ZERO;
        for _ in 0..REPEATS {
            let end = self.number + CREATES;
            took += self.all(Verb::Create, self.number, end).await?;
            self.all(Verb::Delete, self.number, end).await?;
        }
        Ok(f64::from(REPEATS * CREATES) / took.as_secs_f64())
    }

    /// All clients concurrently make a call for the volumes with these numbers.
    async fn all(&mut self, verb: Verb, from: u32, to: u32) -> Result<Duration> {
        let mut running = JoinSet::new();
        let begun = Instant::now();
        for (first, mut client) in (from..).zip(self.clients.drain(..)) {
            running.spawn(async move {
                for number in (first..to).step_by(CLIENTS as usize) {
                    let done = client.call(verb, &format!("v{number}")).await;
                    done.with_context(|| format!("{verb:?} v{number}"))?;
                }
                anyhow::Ok(client)
            });
        }
        while let Some(client) = running.join_next().await {
            self.clients.push(client??);
        }
        Ok(begun.elapsed())
    }
}

/// Creates this many subsystems, each with a namespace on its own malloc volume and a TCP controller.
async fn export(opi: &Opi, number: u32) -> Result<()> {
    let port = free_port()?;
    let mut running = JoinSet::new();
    for first in 0..CLIENTS {
        let channel = connect(opi.port).await?;
        running.spawn(async move {
            let mut volumes = MallocVolumeServiceClient::new(channel.clone());
            let mut frontend = FrontendNvmeServiceClient::new(channel);
            for number in (first..number).step_by(CLIENTS as usize) {
                let made = subsystem(&mut volumes, &mut frontend, number, port).await;
                made.with_context(|| format!("subsystem {number}"))?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

async fn subsystem(
    volumes: &mut MallocVolumeServiceClient<tonic::transport::Channel>,
    frontend: &mut FrontendNvmeServiceClient<tonic::transport::Channel>,
    number: u32,
    port: u16,
) -> Result<()> {
    let volume = CreateMallocVolumeRequest {
        malloc_volume: Some(MallocVolume {
            block_size: 512,
            blocks_count: 8,
            ..Default::default()
        }),
        malloc_volume_id: format!("m{number}"),
    };
    let volume = volumes.create_malloc_volume(volume).await?.into_inner();
    let request = CreateNvmeSubsystemRequest {
        nvme_subsystem: Some(NvmeSubsystem {
            spec: Some(NvmeSubsystemSpec {
                nqn: format!("nqn.2016-06.io.spdk:scale-{number}"),
                ..Default::default()
            }),
            ..Default::default()
        }),
        nvme_subsystem_id: format!("s{number}"),
    };
    let made = frontend.create_nvme_subsystem(request).await?;
    let parent = made.into_inner().name;
    let namespace = CreateNvmeNamespaceRequest {
        parent: parent.clone(),
        nvme_namespace: Some(NvmeNamespace {
            spec: Some(NvmeNamespaceSpec {
                volume_name_ref: volume.name,
                ..Default::default()
            }),
            ..Default::default()
        }),
        nvme_namespace_id: "n".to_owned(),
    };
    frontend.create_nvme_namespace(namespace).await?;
    let endpoint = FabricsEndpoint {
        traddr: "127.0.0.1".to_owned(),
        trsvcid: port.to_string(),
        adrfam: NvmeAddressFamily::Ipv4.into(),
    };
    let controller = CreateNvmeControllerRequest {
        parent,
        nvme_controller: Some(NvmeController {
            spec: Some(NvmeControllerSpec {
                trtype: NvmeTransportType::Tcp.into(),
                endpoint: Some(Endpoint::FabricsId(endpoint)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        nvme_controller_id: "c".to_owned(),
    };
    frontend.create_nvme_controller(controller).await?;
    Ok(())
}

/// Times from the line that says SPDK is up until everything is restored, and until the process reports readiness, in
/// milliseconds.
async fn restart(settings: &Settings, opi: &mut Opi) -> Result<(f64, f64)> {
    let port = opi.http_port;
    let ready = opi.process.poll_until("readiness", RESTORED, async || {
        let mut http = Http::connect(port).await?;
        http.body(Method::GET, "/readyz", None).await
    });
    ready.await?;
    let ready = OffsetDateTime::now_utc();
    let log = settings.log_dir().join("opi-spdk.log");
    let log = std::fs::read_to_string(&log)?;
    let at = |what: &str| -> Result<OffsetDateTime> {
        let line = log.lines().find(|line| line.contains(what));
        let line = line.with_context(|| format!("no line says {what:?}"))?;
        let stamp = line.split_whitespace().next().unwrap_or_default();
        OffsetDateTime::parse(stamp, &Rfc3339).with_context(|| line.to_owned())
    };
    let up = at("data path is up")?;
    let restored = at("records restored")?;
    let ms = |until: OffsetDateTime| (until - up).as_seconds_f64() * 1e3;
    Ok((ms(restored), ms(ready)))
}

/// Timings of reading everything.
struct Reads {
    scrapes: Vec<Duration>,
    scrape_bytes: usize,
    longest_step_us: [f64; 2],
    long_steps_us: BTreeMap<String, f64>,
    lists: Vec<Duration>,
    pages: Vec<Duration>,
    idle_percent: f64,
}

impl Reads {
    async fn of(opi: &Opi, settings: &Settings) -> Result<Self> {
        let idle_percent = opi.process.idles_at(&settings.reactor(), IDLE).await?;
        let mut http = Http::connect(opi.http_port).await?;
        // The first scrape makes SPDK count latencies.
        let first = http.body(Method::GET, "/metrics", None).await?;
        let (mut scrapes, mut last) = (Vec::new(), first.clone());
        for _ in 0..READS {
            let begun = Instant::now();
            last = http.body(Method::GET, "/metrics", None).await?;
            scrapes.push(begun.elapsed());
        }
        let mut objects = ObjectServiceClient::new(connect(opi.port).await?);
        let (mut lists, mut pages) = (Vec::new(), Vec::new());
        for _ in 0..READS {
            let all = Instant::now();
            let mut token = String::new();
            loop {
                let begun = Instant::now();
                let request = ListObjectsRequest {
                    page_size: PAGE,
                    page_token: token,
                };
                let page = objects.list_objects(request).await?.into_inner();
                pages.push(begun.elapsed());
                token = page.next_page_token;
                if token.is_empty() {
                    break;
                }
            }
            lists.push(all.elapsed());
        }
        let after = http.body(Method::GET, "/metrics", None).await?;
        let before = long_steps_us(&first)?;
        let mut long_steps = long_steps_us(&after)?;
        long_steps.retain(|step, us| before.get(step).is_none_or(|before| *us > *before));
        Ok(Self {
            scrapes,
            scrape_bytes: last.len(),
            longest_step_us: [longest_step_us(&first)?, longest_step_us(&after)?],
            long_steps_us: long_steps,
            lists,
            pages,
            idle_percent,
        })
    }
}

fn longest_step_us(metrics: &[u8]) -> Result<f64> {
    let text = std::str::from_utf8(metrics)?;
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix("opi_spdk_control_longest_step_seconds "));
    let seconds: f64 = value.context("no longest step in a scrape")?.parse()?;
    Ok(seconds * 1e6)
}

fn long_steps_us(metrics: &[u8]) -> Result<BTreeMap<String, f64>> {
    let lines = std::str::from_utf8(metrics)?.lines();
    let of = lines.filter_map(|line| {
        let rest = line.strip_prefix("opi_spdk_control_long_step_seconds{step=\"")?;
        rest.split_once("\"} ")
    });
    of.map(|(step, seconds)| Ok((step.to_owned(), seconds.parse::<f64>()? * 1e6)))
        .collect()
}
