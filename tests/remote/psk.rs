//! Pre-shared keys of remote controllers: TLS to the peer.

use std::time::Duration;

use serde_json::{Value, json};
use tonic::Code;

use super::Lab;
use crate::common::{
    self, HOST, PSK, Resource, base64, eventually, name_of, namespace, nqn_of, subsystem,
    tcp_controller, tcp_path,
};

/// Another pre-shared key.
const OTHER_PSK: &str = "NVMeTLSkey-1:01:QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkK9MX0g:";

#[tokio::test]
async fn names_too_long_for_the_identity_of_a_pre_shared_key_are_refused_with_their_lengths() {
    let lab = Lab::new().await;
    let made = async |id: &str, psk: &str| {
        let object =
            json!({ "multipath": "NVME_MULTIPATH_DISABLE", "tcp": { "psk": base64(psk) } });
        let controllers = lab.resource("NvmeRemoteController");
        name_of(&controllers.created("", id, object).await)
    };
    let [keyed, plain] = [made("keyed", PSK).await, made("plain", "").await];
    let nqn = |length: usize| format!("nqn.2022-09.io.spdk:{}", "x".repeat(length - 20));
    let path = |subnqn: usize, hostnqn: &str| {
        let mut path = tcp_path(1, &nqn(subnqn));
        path["fabrics"]["hostnqn"] = hostnqn.into();
        path
    };
    let host = nqn(120);
    let paths = lab.resource("NvmePath");
    for (controller, path, told) in [
        (&keyed, path(126, &host), Some("126 bytes, beside 120")),
        (&keyed, path(178, ""), Some("178 bytes, beside 68")),
        (&keyed, path(125, &host), None),
        (&plain, path(126, &host), None),
    ] {
        let status = paths.create(controller, "p", path).await;
        let status = status.expect_err("nobody listens at port 1");
        match told {
            Some(told) => {
                assert_eq!(status.code(), Code::InvalidArgument, "{status}");
                assert!(status.message().contains(told), "{status}");
                assert!(status.message().contains("245 together fit"), "{status}");
            }
            None => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    }
    lab.stop();
}

#[tokio::test]
async fn a_subsystem_with_a_psk_accepts_only_its_host_over_tls() {
    let lab = Lab::new().await;
    let elsewhere = lab.peer.client().await;
    let spec = json!({ "hostnqn": HOST, "psk": base64(PSK) });
    let secure = subsystem(&elsewhere, "secure", spec).await;
    let volume = common::malloc(&elsewhere, "secured", 16).await;
    namespace(&elsewhere, &secure, &volume, json!({})).await;
    let (_, port) = tcp_controller(&elsewhere, &secure).await;
    let path = tcp_path(port, &nqn_of("secure"));

    let attach = async |id: &str, psk: &str, path: Value| {
        let object =
            json!({ "multipath": "NVME_MULTIPATH_DISABLE", "tcp": { "psk": base64(psk) } });
        let made = lab
            .resource("NvmeRemoteController")
            .created("", id, object)
            .await;
        assert_eq!(made["tcp"]["psk"], "", "responses omit keys");
        lab.resource("NvmePath")
            .create(&name_of(&made), "p", path)
            .await
    };
    let mut stranger = path.clone();
    stranger["fabrics"]["hostnqn"] = "nqn.2022-09.io.spdk:a-stranger".into();
    for (id, psk, path) in [
        ("plain", "", path.clone()),
        ("wrong", OTHER_PSK, path.clone()),
        ("stranger", PSK, stranger),
    ] {
        let status = attach(id, psk, path)
            .await
            .expect_err("the host must be rejected");
        assert_eq!(status.code(), Code::Unavailable, "{id}: {status}");
    }
    attach("tls", PSK, path.clone())
        .await
        .expect("the host with the key can connect");
    let (host, namespace) = lab.export("tlsn1").await;
    host.verify(lab.target.scratch(), 1)
        .await
        .expect("the data is correct");
    lab.resource("NvmeNamespace").deleted(&namespace).await;

    // Key rotation: from now on only hosts with the new key can connect.
    let change = json!({ "spec": { "psk": base64(OTHER_PSK) } });
    let subsystems = Resource::new(&elsewhere, "NvmeSubsystem");
    subsystems
        .updated(&secure, change, Some(&["spec.psk"]))
        .await;
    let of_tls = json!({ "name": "nvmeRemoteControllers/tls/nvmePaths/p" });
    eventually(
        "the host with the old key is disconnected",
        Duration::from_secs(10),
        async || {
            let stats = lab.client.call("StatsNvmePath", of_tls.clone()).await;
            (stats.err()?.code() == Code::Unavailable).then_some(())
        },
    )
    .await;
    lab.client.ok("DeleteNvmePath", of_tls).await;
    let again = lab
        .resource("NvmePath")
        .create("nvmeRemoteControllers/wrong", "p", path)
        .await;
    again.expect("the new key is accepted");
    lab.stop();
}
