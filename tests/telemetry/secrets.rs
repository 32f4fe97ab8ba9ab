//! Marked secrets are sent in every field that takes one, in valid and invalid calls.

use serde_json::{Value, json};

use super::scrape::get;
use crate::common::{Client, Http, Options, Target, base64, dhchap_key, free_port, tcp_path};

/// Part of every secret.
const MARK: &str = "HUSH";
const PSK: &str = "NVMeTLSkey-1:01:SFVTSEhVU0hIVVNISFVTSEhVU0hIVVNISFVTSEhVU0iVzQw6:";
const KEY: &str = "HUSH-0123456789abcdef-0123456789";
const BEARER: &str = "Bearer HUSH-token";

/// Returns the strings that must not appear: the mark, and the secrets in other encodings.
fn traces() -> Vec<String> {
    let hex = |text: &str| text.bytes().map(|b| format!("{b:02x}")).collect::<String>();
    // SFVTSE is the base64 of "HUSH", as in the interchange format of a PSK.
    let mut all = vec![MARK.to_owned(), "SFVTSE".to_owned()];
    for secret in [PSK, KEY] {
        all.extend([
            base64(secret),
            hex(secret),
            format!("{:?}", secret.as_bytes()),
        ]);
    }
    all
}

fn check(what: &str, text: &str) {
    for trace in traces() {
        assert!(!text.contains(&trace), "{what} has {trace:?}:\n{text}");
    }
}

/// Makes calls over gRPC and HTTP, valid and malformed, and checks the responses.
async fn call(client: &Client, http: &Http, method: &str, route: &str, id: &str, object: Value) {
    let verb = method
        .strip_prefix("Create")
        .expect("the method creates an object");
    let snake: String = verb
        .chars()
        .enumerate()
        .map(|(at, c)| match c {
            c if c.is_uppercase() && at > 0 => format!("_{}", c.to_lowercase()),
            c => c.to_lowercase().to_string(),
        })
        .collect();
    let mut request = json!({});
    request[&snake] = object.clone();
    request[format!("{snake}_id")] = json!(id);
    if let Some((parent, _)) = route
        .rsplit_once('/')
        .filter(|(parent, _)| !parent.is_empty())
    {
        request["parent"] = json!(parent);
    }
    let answer = client.call(method, request).await;
    check(method, &format!("{answer:?}"));
    for (suffix, body) in [
        ("", object.to_string()),
        ("", object.to_string().replace("=\"", "\"")),
        ("", object.to_string().replace('}', "")),
        ("", format!("[{object}]")),
        (
            "",
            object
                .to_string()
                .replace("\"psk\"", "\"pskk\"")
                .replace("\"key\"", "\"keyy\""),
        ),
        ("?nonsense=1", object.to_string()),
    ] {
        let path = format!("/v1/{}{suffix}", route.trim_start_matches('/'));
        let headers = [("authorization", BEARER), ("cookie", BEARER)];
        let answer = http.send("POST", &path, &headers, body.into()).await;
        check(&path, &format!("{} {}", answer.status, answer.body));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn secrets_are_in_no_log_answer_or_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let audit = dir.path().join("audit.log");
    let args = ["--log-level", "debug", "--audit-log"].map(str::to_owned);
    let args = args.into_iter().chain([audit.display().to_string()]);
    let mut target = Target::start_with(Options::default().args(args)).await;
    let client = target.client().await;
    let http = Http(target.http);
    let volume = json!({ "block_size": 512, "blocks_count": 8192 });
    let malloc = json!({ "malloc_volume_id": "m", "malloc_volume": volume });
    client.ok("CreateMallocVolume", malloc).await;

    for (id, psk) in [("good", PSK), ("bad", "HUSH"), ("long", &PSK.repeat(40))] {
        let nqn = format!("nqn.2022-09.io.spdk:{id}");
        let host = "nqn.2022-09.io.spdk:host";
        let spec = json!({ "nqn": nqn, "hostnqn": host, "psk": base64(psk) });
        let object = json!({ "spec": spec });
        call(
            &client,
            &http,
            "CreateNvmeSubsystem",
            "/nvmeSubsystems",
            id,
            object,
        )
        .await;
        for secret in ["psk", "dhchap_key", "dhchap_ctrlr_key"] {
            let mut object = json!({ "hostnqn": format!("{nqn}-{}", secret.replace('_', "-")) });
            object[secret] = base64(psk).into();
            let hosts = "nvmeSubsystems/good/nvmeHosts";
            call(&client, &http, "CreateNvmeHost", hosts, id, object).await;
        }
        let remote =
            json!({ "multipath": "NVME_MULTIPATH_DISABLE", "tcp": { "psk": base64(psk) } });
        let kind = "CreateNvmeRemoteController";
        call(&client, &http, kind, "/nvmeRemoteControllers", id, remote).await;
        let mut path = tcp_path(free_port(), &nqn);
        path["fabrics"]["hostnqn"] = json!(host);
        let parent = format!("nvmeRemoteControllers/{id}/nvmePaths");
        call(&client, &http, "CreateNvmePath", &parent, "p", path).await;
        for secret in ["dhchap_key", "dhchap_ctrlr_key"] {
            let mut object = json!({ "hostnqn": host, "dhchap_key": base64(dhchap_key(1)) });
            object[secret] = base64(psk).into();
            let parent = format!("nvmeRemoteControllers/{id}/nvmeCredentials");
            call(&client, &http, "CreateNvmeCredential", &parent, "c", object).await;
        }
    }
    for (id, key) in [("good", KEY), ("short", "HUSH"), ("long", &KEY.repeat(40))] {
        for cipher in ["ENCRYPTION_TYPE_AES_XTS_128", "ENCRYPTION_TYPE_AES_XTS_256"] {
            let refer = "volumes/m";
            let object = json!({ "volume_name_ref": refer, "key": base64(key), "cipher": cipher });
            let kind = "CreateEncryptedVolume";
            call(&client, &http, kind, "/encryptedVolumes", id, object).await;
        }
    }
    for list in [
        "ListNvmeSubsystems",
        "ListNvmeRemoteControllers",
        "ListEncryptedVolumes",
    ] {
        let listed = client.call(list, json!({})).await;
        check(list, &format!("{listed:?}"));
    }
    for path in ["/metrics", "/", "/v1/objects", "/v1/hosts"] {
        let (status, text) = get(&target, path, "*/*").await;
        assert_eq!(status, 200, "{path}");
        check(path, &text);
    }
    target.stop_with(rustix::process::Signal::TERM);
    let audit = std::fs::read_to_string(&audit).expect("the audit log");
    assert!(audit.contains("CreateEncryptedVolume") && audit.contains("CreateNvmeSubsystem"));
    assert!(target.log().contains("opi_spdk::calls"), "{}", target.log());
    check("the audit log", &audit);
    check("the log", &target.log());
}
