//! The web page in a real browser, with real I/O: the page shows what the API reports.

#[path = "../common/mod.rs"]
mod common;

mod colours;
mod many;
mod rates;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use common::{Browser, Fixture, Http, Options, Target};

const SOON: Duration = Duration::from_secs(30);

/// Polls a JavaScript condition until it holds; panics with `what` and the page's text when the timeout
/// expires.
async fn shows(browser: &mut Browser, what: &str, condition: &str) {
    let end = tokio::time::Instant::now() + SOON;
    // The expression throws until the page has loaded.
    let asked = format!("(() => {{ try {{ return {condition} }} catch {{ return false }} }})()");
    while browser.value(&asked).await != json!(true) {
        if tokio::time::Instant::now() > end {
            let text = browser.value("document.body.innerText").await;
            panic!("the page does not show {what}: {condition}\n{text}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn head_of(target: &Target, method: &str) -> String {
    let mut stream = TcpStream::connect(target.http).await.expect("connected");
    let request = format!("{method} / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("UTF-8");
    let (head, _) = answer.split_once("\r\n\r\n").expect("an answer");
    head.to_ascii_lowercase()
}

/// A volume whose backing file is deleted stays applied and is shown offline.
async fn a_failed_volume_is_shown_offline(target: &Target, browser: &mut Browser) {
    let file = target.scratch().join("disk");
    let made = std::fs::File::create(&file).and_then(|file| file.set_len(16 << 20));
    made.expect("a file");
    let client = target.client().await;
    common::Resource::new(&client, "AioVolume")
        .created("", "gone", json!({ "filename": file, "block_size": 512 }))
        .await;
    let state = "document.querySelector('.node[data-name=\"aioVolumes/gone\"]').dataset.state";
    // The page lists objects after an event: that of the creation is over, and the loss has its own.
    shows(browser, "the volume", &format!("{state} === 'applied'")).await;
    let device = format!(
        "document.querySelector('.node[data-name=\"device {}\"]').dataset.state",
        file.display()
    );
    shows(browser, "its file", &format!("{device} === 'outside'")).await;
    std::fs::remove_file(&file).expect("removed");
    shows(
        browser,
        "the condition of a volume whose file is gone",
        "/aioVolumes\\/gone\\s+offline/.test(document.getElementById('conditions').innerText)",
    )
    .await;
    shows(
        browser,
        "the offline volume in the graph",
        &format!("{state} === 'offline' && {device} === 'offline'"),
    )
    .await;
    let metrics = common::metrics(target.http);
    let told = "opi_spdk_object_offline_seconds{object=\"aioVolumes/gone\",reason=";
    assert!(metrics.contains(told), "no {told} in {metrics}");
}

/// A lost path is shown down, with the reason, and its remote controller offline.
async fn a_lost_path_is_shown_down(target: &Target, browser: &mut Browser) {
    let peer = Target::start_with(Options::default().beside(target)).await;
    let export = Fixture::tcp(&peer, 16).await;
    let client = target.client().await;
    let controller = common::remote_controller(&client, "away", "MULTIPATH").await;
    let path = common::tcp_path(export.port, &export.nqn);
    let paths = common::Resource::new(&client, "NvmePath");
    let made = paths.created(&controller, "p", path).await;
    let name = common::name_of(&made).replace('/', "\\/");
    let row = |is: &str| {
        let text = "document.getElementById('paths').innerText";
        format!("/{name}\\s+{is}/.test({text})")
    };
    shows(browser, "a path that works", &row("up")).await;
    peer.stop();
    shows(
        browser,
        "the path that has dropped",
        &row("down.*has dropped"),
    )
    .await;
    shows(
        browser,
        "its remote controller",
        "document.querySelector('.node[data-name=\"nvmeRemoteControllers/away\"]').dataset.state === 'offline'",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_what_the_api_reports_under_io() {
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 16).await;
    let get = async |path: &str| Http(target.http).send("GET", path, &[], vec![]).await.body;
    let head = head_of(&target, "GET").await;
    assert!(
        head.starts_with("http/1.1 200") && head.contains("text/html"),
        "{head}"
    );
    assert!(
        head.contains("content-security-policy: default-src 'none'"),
        "{head}"
    );
    assert!(!head.contains("unsafe"), "{head}");
    assert!(head_of(&target, "POST").await.starts_with("http/1.1 405"));

    let load = export.load(30).await;
    let mut browser = Browser::start(1280, 900).await;
    browser.open(&format!("http://{}/", target.http)).await;
    shows(
        &mut browser,
        "that it is live",
        "document.getElementById('link').dataset.state === 'live'",
    )
    .await;
    let volume = export.volume.replace("volumes/", "mallocVolumes/");
    let node = format!("document.querySelector('.node[data-name=\"{volume}\"]')");
    shows(
        &mut browser,
        "the volume's load",
        &format!("/ \\d.*\\/s/.test({node}?.innerText ?? '')"),
    )
    .await;

    // The totals: objects and hosts as in the API, and an I/O rate of the same order of magnitude.
    let objects = get("/v1/objects?pageSize=250").await;
    let number = objects["objects"].as_array().expect("a list").len();
    let tile = |name: &str| {
        format!(
            "[...document.querySelectorAll('#totals div')].find(of => of.innerText.startsWith('{name}'))\
             .querySelector('dd').innerText"
        )
    };
    shows(
        &mut browser,
        "all objects",
        &format!("{} === '{number}'", tile("Objects")),
    )
    .await;
    shows(
        &mut browser,
        "the host",
        &format!("Number({}) >= 1", tile("Host connections")),
    )
    .await;
    assert_eq!(browser.value(&tile("Pending")).await, "0");
    shows(
        &mut browser,
        "latencies",
        "[...document.querySelectorAll('figure')]\
         .filter(of => / (µs|ms|s)$/m.test(of.innerText)).length === 2",
    )
    .await;
    let shown = browser
        .value("page.load.volumes.values().next().value.iops")
        .await;
    let shown = shown.as_f64().expect("a number");
    let operations = async || {
        let stats = export.resource("MallocVolume").stats(&export.volume).await;
        let count = |field: &str| stats[field].as_f64().expect("a number");
        count("read_ops_count") + count("write_ops_count")
    };
    let (before, begun) = (operations().await, tokio::time::Instant::now());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let counted = (operations().await - before) / begun.elapsed().as_secs_f64();
    // The load itself varies on a busy machine.
    assert!(
        (0.2..5.0).contains(&(shown / counted)),
        "{shown} shown, {counted} counted"
    );

    // The details of an object, and its highlighted dependency path.
    browser.value(&format!("{node}.click()")).await;
    let told = get(&format!("/v1/{volume}")).await;
    shows(
        &mut browser,
        "the object",
        "document.querySelector('#detail pre')?.innerText.startsWith('{') === true",
    )
    .await;
    let text = browser
        .value("document.querySelector('#detail pre').innerText")
        .await;
    let text: Value = serde_json::from_str(text.as_str().expect("a text")).expect("JSON");
    assert_eq!(text, told);
    let on = browser
        .value("[...document.querySelectorAll('.node.on')].map(of => of.dataset.name)")
        .await;
    for name in [
        &volume,
        &export.namespace,
        &export.subsystem,
        &export.controller,
    ] {
        assert!(
            on.as_array().is_some_and(|on| on.contains(&json!(name))),
            "{name}: {on}"
        );
    }

    // Keyboard navigation.
    browser.value(&format!("{node}.focus()")).await;
    browser.press("ArrowLeft").await;
    let focused = browser.value("document.activeElement.dataset.name").await;
    assert_eq!(focused, json!(export.namespace));
    browser.press("Escape").await;
    shows(
        &mut browser,
        "nothing chosen",
        "document.querySelectorAll('.node.on').length === 0",
    )
    .await;

    colours::are_readable(&mut browser).await;

    // Events are shown at once.
    let client = target.client().await;
    let volumes = common::Resource::new(&client, "NullVolume");
    volumes
        .created(
            "",
            "new-one",
            json!({ "block_size": 512, "blocks_count": 64 }),
        )
        .await;
    shows(
        &mut browser,
        "the event",
        "document.getElementById('events').innerText.includes('nullVolumes/new-one')",
    )
    .await;
    shows(
        &mut browser,
        "the new object",
        "document.querySelector('.node[data-name=\"nullVolumes/new-one\"]') !== null",
    )
    .await;
    // After a reload, the page shows recent events, and hosts as in the API.
    browser.open(&format!("http://{}/", target.http)).await;
    shows(
        &mut browser,
        "an event of before",
        "document.getElementById('events').innerText.includes('nullVolumes/new-one')",
    )
    .await;
    let hosts = get("/v1/hosts").await;
    let address = hosts["hosts"][0]["address"].as_str().expect("an address");
    shows(
        &mut browser,
        "the host's address",
        &format!("document.getElementById('hosts').innerText.includes('{address}')"),
    )
    .await;
    a_failed_volume_is_shown_offline(&target, &mut browser).await;
    a_lost_path_is_shown_down(&target, &mut browser).await;

    // The filter leaves matching objects only.
    browser
        .value(
            "{ const of = document.getElementById('filter'); of.value = 'new-one'; \
         of.dispatchEvent(new Event('input')); }",
        )
        .await;
    shows(
        &mut browser,
        "one object",
        "document.querySelectorAll('.node').length === 1",
    )
    .await;

    browser.resize(360, 740).await;
    shows(
        &mut browser,
        "no part beyond a narrow screen",
        "document.documentElement.scrollWidth <= 360",
    )
    .await;
    assert_eq!(browser.problems, Vec::<String>::new());

    drop(load);
    target.stop();
    shows(
        &mut browser,
        "that the server is away",
        "document.getElementById('link').innerText.includes('away since')",
    )
    .await;
    browser.close().await;
}
