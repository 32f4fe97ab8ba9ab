//! Marked secrets are sent in every field that takes one, in valid and invalid calls. The fields come from the
//! descriptors, so that those of a new kind are covered.

use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::Span;
use opi_spdk::api::own::WatchEventsRequest;
use opi_spdk::api::own::object_service_client::ObjectServiceClient;
use prost_reflect::{Kind, MessageDescriptor};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::kinds::{IMPLEMENTED, Lab, Place};
use crate::common::{
    Browser, Client, Collector, Http, Target, base64, dhchap_key, dhchap_of, eventually,
    exporting_to, free_port, get_text, has_behaviour, kind_of, name_of, tcp_path,
};

/// Part of every secret.
const MARK: &str = "HUSH";
const PSK: &str = "NVMeTLSkey-1:01:SFVTSEhVU0hIVVNISFVTSEhVU0hIVVNISFVTSEhVU0iVzQw6:";
const KEY: &str = "HUSH-0123456789abcdef-0123456789";
const BEARER: &str = "Bearer HUSH-token";
/// Deadline for the last event.
const SOON: Duration = Duration::from_secs(10);
/// Deadline for the page on a busy machine.
const PAGE: Duration = Duration::from_secs(30);

/// Returns a valid DH-HMAC-CHAP key.
fn dhchap() -> String {
    let mut key = [0; 32];
    for (byte, of) in key.iter_mut().zip(MARK.bytes().cycle()) {
        *byte = of;
    }
    dhchap_of(key)
}

/// Returns the strings that must not appear: the mark, and the secrets in other encodings.
fn forms() -> Vec<String> {
    let hex = |text: &str| text.bytes().map(|b| format!("{b:02x}")).collect::<String>();
    // SFVTSE is the base64 of "HUSH", as in the interchange format of a key.
    let mut all = vec![MARK.to_owned(), "SFVTSE".to_owned()];
    for secret in [PSK, KEY, &dhchap()] {
        all.extend([
            base64(secret),
            hex(secret),
            format!("{:?}", secret.as_bytes()),
        ]);
    }
    all
}

fn check(what: &str, text: &str) {
    for form in forms() {
        assert!(!text.contains(&form), "{what} has {form:?}:\n{text}");
    }
}

/// Returns the paths of the fields of a message that take bytes: all of them are keys.
fn secrets_of(message: &MessageDescriptor) -> Vec<String> {
    let mut paths = Vec::new();
    for field in message.fields() {
        if has_behaviour(&field, "OUTPUT_ONLY") {
            continue;
        }
        match field.kind() {
            Kind::Bytes => paths.push(field.name().to_owned()),
            Kind::Message(inner) if !inner.full_name().starts_with("google.") => {
                let inner = secrets_of(&inner).into_iter();
                paths.extend(inner.map(|path| format!("{}.{path}", field.name())));
            }
            _ => {}
        }
    }
    paths
}

fn with(mut object: Value, path: &str, secret: &str) -> Value {
    let mut at = &mut object;
    for part in path.split('.') {
        at = &mut at[part];
    }
    *at = base64(secret).into();
    object
}

