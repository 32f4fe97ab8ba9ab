//! Keys that the server makes: good for their host, and told once.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use opi_spdk::api::own::WatchEventsRequest;
use opi_spdk::api::own::object_service_client::ObjectServiceClient;
use serde_json::{Value, json};
use tonic::Code;

use super::{ALICE, Export, host, hosts_of, key_file, reads};
use crate::common::{Http, Initiator, Options, Target};

const NAME: &str = "nvmeSubsystems/s/nvmeHosts/alice";

/// Its creation, and how often it gets keys.
const CHANGES: usize = 4;

/// The keys of an answer, whose fields are named so.
pub fn keys(answer: &Value, fields: [&str; 3]) -> [String; 3] {
    fields.map(|field| {
        let key = answer[field].as_str().unwrap_or_default();
        String::from_utf8(STANDARD.decode(key).expect("base64")).expect("text")
    })
}

/// All forms in which a key could stand somewhere.
pub fn forms(key: &str) -> Vec<Vec<u8>> {
    let part = key.split(':').nth(2).expect("three parts");
    let bytes = STANDARD.decode(part).expect("base64")[..32].to_vec();
    let hex = bytes.iter().map(|byte| format!("{byte:02x}"));
    let texts = [part.to_owned(), STANDARD.encode(key), hex.collect()];
    texts.into_iter().map(Vec::from).chain([bytes]).collect()
}

