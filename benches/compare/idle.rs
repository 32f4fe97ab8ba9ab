//! CPU usage of the control threads of a process without calls, as more and more looks at it: nothing, the audit log,
//! JSON lines, a collector and a watcher of events, a scrape every second, an open page, `opi-spdk top`.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::Method;
use rustix::process::Signal;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http::Http;
use crate::process::Process;
use crate::report::line;
use crate::settings::Settings;
use crate::sight::{Parts, Watched, collector};
use crate::stats::Rounds;

/// Duration of each measurement.
const WINDOW: Duration = Duration::from_secs(10);

/// Interval of the page's readings.
const PAGE: Duration = Duration::from_secs(1);

/// CPU usage of all threads but the reactor's, in percent of a core.
#[derive(Debug, Clone, Serialize)]
pub struct Idle {
    pub with: &'static str,
    pub percent: Rounds,
}

/// What is added in each step.
const STEPS: [&str; 5] = [
    "nothing",
    "audit log, JSON lines, traces, a watcher",
    "and a scrape each second",
    "and an open page",
    "and top",
];

/// Formats a table.
pub fn table(idle: &[Idle], out: &mut String) {
    line(out, format_args!("### Without calls\n"));
    line(
        out,
        format_args!("| with | control threads, % of a core |\n|---|---:|"),
    );
    for Idle { with, percent } in idle {
        let Rounds {
            median, min, max, ..
        } = percent;
        let _ = writeln!(out, "| {with} | {median:.2} ({min:.2} to {max:.2}) |");
    }
    line(out, format_args!(""));
}

pub async fn run(settings: &Settings) -> Result<Vec<Idle>> {
    let collector = collector().await?;
    let mut found = STEPS.map(|_| Vec::new());
    for round in 0..settings.line.rounds {
        eprintln!(
            "without calls: round {} of {}",
            round + 1,
            settings.line.rounds
        );
        let [nothing, rest @ ..] = &mut found;
        let plain = Watched::start(settings, Parts::default()).await?;
        nothing.push(plain.idle(settings, WINDOW).await?);
        plain.stop().await?;
        for (found, percent) in rest.iter_mut().zip(all(settings, collector).await?) {
            found.push(percent);
        }
    }
    let of = STEPS.iter().zip(found).map(|(with, percent)| {
        let percent = Rounds::of(percent).context("no rounds")?;
        Ok(Idle { with, percent })
    });
    of.collect()
}

/// The steps after the first, in one process.
async fn all(settings: &Settings, collector: u16) -> Result<[f64; 4]> {
    let parts = Parts::all(collector);
    let mut side = Watched::start(settings, parts.without_scrapes()).await?;
    let watched = side.idle(settings, WINDOW).await?;
    side.scraped(parts);
    let scraped = side.idle(settings, WINDOW).await?;
    let (http, grpc) = (side.http_port(), side.grpc_port());
    let page = [tokio::spawn(readings(http)), tokio::spawn(events(http))];
    let with_page = side.idle(settings, WINDOW).await?;
    let top = top(settings, http, grpc)?;
    let with_top = side.idle(settings, WINDOW).await?;
    top.stop(Signal::TERM).await.context("top")?;
    for task in page {
        if task.is_finished() {
            task.await?.context("the page's requests")?;
        } else {
            task.abort();
        }
    }
    side.stop().await?;
    Ok([watched, scraped, with_page, with_top])
}

/// What the page asks for every second.
async fn readings(port: u16) -> Result<()> {
    let mut http = Http::connect(port).await?;
    let mut ticks = tokio::time::interval(PAGE);
    loop {
        ticks.tick().await;
        for path in ["/metrics", "/readyz"] {
            http.body(Method::GET, path, None).await?;
        }
    }
}

/// The page's stream of events.
async fn events(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET /v1/events HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// Starts `opi-spdk top` on a terminal of its own.
fn top(settings: &Settings, http: u16, grpc: u16) -> Result<Process> {
    let command = format!(
        "stty rows 24 cols 80; exec {} top --addr 127.0.0.1:{grpc} --http-addr 127.0.0.1:{http}",
        settings.line.program.display()
    );
    Process::start(
        "top",
        &settings.log_dir(),
        &settings.cores.load,
        "script".as_ref(),
        &["-qfec", &command, "/dev/null"],
    )
}
