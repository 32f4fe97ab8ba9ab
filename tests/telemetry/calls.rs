//! Every call is logged, and every change is an entry of the audit log.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::Code;

use super::log::{audited, line, lines};
use crate::common::{Http, Options, Target, metrics};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CREATE: &str = "CreateNullVolume";

fn volume(id: &str) -> Value {
    json!({ "null_volume_id": id, "null_volume": { "block_size": 512, "blocks_count": 64 } })
}

fn is_hex(id: &Value) -> bool {
    let id = id.as_str().unwrap_or_default();
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_change_is_logged_with_peer_object_and_outcome() {
    let dir = tempfile::tempdir().expect("a directory");
    let audit = dir.path().join("audit.log");
    let args = ["--log-format", "json", "--audit-log"].map(str::to_owned);
    let args = args.into_iter().chain([audit.display().to_string()]);
    let mut target = Target::start_with(Options::default().args(args)).await;
    let client = target.client().await;
    let http = Http(target.http);

    // Over gRPC, with a server-assigned ID.
    let created = client.ok(CREATE, volume("")).await;
    let name = created["name"].as_str().expect("a name").to_owned();
    let told = line(&target, &[CREATE, &name]).await;
    assert_eq!(told["level"], "INFO");
    assert_eq!(told["code"], "OK");
    assert_eq!(told["protocol"], "grpc");
    assert_eq!(told["object"], *name);
    let method = "opi_api.storage.v1.NullVolumeService/CreateNullVolume";
    assert_eq!(told["method"], method);
    let peer = told["peer"].as_str().expect("who");
    assert!(peer.starts_with("127.0.0.1:"), "{told}");
    assert!(told["duration_us"].is_u64(), "{told}");
    assert!(is_hex(&told["trace_id"]), "{told}");

    // Over HTTP with a valid trace context, and with an invalid one.
    let body = || json!({ "block_size": 512, "blocks_count": 64 }).to_string();
    let traced = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let post = async |id: &str, trace: &str| {
        let path = format!("/v1/nullVolumes?nullVolumeId={id}");
        let headers = [("traceparent", trace)];
        http.send("POST", &path, &headers, body().into()).await
    };
    assert_eq!(post("traced", &traced).await.status, 200);
    let told = line(&target, &["volumes/traced", "\"http\""]).await;
    assert_eq!(
        (&told["trace_id"], &told["code"]),
        (&json!(TRACE), &json!("OK"))
    );
    assert_eq!(told["method"], method);
    assert_eq!(post("untraced", "00-nonsense").await.status, 200);
    let told = line(&target, &["volumes/untraced"]).await;
    assert!(is_hex(&told["trace_id"]), "{told}");

    // Failures are logged with their reason, also if they occur before the service.
    client
        .fails(CREATE, volume("Bad_Id\n{}"), Code::InvalidArgument)
        .await;
    let told = line(&target, &["INVALID_ARGUMENT", "Bad_Id", "grpc"]).await;
    assert!(
        told["reason"]
            .as_str()
            .is_some_and(|r| r.contains("null_volume_id")),
        "{told}"
    );
    assert_eq!(told["object"], "Bad_Id\n{}");
    let refused = http
        .send("POST", "/v1/nullVolumes", &[], b"{".to_vec())
        .await;
    assert_eq!(refused.status, 400);
    let told = line(&target, &["INVALID_ARGUMENT", "\"http\"", CREATE]).await;
    assert!(told["reason"].is_string(), "{told}");

    // Reads are not logged at level info.
    client.ok("GetNullVolume", json!({ "name": name })).await;
    client
        .ok(
            "UpdateNullVolume",
            json!({ "null_volume": { "name": name, "block_size": 512, "blocks_count": 128 } }),
        )
        .await;
    line(&target, &["UpdateNullVolume", &name]).await;
    client.ok("DeleteNullVolume", json!({ "name": name })).await;
    line(&target, &["DeleteNullVolume", &name]).await;
    assert!(!target.log().contains("GetNullVolume"), "{}", target.log());

    let entries = audited(&audit, "method", 7).await;
    assert_eq!(entries.len(), 7, "{entries:?}");
    assert!(
        entries
            .iter()
            .all(|e| e["time"].is_string() && e["peer"].is_string())
    );
    let mode = audit
        .metadata()
        .expect("the audit log exists")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    // Log rotation: renamed, then reopened on SIGHUP.
    std::fs::rename(&audit, dir.path().join("audit.log.1")).expect("renamed");
    target.signal(Signal::HUP);
    line(&target, &["audit log opened again"]).await;
    client.ok(CREATE, volume("after")).await;
    assert_eq!(audited(&audit, "volumes/after", 1).await.len(), 1);

    // A full disk blocks no call, and lost audit entries are counted.
    std::fs::remove_file(&audit).expect("removed");
    std::os::unix::fs::symlink("/dev/full", &audit).expect("a link");
    target.signal(Signal::HUP);
    client.ok(CREATE, volume("full")).await;
    line(&target, &["audit log cannot be written", "No space left"]).await;
    std::fs::remove_file(&audit).expect("removed");
    target.signal(Signal::HUP);
    let lost = audited(&audit, "lines_lost", 1).await;
    assert_eq!(lost[0]["lines_lost"], 1, "{lost:?}");

    target.stop_with(Signal::TERM);
    assert!(lines(&target.log()).len() > 10);
}

/// Returns the lost log lines that the metrics count.
fn lines_lost(target: &Target) -> f64 {
    let text = metrics(target.http);
    let lost = text
        .lines()
        .find_map(|line| line.strip_prefix("opi_spdk_log_lines_lost_total "));
    lost.expect("counted").parse().expect("a number")
}

#[tokio::test]
async fn a_full_log_disk_harms_nothing_else() {
    let target = Target::start_with(Options::default().log_to("/dev/full")).await;
    let client = target.client().await;
    for id in ["one", "two", "three"] {
        client.ok(CREATE, volume(id)).await;
        let again = client
            .call("DeleteNullVolume", json!({ "name": "volumes/none" }))
            .await;
        assert_eq!(
            again.expect_err("the volume does not exist").code(),
            Code::NotFound
        );
    }
    assert!(client.is_serving().await);
    assert!(lines_lost(&target) > 0.0);
    target.stop();
}

/// More lines than the log's queue holds.
const UNREAD: usize = 9_600;

#[tokio::test]
async fn an_unread_log_blocks_nothing_and_counts_lost_lines() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
    let pipe = File::options().read(true).write(true).open(&path);
    let mut pipe = pipe.expect("both its ends");
    let target = Target::start_with(Options::default().log_to(&path)).await;
    let client = target.client().await;
    let none = json!({ "name": "volumes/none" });
    let begun = Instant::now();
    for _ in 0..UNREAD / 32 {
        let calls = (0..32).map(|_| client.call("DeleteNullVolume", none.clone()));
        for answer in join_all(calls).await {
            assert_eq!(
                answer.expect_err("the volume does not exist").code(),
                Code::NotFound
            );
        }
    }
    client.ok(CREATE, volume("unread")).await;
    assert!(client.is_serving().await);
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
    assert!(lines_lost(&target) > 0.0);

    // Once it is read again, the log reports the lost lines and continues.
    let reader = tokio::task::spawn_blocking(move || {
        let (mut log, mut chunk) = (Vec::new(), [0; 65_536]);
        while !String::from_utf8_lossy(&log).contains("the log has lost lines") {
            let read = pipe.read(&mut chunk).expect("a pipe");
            log.extend_from_slice(&chunk[..read]);
        }
        pipe
    });
    let pipe = tokio::time::timeout(Duration::from_secs(20), reader).await;
    let _open = pipe
        .expect("the lost lines are reported in time")
        .expect("read");
    target.stop();
}
