//! The rates that the page shows, compared with rates calculated here from the same two readings of the metrics, under
//! I/O of a fixed rate and a fixed latency.

use serde_json::{Value, json};

use super::shows;
use crate::common::{
    Browser, Initiator, Resource, Scrape, Target, malloc, name_of, namespace, nqn_of, subsystem,
    tcp_controller,
};

/// The volumes: one that is limited to a rate, one whose I/O is delayed, and the one below it.
const VOLUMES: [&str; 3] = ["limited", "late", "late-base"];

/// Thousand I/Os per second of the limited volume.
const LIMIT: u32 = 1;

/// Delay of the late volume, in microseconds: no I/O is in the buckets below 2 ms, which is then the lower bound of the
/// quantiles' bucket.
const LATE: u32 = 2_500;

/// Size of an I/O of the load.
const BYTES: f64 = 4096.0;

/// Turns of the page to check.
const TURNS: usize = 6;

/// Delay of a list of objects, which must not count as time between two readings, ms.
const DELAY: u32 = 400;

/// Bounds of a histogram's buckets, in seconds.
const BOUNDS: [&str; 21] = [
    "0", "0.000005", "0.00001", "0.00002", "0.00005", "0.0001", "0.0002", "0.0005", "0.001",
    "0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10",
];

/// Part of a turn's I/O that may end between two readings of one pass over SPDK.
const IN_BETWEEN: f64 = 0.1;

/// Relative difference that floating-point arithmetic explains.
const ROUNDING: f64 = 1e-9;

/// Records each turn of the page in `window.turns`: the two readings of `/metrics` that the page compared, with the
/// times between which the server answered, what the page calculated, and what it shows. A turn asks for `/readyz`
/// once it has drawn everything. Lists of objects are delayed.
const RECORD: &str = r"(delay => {
  const real = window.fetch;
  const readings = [];
  window.turns = [];
  window.lists = 0;
  const shown = () => ({
    totals: Object.fromEntries([...document.querySelectorAll('#totals div')].map(of =>
      [of.querySelector('dt').innerText, of.querySelector('dd').innerText])),
    plots: Object.fromEntries([...document.querySelectorAll('figure')].map(of =>
      [of.querySelector('strong').innerText, Object.fromEntries([...of.querySelectorAll('li')].map(line =>
        [line.title, line.querySelector('b').innerText]))])),
  });
  window.fetch = async (path, options) => {
    if (path === '/readyz' && readings.length > 1 && page.load) {
      const { volumes, reactors, commands } = page.load;
      const load = Object.fromEntries(Object.entries({ volumes, reactors, commands })
        .map(([name, of]) => [name, Object.fromEntries(of)]));
      window.turns.push({ readings: readings.slice(-2), load: structuredClone(load), shown: shown() });
    }
    if (path.startsWith('/v1/objects')) window.lists += 1, await new Promise(after => setTimeout(after, delay));
    const asked = performance.now();
    const answer = await real(path, options);
    const answered = performance.now();
    if (path === '/metrics') {
      const reading = { asked, answered };
      readings.push(reading);
      answer.clone().text().then(text => { reading.text = text; });
    }
    return answer;
  };
})";

/// Rates of a volume; the time between two readings is known to lie between two bounds.
struct Expected {
    operations: f64,
    bytes: f64,
    busy: f64,
    p50: f64,
    p99: f64,
}

/// PromQL's histogram_quantile over the increase between two readings.
fn quantile(before: &Scrape, after: &Scrape, volume: &str, q: f64) -> f64 {
    let bucket = |of: &Scrape, le: &str| {
        let labels = [("volume", volume), ("le", le)];
        of.value("opi_spdk_volume_latency_seconds_bucket", &labels)
    };
    let grown = |le: &str| match le {
        "0" => 0.0,
        _ => bucket(after, le) - bucket(before, le),
    };
    let rank = q * grown("+Inf");
    let number = |le: &str| le.parse::<f64>().expect("a number");
    let around = BOUNDS.windows(2).find(|of| grown(of[1]) >= rank);
    let [low, high] = around.expect("no I/O takes more than 10 s") else {
        unreachable!("two bounds");
    };
    let (below, up_to) = (grown(low), grown(high));
    number(low) + (number(high) - number(low)) * (rank - below) / (up_to - below)
}

