//! `opi-spdk top` on a terminal, with real I/O.

#[path = "../common/mod.rs"]
mod common;
mod terminal;

use std::time::Duration;

use common::{Fixture, Target, eventually};
use terminal::Terminal;

/// Timeout of the screen on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Duration of the load unless the test ends first, s.
const LOAD: u32 = 120;

/// Waits until the screen contains all texts.
async fn shows(terminal: &Terminal, texts: &[&str]) -> String {
    let what = format!("the screen shows {texts:?}");
    let mut last = String::new();
    let found = tokio::time::timeout(SOON, async {
        loop {
            last = terminal.screen();
            if texts.iter().all(|text| last.contains(text)) {
                return last.clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    match found.await {
        Ok(screen) => screen,
        Err(_) => panic!("{what}:\n{}", terminal.screen()),
    }
}

/// Parses a displayed number: `12.3k`, `1.50MiB`.
fn number(text: &str) -> f64 {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (digits, unit) = text.split_at(end.unwrap_or(text.len()));
    let factor = match unit {
        "" | "B" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        other => panic!("no unit: {other}"),
    };
    digits.parse::<f64>().expect("a number") * factor
}

/// Waits until the second cell of the row that starts with `name` is above zero; returns the cells.
async fn row(terminal: &Terminal, name: &str) -> Vec<String> {
    eventually(&format!("a row of {name}"), SOON, async || {
        let screen = terminal.screen();
        let row = screen.lines().find(|line| line.starts_with(name))?;
        let cells: Vec<String> = row.split_whitespace().map(str::to_owned).collect();
        let is_busy = cells.get(1).is_some_and(|cell| cell != "-" && cell != "0");
        is_busy.then_some(cells)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_shows_what_the_api_reports_on_a_terminal_of_any_size() {
    let mut target = Target::start().await;
    let export = Fixture::tcp(&target, 16).await;
    let load = export.load(LOAD).await;
    let (grpc, http) = (target.grpc.to_string(), target.http.to_string());
    let args = ["top", "--addr", &grpc, "--http-addr", &http];
    let mut terminal = Terminal::start(&args, 24, 80);
    shows(&terminal, &["VOLUME", "IOPS", "1 volumes", "q end"]).await;

    // The rates agree with the API's counters, for reads and writes.
    let volumes = export.resource("MallocVolume");
    let operations = async || {
        let stats = volumes.stats(&export.volume).await;
        let of = |field: &str| stats[field].as_f64().unwrap_or(0.0);
        of("read_ops_count") + of("write_ops_count")
    };
    let (begin, first) = (std::time::Instant::now(), operations().await);
    let mut shown = Vec::new();
    for _ in 0..4 {
        let cells = row(&terminal, &export.volume).await;
        shown.push(number(&cells[1]));
        assert!(
            number(&cells[2]) > 0.0 && number(&cells[3]) > 0.0,
            "{cells:?}"
        );
        assert!(
            cells[4].ends_with('s') && cells[5].ends_with('s'),
            "latencies: {cells:?}"
        );
        assert_eq!(cells[6], "0", "errors: {cells:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let rate = (operations().await - first) / begin.elapsed().as_secs_f64();
    let mean = shown.iter().sum::<f64>() / shown.len() as f64;
    let agrees = mean > rate / 3.0 && mean < rate * 3.0;
    assert!(agrees, "shown {shown:?}, counted {rate}");

    // The other views.
    terminal.press("2");
    let id = export.subsystem.rsplit('/').next().expect("an ID");
    shows(&terminal, &["SUBSYSTEM", id]).await;
    eventually("the host has IOPS", SOON, async || {
        let screen = terminal.screen();
        // The initiator sets no host NQN: the first cell is empty.
        let (before, _) = screen.lines().find_map(|line| line.split_once(id))?;
        let iops = before.split_whitespace().next_back()?;
        iops.starts_with(|c: char| ('1'..='9').contains(&c))
            .then_some(())
    })
    .await;
    terminal.press("4");
    shows(&terminal, &["LAST TURN", "%", "IOPS", "STALLS"]).await;
    eventually("the reactors have IOPS", SOON, async || {
        let screen = terminal.screen();
        let rows = screen.lines().map(str::split_whitespace);
        let rows = rows.map(|cells| cells.collect::<Vec<&str>>());
        let mut shown = 0.0;
        let is_core = |cells: &Vec<&str>| cells.get(1).is_some_and(|cell| cell.ends_with('%'));
        for cells in rows.filter(is_core) {
            assert_eq!(cells.len(), 6, "{cells:?}");
            shown += number(Some(cells[2]).filter(|cell| *cell != "-")?);
        }
        // The volume's I/O is the host's: between two turns of the screen the rates are alike.
        (shown > rate / 3.0 && shown < rate * 3.0).then_some(())
    })
    .await;
    terminal.press("3");
    shows(&terminal, &["PATH", "LATENCY", "STATE"]).await;
    terminal.press("\t\t/none\r");
    terminal.press("1");
    let screen = shows(&terminal, &["VOLUME", "filter: none"]).await;
    assert!(!screen.contains(&export.volume), "{screen}");
    terminal.press("\x1b");
    shows(&terminal, &["VOLUME", &export.volume]).await;

    terminal.resize(24, 20);
    shows(&terminal, &["too small"]).await;
    terminal.resize(10, 50);
    shows(&terminal, &["VOLUME", &export.volume]).await;
    terminal.resize(24, 80);

    // When the server stops, top reports it and keeps running.
    drop(load);
    target.stop_with(rustix::process::Signal::TERM);
    shows(&terminal, &["away for", &http]).await;
    terminal.press("q");
    let status = terminal.ended(SOON);
    assert!(status.success(), "{status}");
}

#[test]
fn without_a_terminal_top_names_the_alternatives() {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_opi-spdk"))
        .arg("top")
        .output()
        .expect("the program starts");
    assert_eq!(out.status.code(), Some(2));
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(error.contains("this is none"), "{error}");
}
