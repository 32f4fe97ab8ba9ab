//! The page with thousands of objects: it loads, scrolls and filters as with few.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::shows;
use crate::common::{Browser, Http, Target};

/// Upper bound for the reaction to a key, a click or a scroll; an idle machine needs a fraction of it.
const ANSWER: Duration = Duration::from_secs(5);

/// Upper bound of a task on the page's main thread, as the browser reports, ms.
const TASK: f64 = 5_000.0;

/// Records the longest task above 50 ms, earlier ones included.
const TASKS: &str = "window.longest = 0; new PerformanceObserver(list => { \
    for (const of of list.getEntries()) window.longest = Math.max(window.longest, of.duration) \
    }).observe({ type: 'longtask', buffered: true })";

/// Lists name, kind and revision of all objects from the API.
async fn told(target: &Target) -> Value {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/objects?pageSize=250&pageToken={token}");
        let page = Http(target.http).send("GET", &path, &[], vec![]).await.body;
        let objects = page["objects"].as_array().expect("a list");
        all.extend(
            objects
                .iter()
                .map(|of| json!([of["typedName"], of["kind"], of["revision"]])),
        );
        match page["nextPageToken"].as_str() {
            Some(next) if !next.is_empty() => token = next.to_owned(),
            _ => return json!(all),
        }
    }
}

/// Creates volumes with the command line, from one file.
async fn create(target: &Target, number: usize) {
    let volume = |n| format!(r#"{{"name":"nullVolumes/v{n}","blockSize":512,"blocksCount":"64"}}"#);
    let objects: Vec<String> = (0..number).map(volume).collect();
    let file = target.scratch().join("objects.json");
    std::fs::write(&file, format!("[{}]", objects.join(","))).expect("written");
    let out = tokio::process::Command::new(env!("CARGO_BIN_EXE_opi-spdk"))
        .args(["create", "--addr", &target.grpc.to_string(), "-f"])
        .arg(&file)
        .output()
        .await
        .expect("the program starts");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
    let told = String::from_utf8_lossy(&out.stdout).lines().count();
    assert_eq!(told, number, "each created object is printed");
}

/// Measures the creation of the objects, the time until all are shown, and the longest reactions to
/// filtering and scrolling.
async fn is_usable_with(number: usize) {
    let target = Target::start().await;
    let begun = Instant::now();
    create(&target, number).await;
    let made = begun.elapsed();

    let mut browser = Browser::start(1280, 900).await;
    let begun = Instant::now();
    browser.open(&format!("http://{}/", target.http)).await;
    shows(
        &mut browser,
        "all objects",
        &format!("page.objects.size === {number} && document.querySelectorAll('.node').length > 0"),
    )
    .await;
    let loaded = begun.elapsed();
    browser.value(TASKS).await;
    let shown = "[...page.objects.values()].map(of => [of.name, of.kind, of.revision])";
    assert_eq!(browser.value(shown).await, told(&target).await);
    let nodes = browser
        .value("document.querySelectorAll('.node').length")
        .await;
    assert_eq!(nodes, 40, "the graph shows 40 nodes and counts the rest");
    let text = browser
        .value("document.getElementById('picture').innerText")
        .await;
    let more = format!("and {} more", number - 40);
    assert!(
        text.as_str().is_some_and(|text| text.contains(&more)),
        "{text}"
    );

    // While the page keeps reading the metrics.
    let (mut filtered, mut scrolled) = (Duration::ZERO, Duration::ZERO);
    for round in 0..8 {
        let wanted = format!("v{}", number - 1 - round);
        let begun = Instant::now();
        let found = browser
            .value(&format!(
                "(() => {{ const of = document.getElementById('filter'); of.value = '{wanted}'; \
                 of.dispatchEvent(new Event('input')); \
                 return [...document.querySelectorAll('.node')].map(of => of.dataset.name).join() }})()"
            ))
            .await;
        filtered = filtered.max(begun.elapsed());
        assert_eq!(found, format!("nullVolumes/{wanted}"));
        let begun = Instant::now();
        browser
            .value(
                "new Promise(done => { scrollTo(0, scrollY ? 0 : document.body.scrollHeight); \
             requestAnimationFrame(() => done(1)) })",
            )
            .await;
        scrolled = scrolled.max(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let longest = browser.value("window.longest").await;
    let longest = longest.as_f64().expect("a number");
    eprintln!(
        "{number} objects: made in {made:?}, shown after {loaded:?}, filter {filtered:?}, scrolling {scrolled:?}, \
         longest task {longest} ms"
    );
    assert!(longest < TASK, "{longest} ms");
    assert!(
        filtered < ANSWER && scrolled < ANSWER,
        "{filtered:?}, {scrolled:?}"
    );
    assert_eq!(browser.problems, Vec::<String>::new());
    browser.close().await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_usable_with_two_thousand_objects() {
    is_usable_with(2_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: by hand, for the figures of docs/observability.md"]
async fn the_page_is_usable_with_ten_thousand_objects() {
    is_usable_with(10_000).await;
}
