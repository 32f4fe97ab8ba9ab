//! Keys that the server makes: good for their host, and told once.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tonic::Code;

use super::{ALICE, Export, host, hosts_of, key_file, reads};
use crate::common::{Http, Initiator, Options, Target};

const NAME: &str = "nvmeSubsystems/s/nvmeHosts/alice";

/// The keys of an answer, whose fields are named so.
fn keys(answer: &Value, fields: [&str; 3]) -> [String; 3] {
    fields.map(|field| {
        let key = answer[field].as_str().unwrap_or_default();
        String::from_utf8(STANDARD.decode(key).expect("base64")).expect("text")
    })
}

/// All forms in which a key could stand somewhere.
fn forms(key: &str) -> Vec<String> {
    let part = key.split(':').nth(2).expect("three parts");
    let bytes = STANDARD.decode(part).expect("base64");
    let hex = bytes[..32].iter().map(|byte| format!("{byte:02x}"));
    vec![part.to_owned(), STANDARD.encode(key), hex.collect()]
}

fn with(target: &Target, host: &Initiator, tag: &str, keys: &[String; 3]) -> Initiator {
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
    let state = target
        .scratch()
        .parent()
        .map(|dir| dir.join("state"))
        .filter(|dir| dir.is_dir());
    let mut said = vec![
        (
            "get",
            hosts.get(NAME).await.expect("it is there").to_string(),
        ),
        (
            "list",
            client
                .ok("ListNvmeHosts", json!({ "parent": subsystem }))
                .await
                .to_string(),
        ),
        (
            "objects",
            client.ok("ListObjects", json!({})).await.to_string(),
        ),
        ("metrics", crate::common::metrics(target.http)),
    ];
    target.stop_with(rustix::process::Signal::TERM);
    said.push(("log", target.log()));
    said.push((
        "audit log",
        std::fs::read_to_string(&audit).expect("it is there"),
    ));
    assert!(said[5].1.contains("RekeyNvmeHost"), "{}", said[5].1);
    for file in state
        .iter()
        .flat_map(|dir| dir.read_dir().expect("a directory"))
    {
        let file = std::fs::read(file.expect("a file").path()).unwrap_or_default();
        said.push(("state", String::from_utf8_lossy(&file).into_owned()));
    }
    for key in [&first[..], &second, &third].concat() {
        for form in forms(&key) {
            for (what, text) in &said {
                assert!(!text.contains(&form), "a key is in: {what}");
            }
        }
    }
}
