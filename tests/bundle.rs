//! `opi-spdk bundle`: the content of the archive, and the absence of secrets.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use common::{Options, Target, base64, malloc};
use serde_json::{Value, json};

/// Part of every secret.
const MARK: &str = "HUSH";
/// Contains "HUSH" repeatedly, in base64.
const PSK: &str = "NVMeTLSkey-1:01:SFVTSEhVU0hIVVNISFVTSEhVU0hIVVNISFVTSEhVU0iVzQw6:";
const KEY: &str = "HUSH-0123456789abcdef-0123456789";

fn bundle(grpc: &str, http: &str, file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_opi-spdk"))
        .args([
            "bundle",
            "--addr",
            grpc,
            "--http-addr",
            http,
            "--timeout",
            "5",
        ])
        .arg(file)
        .output()
        .expect("the program starts")
}

/// Unpacks the archive; returns the files by name, without the common directory.
fn unpacked(file: &Path) -> BTreeMap<String, String> {
    let compressed = std::fs::File::open(file).expect("the archive exists");
    let decoder = ruzstd::decoding::StreamingDecoder::new(compressed).expect("zstd");
    let mut archive = tar::Archive::new(decoder);
    let mut found = BTreeMap::new();
    for entry in archive.entries().expect("tar") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a path").display().to_string();
        let name = name.strip_prefix("opi-spdk/").expect("one directory");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("whole");
        let content = String::from_utf8_lossy(&content).into_owned();
        found.insert(name.to_owned(), content);
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_is_complete_and_has_no_secrets() {
    let target = Target::start_with(Options::default()).await;
    let client = target.client().await;
    let volume = malloc(&client, "disk", 8).await;
    let host = "nqn.2022-09.io.spdk:host";
    let spec = json!({"nqn": "nqn.2022-09.io.spdk:s", "hostnqn": host, "psk": base64(PSK)});
    let subsystem = json!({"nvme_subsystem_id": "s", "nvme_subsystem": {"spec": spec}});
    client.ok("CreateNvmeSubsystem", subsystem).await;
    let remote = json!({"multipath": "NVME_MULTIPATH_DISABLE", "tcp": {"psk": base64(PSK)}});
    let remote = json!({"nvme_remote_controller_id": "r", "nvme_remote_controller": remote});
    client.ok("CreateNvmeRemoteController", remote).await;
    let encrypted = json!({
        "volume_name_ref": volume, "key": base64(KEY), "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
    });
    let encrypted = json!({"encrypted_volume_id": "e", "encrypted_volume": encrypted});
    client.ok("CreateEncryptedVolume", encrypted).await;

    let file = target.scratch().join("report.tar.zst");
    let (grpc, http) = (target.grpc.to_string(), target.http.to_string());
    let out = bundle(&grpc, &http, &file);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{error}");
    let mode = file
        .metadata()
        .expect("the archive exists")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let found = unpacked(&file);
    let json = |name: &str| -> Vec<Value> { serde_json::from_str(&found[name]).expect("JSON") };
    let has = |name: &str, field: &str, value: &str| {
        let all = json(name);
        let is = all.iter().any(|one| one[field] == value);
        assert!(is, "{name} has no {value}: {all:?}");
    };
    for kind in [
        "MallocVolume",
        "NvmeSubsystem",
        "NvmeRemoteController",
        "EncryptedVolume",
    ] {
        has("records.json", "kind", kind);
        has("objects.json", "kind", kind);
    }
    has("events.json", "object", "encryptedVolumes/e");
    assert!(json("hosts.json").is_empty());
    let own = env!("CARGO_PKG_VERSION");
    let version = &found["version.txt"];
    let is_labelled = version.starts_with(&format!("server: {own} with SPDK v"))
        && version.contains(&format!("\nclient: {own}\n"));
    assert!(is_labelled, "{version}");
    assert!(found["metrics.txt"].contains("opi_spdk_reactor_busy_seconds_total"));
    assert!(found["machine/kernel.txt"].contains("Linux"));
    assert!(found["machine/memory.txt"].contains("HugePages_Total"));
    let process = format!("process-{}", target.pid().as_raw_nonzero());
    let settings = &found[&format!("{process}/settings.txt")];
    assert!(
        settings.contains(&format!("--grpc-addr {grpc}")),
        "{settings}"
    );
    let threads = &found[&format!("{process}/threads.txt")];
    assert!(
        threads.contains("reactor") && threads.contains(" state "),
        "{threads}"
    );

    // No secret in any encoding.
    let hex = |text: &str| text.bytes().map(|b| format!("{b:02x}")).collect::<String>();
    let mut traces = vec![MARK.to_owned(), "SFVTSE".to_owned()];
    for secret in [PSK, KEY] {
        traces.extend([
            base64(secret),
            hex(secret),
            format!("{:?}", secret.as_bytes()),
        ]);
    }
    for (name, content) in &found {
        for trace in &traces {
            assert!(!content.contains(trace), "{name} has {trace:?}:\n{content}");
        }
    }

    // An existing file is not overwritten.
    let before = std::fs::read(&file).expect("the archive exists");
    let out = bundle(&grpc, &http, &file);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{error}");
    assert!(error.contains("is not overwritten"), "{error}");
    assert_eq!(std::fs::read(&file).expect("the archive exists"), before);

    // An unreachable server is reported; everything else is collected.
    let dir = tempfile::tempdir().expect("a directory");
    target.stop();
    let file = dir.path().join("away.tar.zst");
    let out = bundle(&grpc, &http, &file);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let found = unpacked(&file);
    let problems = &found["problems.txt"];
    assert!(
        problems.contains(&grpc) && problems.contains("metrics: "),
        "{problems}"
    );
    assert!(found.contains_key("machine/hugepages.txt"));
    let version = &found["version.txt"];
    assert!(version.starts_with("server: unknown: "), "{version}");

    // A server of another version.
    let other = other_version();
    let file = dir.path().join("other.tar.zst");
    let out = bundle(&grpc, &other, &file);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{error}");
    let found = unpacked(&file);
    let expected = format!("server: 99.0.1 with SPDK v98.05\nclient: {own}\n");
    let version = &found["version.txt"];
    assert!(version.starts_with(&expected), "{version}");
}

/// Serves the metrics of a server of another version once; returns the address.
fn other_version() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        // A connection that is closed with bytes unread is reset, and its answer lost.
        let lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        assert!(request[0].starts_with("GET /metrics"), "{request:?}");
        let text = "opi_spdk_build_info{version=\"99.0.1\",spdk=\"SPDK v98.05\"} 1\n";
        let length = text.len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}");
        stream.write_all(answer.as_bytes()).expect("an answer");
    });
    address
}