fn expected(before: &Scrape, after: &Scrape, volume: &str) -> Expected {
    let grown = |counter: &str| {
        let kinds = ["read", "write", "unmap"].map(|kind| {
            let name = format!("opi_spdk_volume_{kind}_{counter}_total");
            let labels = [("volume", volume)];
            after.value(&name, &labels) - before.value(&name, &labels)
        });
        kinds.iter().sum()
    };
    Expected {
        operations: grown("operations"),
        bytes: grown("bytes"),
        busy: grown("seconds"),
        p50: quantile(before, after, volume, 0.5),
        p99: quantile(before, after, volume, 0.99),
    }
}

fn is_near(what: &str, found: f64, wanted: f64) {
    let difference = (found - wanted).abs();
    assert!(
        difference <= ROUNDING * wanted.abs(),
        "{what}: {found}, not {wanted}"
    );
}

/// Checks a text such as `4.0 k/s` against a value: it may differ by half of its last digit.
fn is_written(what: &str, text: &Value, value: f64) {
    let text = text
        .as_str()
        .unwrap_or_else(|| panic!("{what}: not shown, {text}"));
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let (number, unit) = match number.strip_suffix("/s") {
        Some(number) => (number, "/s"),
        None => (number, unit),
    };
    let scale = match unit {
        "" | "/s" | "s" | "B/s" => 1.0,
        "k/s" => 1e3,
        "KiB/s" => 1024.0,
        "MiB/s" => 1024.0 * 1024.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        "%" => 1e-2,
        _ => panic!("{what}: unit of {text:?}"),
    };
    let digits = number.split_once('.').map_or(0, |(_, digits)| digits.len());
    let last = 10_f64.powi(-i32::try_from(digits).expect("few"));
    let number: f64 = number.parse().expect("a number");
    let (difference, half) = ((number * scale - value).abs(), scale * last / 2.0);
    assert!(
        difference <= half * (1.0 + 1e-6),
        "{what}: {text}, not {value}"
    );
}