/// Creates an object with the secret in this field, reads and changes it, over gRPC and HTTP, also by malformed
/// requests; checks all responses.
async fn call(place: &Place, http: &Http, n: u16, path: &str, secret: &str) {
    let resource = &place.resource;
    let (id, kind) = (place.id(n), place.kind.message);
    let object = with(place.sample(n).await, path, secret);
    let told = |verb: &str, answer: &str| check(&format!("{verb}{kind} with {path}"), answer);

    let created = resource.create(&place.parent, &id, object.clone()).await;
    told("Create", &format!("{created:?}"));
    let name = place.name(&id);
    let masks: [Option<&[&str]>; 3] = [None, Some(&["*"]), Some(&[path])];
    for mask in masks {
        let updated = resource.update(&name, object.clone(), mask).await;
        told("Update", &format!("{updated:?}"));
    }
    for verb in ["Get", "Stats", "Delete"] {
        let request = json!({ "name": name });
        let answer = resource.client.call(&resource.method(verb), request).await;
        told(verb, &format!("{answer:?}"));
        let list = resource.list_request(&place.parent, 0, "");
        let listed = resource.client.call(&resource.method("List"), list).await;
        told("List", &format!("{listed:?}"));
    }

    let (collection, _) = name.rsplit_once('/').expect("a collection");
    let text = object.to_string();
    let field = path.rsplit('.').next().unwrap_or(path);
    for (suffix, body) in [
        ("", text.clone()),
        ("", text.replace("=\"", "\"")),
        ("", text.replace('}', "")),
        ("", format!("[{text}]")),
        ("", text.replace(field, &format!("{field}x"))),
        ("?nonsense=1", text),
    ] {
        let path = format!("/v1/{collection}{suffix}");
        let headers = [("authorization", BEARER), ("cookie", BEARER)];
        let answer = http.send("POST", &path, &headers, body.into()).await;
        told("POST", &format!("{} {}", answer.status, answer.body));
    }
    // Also where the calls over HTTP have created objects with an ID of the server's choice.
    for left in resource.names(&place.parent).await {
        let deleted = resource.delete(&left).await;
        told("Delete", &format!("{deleted:?}"));
    }
}

/// Replaces keys by those that the server makes, and keeps the marked ones as old keys.
async fn rekey(place: &Place, n: u16) {
    let key = dhchap();
    let object = with(place.sample(n).await, "dhchap_key", &key);
    let (hosts, id) = (&place.resource, place.id(n));
    let name = name_of(&hosts.created(&place.parent, &id, object).await);
    let later = std::time::SystemTime::now() + Duration::from_secs(3600);
    let later = prost_types::Timestamp::from(later).to_string();
    let request = json!({ "name": name, "dhchap_key": true, "old_keys_until": later });
    let answer = place.resource.client.call("RekeyNvmeHost", request).await;
    check("RekeyNvmeHost", &format!("{answer:?}"));
    assert!(answer.is_ok(), "{answer:?}");
    place.resource.deleted(&name).await;
}

/// Connects with marked keys to a peer that is not there.
async fn connect(client: &Client) {
    let host = "nqn.2022-09.io.spdk:host";
    let remote = json!({ "multipath": "NVME_MULTIPATH_DISABLE", "tcp": { "psk": base64(PSK) } });
    let request = json!({ "nvme_remote_controller_id": "away", "nvme_remote_controller": remote });
    let answer = client.call("CreateNvmeRemoteController", request).await;
    check("CreateNvmeRemoteController", &format!("{answer:?}"));
    let parent = "nvmeRemoteControllers/away";
    let object = json!({
        "hostnqn": host,
        "dhchap_key": base64(dhchap()),
        "dhchap_ctrlr_key": base64(dhchap_key(1)),
    });
    let request = json!({ "parent": parent, "nvme_credential_id": "c", "nvme_credential": object });
    let answer = client.call("CreateNvmeCredential", request).await;
    check("CreateNvmeCredential", &format!("{answer:?}"));
    let mut path = tcp_path(free_port(), "nqn.2022-09.io.spdk:away");
    path["fabrics"]["hostnqn"] = json!(host);
    let request = json!({ "parent": parent, "nvme_path_id": "p", "nvme_path": path });
    let answer = client.call("CreateNvmePath", request).await;
    check("CreateNvmePath", &format!("{answer:?}"));
}

/// Returns all events until the last object that this test creates.
async fn events_of(client: &Client) -> String {
    let all = WatchEventsRequest {
        after_revision: Some(0),
    };
    let mut service = ObjectServiceClient::new(client.channel());
    let watch = service.watch_events(all).await.expect("it watches");
    let (mut stream, mut told) = (watch.into_inner(), String::new());
    while !told.contains("nullVolumes/last") {
        let next = tokio::time::timeout(SOON, stream.message()).await;
        let event = next.expect("in time").expect("it goes on");
        told.push_str(&format!("{:?}", event.expect("no end")));
    }
    told
}