/// What a command of the program writes.
pub fn output_of(args: &[&str]) -> Vec<u8> {
    let command = Command::new(env!("CARGO_BIN_EXE_opi-spdk"))
        .args(args)
        .output();
    let output = command.expect("the program starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    output.stdout
}

/// All events so far.
async fn events_of(target: &Target) -> String {
    let address = format!("http://{}", target.grpc);
    let service = ObjectServiceClient::connect(address).await;
    let all = WatchEventsRequest {
        after_revision: Some(0),
    };
    let watch = service.expect("it serves").watch_events(all).await;
    let mut stream = watch.expect("it watches").into_inner();
    let mut told = String::new();
    // The stream has no end; what is of before has come once the last change of the host has.
    while told.matches("nvmeHosts/alice").count() < CHANGES {
        let next = tokio::time::timeout(super::SOON, stream.message()).await;
        let event = next.expect("in time").expect("it goes on");
        write!(told, "{:?}", event.expect("no end")).expect("a string");
    }
    told
}

/// A host with these keys, in files of this tag.
pub fn with(target: &Target, host: &Initiator, tag: &str, keys: &[String; 3]) -> Initiator {
    let [psk, dhchap, ctrlr] = keys;
    let file = |what: &str, key: &str| key_file(target, &format!("{what}-{tag}"), key);
    let host = host.clone().with_psk(&file("psk", psk));
    let host = host.with_dhchap(&file("dhchap", dhchap));
    host.with_dhchap_ctrlr(&file("ctrlr", ctrlr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_the_server_makes_are_in_one_answer_and_nowhere_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let audit = dir.path().join("audit.log");
    let args = ["--log-level", "debug", "--audit-log"].map(str::to_owned);
    let args = args.into_iter().chain([audit.display().to_string()]);
    let mut target = Target::start_with(Options::default().args(args)).await;
    let client = target.client().await;
    let http = Http(target.http);
    let subsystem = crate::common::subsystem(&client, "s", json!({})).await;
    let hosts = hosts_of(&client);
    hosts
        .created(&subsystem, "alice", host(ALICE, "", "", ""))
        .await;

    // None to replace; one that would be of no use; and nobody to have them.
    for (object, field) in [
        (json!({ "name": NAME }), "psk"),
        (
            json!({ "name": NAME, "dhchap_ctrlr_key": true }),
            "dhchap_key",
        ),
        (json!({ "name": "nonsense" }), "name"),
    ] {
        let refused = client
            .fails("RekeyNvmeHost", object, Code::InvalidArgument)
            .await;
        assert!(refused.message().starts_with(field), "{refused}");
    }
    let absent = json!({ "name": "nvmeSubsystems/s/nvmeHosts/bob", "psk": true });
    client.fails("RekeyNvmeHost", absent, Code::NotFound).await;

    let all = json!({ "name": NAME, "psk": true, "dhchap_key": true, "dhchap_ctrlr_key": true });
    let answer = client.ok("RekeyNvmeHost", all).await;
    let first = keys(&answer, ["psk", "dhchap_key", "dhchap_ctrlr_key"]);
    assert!(first[0].starts_with("NVMeTLSkey-1:01:"), "the form");
    assert!(
        first[1..].iter().all(|key| key.starts_with("DHHC-1:01:")),
        "the form"
    );
    let export = Export {
        port: crate::common::tcp_controller(&client, &subsystem).await.1,
        subsystem: subsystem.clone(),
        nqn: crate::common::nqn_of("s"),
        client: target.client().await,
    };
    let volume = crate::common::malloc(&client, "volume", 16).await;
    crate::common::namespace(&client, &subsystem, &volume, json!({})).await;
    let alice = export.host(ALICE);
    let with_first = with(&target, &alice, "first", &first);
    reads(&target, &with_first)
        .await
        .expect("with what was made");

    // Over HTTP, and without saying which: those that it has.
    let path = format!("/v1/{NAME}:rekey");
    let answer = http.send("POST", &path, &[], b"{}".to_vec()).await;
    assert_eq!(answer.status, 200, "{}", answer.status);
    let second = keys(&answer.body, ["psk", "dhchapKey", "dhchapCtrlrKey"]);
    assert!(
        first
            .iter()
            .all(|key| !second.contains(key) && !key.is_empty())
    );
    let with_second = with(&target, &alice, "second", &second);
    reads(&target, &with_second)
        .await
        .expect("with the new ones");
    reads(&target, &with_first)
        .await
        .expect_err("with the old ones");
    // One alone; the others stay.
    let answer = client
        .ok("RekeyNvmeHost", json!({ "name": NAME, "dhchap_key": true }))
        .await;
    let [psk, dhchap, ctrlr] = keys(&answer, ["psk", "dhchap_key", "dhchap_ctrlr_key"]);
    assert_eq!([psk, ctrlr], ["", ""]);
    let third = [second[0].clone(), dhchap, second[2].clone()];
    reads(&target, &with(&target, &alice, "third", &third))
        .await
        .expect("with one that is new");

    // Nowhere else.
    let listed = client.ok("ListNvmeHosts", json!({ "parent": subsystem }));
    let listed = listed.await.to_string();
    let objects = client.ok("ListObjects", json!({})).await.to_string();
    let got = hosts.get(NAME).await.expect("it is there").to_string();
    let bundle = target.scratch().join("bundle").display().to_string();
    let [grpc, http] = [target.grpc, target.http].map(|address| address.to_string());
    output_of(&["bundle", "--addr", &grpc, "--http-addr", &http, &bundle]);
    let bundled = ruzstd::decoding::StreamingDecoder::new(File::open(bundle).expect("a file"));
    let mut unpacked = Vec::new();
    let read = bundled.expect("zstd").read_to_end(&mut unpacked);
    assert!(read.expect("whole") > 0);
    let mut said = vec![
        ("get", got.into_bytes()),
        ("list", listed.into_bytes()),
        ("objects", objects.into_bytes()),
        ("events", events_of(&target).await.into_bytes()),
        ("metrics", crate::common::metrics(target.http).into_bytes()),
        ("bundle", unpacked),
    ];
    target.stop_with(rustix::process::Signal::TERM);
    said.push(("log", target.log().into_bytes()));
    let audited = std::fs::read_to_string(&audit).expect("it is there");
    assert!(audited.contains("RekeyNvmeHost"), "{audited}");
    said.push(("audit log", audited.into_bytes()));
    let state = target.scratch().join("state");
    let place = state.display().to_string();
    let exported = output_of(&["state", "export", "--state-dir", &place]);
    assert!(
        String::from_utf8_lossy(&exported).contains(NAME),
        "the export"
    );
    said.push(("export", exported));
    let files = state.read_dir().expect("a directory");
    let files = files.map(|file| std::fs::read(file.expect("a file").path()).expect("readable"));
    let before = said.len();
    said.extend(files.map(|bytes| ("state", bytes)));
    assert!(said.len() > before, "the state");
    for key in [&first[..], &second, &third].concat() {
        for form in forms(&key) {
            for (what, bytes) in &said {
                let found = bytes.windows(form.len()).any(|part| part == form);
                assert!(!found, "a key is in: {what}");
            }
        }
    }
}