/// Checks one turn; returns the shown I/O per second by volume.
fn check(turn: &Value) -> Vec<f64> {
    let [earlier, later] = [0, 1].map(|n| &turn["readings"][n]);
    let scrape = |of: &Value| Scrape::parse(of["text"].as_str().expect("a text"), false);
    let (before, after) = (scrape(earlier), scrape(later));
    let at = |of: &Value, key: &str| of[key].as_f64().expect("a time") / 1e3;
    // The server read its counters at some moment of each request.
    let least = at(later, "asked") - at(earlier, "answered");
    let most = at(later, "answered") - at(earlier, "asked");
    let (load, shown) = (&turn["load"], &turn["shown"]);
    let number = |of: &Value| of.as_f64().unwrap_or_else(|| panic!("no number: {of}"));
    let mut seconds = None;
    let mut rates = Vec::new();
    let (mut operations, mut bytes, mut busy) = (0.0, 0.0, 0.0);
    for id in VOLUMES {
        let name = format!("volumes/{id}");
        let of = &load["volumes"][&name];
        let wanted = expected(&before, &after, &name);
        // The page's own time between the readings is within the bounds, and the same for all rates.
        let told = wanted.operations / number(&of["iops"]);
        let taken = *seconds.get_or_insert(told);
        assert!(
            (least..=most).contains(&taken),
            "{name}: rates over {taken} s, the readings are {least} to {most} s apart"
        );
        is_near(
            &format!("{name}: IOPS"),
            number(&of["iops"]),
            wanted.operations / taken,
        );
        is_near(
            &format!("{name}: bandwidth"),
            number(&of["bytes"]),
            wanted.bytes / taken,
        );
        is_near(
            &format!("{name}: sum of times"),
            number(&of["busy"]),
            wanted.busy / taken,
        );
        is_near(
            &format!("{name}: size of an I/O"),
            number(&of["bytes"]) / number(&of["iops"]),
            BYTES,
        );
        is_near(&format!("{name}: p50"), number(&of["p50"]), wanted.p50);
        is_near(&format!("{name}: p99"), number(&of["p99"]), wanted.p99);
        for (title, value) in [
            ("IOPS", wanted.operations / taken),
            ("Bandwidth", wanted.bytes / taken),
            ("Latency, p50", wanted.p50),
            ("Latency, p99", wanted.p99),
        ] {
            is_written(
                &format!("{name}: {title}"),
                &shown["plots"][title][&name],
                value,
            );
        }
        operations += wanted.operations;
        bytes += wanted.bytes;
        busy += wanted.busy;
        rates.push(wanted.operations / taken);
    }
    let taken = seconds.expect("a volume");
    for (title, value) in [
        ("IOPS", operations / taken),
        ("Bandwidth", bytes / taken),
        ("Mean latency", busy / operations),
    ] {
        is_written(&format!("total {title}"), &shown["totals"][title], value);
    }

    let mut commands = 0.0;
    for core in load["commands"].as_object().expect("cores").keys() {
        let grown = |counter: &str| {
            let name = format!("opi_spdk_reactor_{counter}_total");
            let labels = [("core", core.as_str())];
            after.value(&name, &labels) - before.value(&name, &labels)
        };
        let (plot, plots) = (format!("core {core}"), &shown["plots"]);
        let (busy, idle) = (grown("busy_seconds"), grown("idle_seconds"));
        let share = busy / (busy + idle);
        is_near("a reactor's load", number(&load["reactors"][core]), share);
        let drawn = &plots["Reactors, busy"][&plot];
        is_written("a reactor's load", drawn, share);
        let own = grown("nvme_operations");
        let rate = own / taken;
        is_near("a reactor's IOPS", number(&load["commands"][core]), rate);
        let drawn = &plots["Reactors, NVMe IOPS"][&plot];
        is_written("a reactor's IOPS", drawn, rate);
        commands += own;
    }
    // Each command of the host is one I/O of a volume, and the late volume's are also those of the volume below it.
    // The server reads volumes first and reactors a moment later.
    let host_io = expected(&before, &after, "volumes/limited").operations
        + expected(&before, &after, "volumes/late").operations;
    assert!(
        (commands - host_io).abs() <= IN_BETWEEN * host_io,
        "{commands} commands, {host_io} I/Os"
    );
    rates
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rates_shown_are_those_of_the_metrics() {
    let target = Target::start().await;
    let client = target.client().await;
    let exported = subsystem(&client, "rates", json!({})).await;
    let (_, port) = tcp_controller(&client, &exported).await;
    let limited = malloc(&client, "limited", 16).await;
    let limits = json!({ "max": { "rw_iops_kiops": LIMIT } });
    let object = json!({ "volume_name_ref": limited, "limits": limits });
    let limits = Resource::new(&client, "QosVolume");
    limits.created("", "limits", object).await;
    let base = malloc(&client, "late-base", 16).await;
    let delays = ["avg_read", "p99_read", "avg_write", "p99_write"];
    let delays = delays.map(|of| (format!("{of}_latency_us"), json!(LATE)));
    let mut object: Value = delays.into_iter().collect();
    object["volume_name_ref"] = base.into();
    let late = Resource::new(&client, "DelayVolume");
    let late = name_of(&late.created("", "late", object).await);
    for volume in [limited, late] {
        namespace(&client, &exported, &volume, json!({})).await;
    }
    let load = Initiator::tcp(port, &nqn_of("rates")).load(60).await;
    let mut browser = Browser::start(1280, 900).await;
    browser.open(&format!("http://{}/", target.http)).await;
    shows(
        &mut browser,
        "load",
        &format!("page.load.volumes.size === {}", VOLUMES.len()),
    )
    .await;
    browser.value(&format!("{RECORD}({DELAY})")).await;
    let volumes = Resource::new(&client, "NullVolume");
    for turn in 1..=TURNS {
        // Its event has the page list the objects within the next turn.
        let object = json!({ "block_size": 512, "blocks_count": 64 });
        volumes.created("", &format!("new-{turn}"), object).await;
        shows(
            &mut browser,
            "another turn",
            &format!("window.turns.length > {turn}"),
        )
        .await;
    }
    shows(&mut browser, "a list", "window.lists > 0").await;
    let turns = browser.value("window.turns").await;
    let turns = turns.as_array().expect("a list");
    let rates: Vec<Vec<f64>> = turns.iter().map(check).collect();
    let mean = rates.iter().map(|of| of[0]).sum::<f64>() / rates.len() as f64;
    let part = mean / (1e3 * f64::from(LIMIT));
    // A host that has to share its core may stay below the limit.
    assert!(
        (0.5..1.05).contains(&part),
        "{mean} I/Os per second of {LIMIT},000"
    );
    assert_eq!(browser.problems, Vec::<String>::new());
    drop(load);
    browser.close().await;
    target.stop();
}
