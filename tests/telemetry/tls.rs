//! With TLS, a log line contains the subject of the client's certificate.

use std::time::Duration;

use rustix::process::Signal;

use super::log::line;
use crate::common::{Authority, Options, Target, Tool, eventually, keep_private};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_change_is_logged_with_the_certificates_subject() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("the file can be written");
        keep_private(&path);
        path.display().to_string()
    };
    let (certificate, key) = authority.sign("localhost");
    let server = [
        write("server.crt", certificate.pem()),
        write("server.key", key.serialize_pem()),
        write("ca.crt", authority.pem()),
    ];
    let (certificate, key) = authority.sign_as("operator\nof the lab");
    let (own, own_key) = (
        write("own.crt", certificate.pem()),
        write("own.key", key.serialize_pem()),
    );
    let args = ["--log-format", "json", "--tls"].map(str::to_owned);
    let args = args.into_iter().chain([server.join(":")]);
    let mut target = Target::spawn(&Options::default().args(args));
    let port = target.http.port();
    let create = async || {
        let curl = Tool::at("curl".into())
            .args(["--silent", "--fail", "--cacert", &server[2]])
            .args(["--cert", &own, "--key", &own_key])
            .args(["--header", "content-type: application/json"])
            .args(["--data", r#"{"block_size":512,"blocks_count":64}"#])
            .arg(format!(
                "https://localhost:{port}/v1/nullVolumes?nullVolumeId=a"
            ));
        curl.run().await.ok()
    };
    eventually("the create succeeds", Duration::from_secs(30), create).await;
    let told = line(&target, &["volumes/a", "subject"]).await;
    assert_eq!(told["subject"], "CN=operator\\0Aof the lab");
    assert!(
        told["peer"].as_str().is_some_and(|peer| peer.contains(':')),
        "{told}"
    );
    target.stop_with(Signal::TERM);
}