/// Returns the text of the page once it shows the last object that this test creates and the events.
async fn page_of(target: &Target) -> String {
    let mut browser = Browser::start(1280, 900).await;
    browser.open(&format!("http://{}/", target.http)).await;
    let text = eventually("the page shows all", PAGE, async || {
        let text = browser.value("document.body?.innerText ?? ''").await;
        let text = text.as_str().unwrap_or_default().to_owned();
        let has = |part: &str| text.contains(part);
        (has("nullVolumes/last") && has("nvmeRemoteControllers/away")).then_some(text)
    });
    let text = text.await;
    // Also what is not shown but in the page, such as titles.
    let markup = browser.value("document.documentElement.outerHTML").await;
    browser.close().await;
    text + markup.as_str().expect("a text")
}

/// Whether the log has the line of this call at the level `debug`, in either format.
fn is_read_logged(log: &str, method: &str, object: &str) -> bool {
    let parts = ["DEBUG", "opi_spdk::calls", method, object];
    log.lines()
        .any(|line| parts.iter().all(|part| line.contains(part)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn secrets_are_in_no_log_answer_event_trace_or_error() {
    for format in ["text", "json"] {
        secrets_are_hidden(format).await;
    }
}

async fn secrets_are_hidden(format: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let audit = dir.path().join("audit.log");
    let file = audit.display().to_string();
    let args = [
        "--log-level",
        "debug",
        "--log-format",
        format,
        "--audit-log",
        &file,
    ];
    let (collector, address) = Collector::start().await;
    // Room for the spans of all calls, so that none is missing from the search.
    let options = exporting_to(address).variable("OTEL_BSP_MAX_QUEUE_SIZE", "100000");
    let mut target = Target::start_with(options.args(args)).await;
    let client = target.client().await.with_token("HUSH-token");
    let http = Http(target.http);

    let mut fields = 0;
    for kind in IMPLEMENTED {
        let paths = secrets_of(&kind_of(kind.message));
        if paths.is_empty() {
            continue;
        }
        let lab = Lab {
            target: target.grpc,
            peer: target.grpc,
            dir: dir.path().to_owned(),
        };
        let mut place = Place::new(lab, kind, &kind.message.to_lowercase()).await;
        place.resource.client = client.clone();
        let secrets = [PSK, KEY, &dhchap(), MARK, &PSK.repeat(40)].map(str::to_owned);
        let calls = paths
            .iter()
            .flat_map(|path| secrets.iter().map(move |of| (path, of)));
        for (n, (path, secret)) in (0..).zip(calls) {
            call(&place, &http, n, path, secret).await;
        }
        if kind.message == "NvmeHost" {
            rekey(&place, 999).await;
        }
        fields += paths.len();
        place.clean().await;
    }
    assert!(fields >= 8, "{fields} fields of bytes");
    connect(&client).await;
    let last = json!({ "block_size": 512, "blocks_count": 64 });
    let last = json!({ "null_volume_id": "last", "null_volume": last });
    client.ok("CreateNullVolume", last).await;

    check("the events", &events_of(&client).await);
    for path in ["/metrics", "/", "/v1/objects", "/v1/hosts"] {
        let (status, text) = get_text(&target, path, "*/*").await;
        assert_eq!(status, 200, "{path}");
        check(path, &text);
    }
    check("the page", &page_of(&target).await);
    collector.call("volumes/last").await;
    target.stop_with(Signal::TERM);
    let spans = collector.spans();
    let audit = std::fs::read_to_string(&audit).expect("the audit log");
    for method in ["CreateEncryptedVolume", "UpdateNvmeHost", "RekeyNvmeHost"] {
        assert!(audit.contains(method), "{method}: {audit}");
        let is_span = |span: &Span| span.name.ends_with(&format!("/{method}"));
        assert!(spans.iter().any(is_span), "no span of {method}");
    }
    // The search below is of a log that has the reads too.
    let log = target.log();
    for (method, object) in [
        ("/GetEncryptedVolume", "volumes/encryptedvolume-"),
        ("/GetNvmeHost", "/nvmeHosts/nvmehost-"),
    ] {
        let is_logged = is_read_logged(&log, method, object);
        assert!(is_logged, "no line of {method} {object}:\n{log}");
    }
    check("the audit log", &audit);
    check("the traces", &format!("{:?}", collector.received()));
    check("the log", &log);
}
