//! DH-HMAC-CHAP one-way and mutual: each form of key, and each hash and group that both sides support.

use std::path::Path;

use serde_json::{Value, json};

use super::{Lab, keys};
use crate::common::{
    HOST, Options, Resource, Target, Tool, base64, dhchap_key, free_port, keep_private, name_of,
    nqn_of, remote_controller, tcp_path,
};

/// Builds a `DHHC-1` key of this hash and length.
fn key_of(hash: &str, length: usize, byte: u8) -> String {
    let mut key = vec![byte; length];
    let crc = crc32fast::hash(&key).to_le_bytes();
    key.extend(crc);
    format!("DHHC-1:{hash}:{}:", base64(key))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_side_proves_itself_with_each_form_of_key_and_io_goes_through() {
    for (hash, length, ctrlr) in [
        ("00", 32, ""),
        ("01", 32, "03"),
        ("02", 48, "00"),
        ("03", 64, "01"),
    ] {
        let key = key_of(hash, length, 1);
        let ctrlr = match ctrlr {
            "" => String::new(),
            "03" => key_of("03", 64, 2),
            other => key_of(other, 32, 2),
        };
        let both = keys(&key, &ctrlr);
        let lab = Lab::new(Options::default(), both.clone(), json!({})).await;
        lab.credential(both).await;
        let attached = lab.attach().await;
        attached.unwrap_or_else(|status| panic!("{hash}: {status}"));
        let host = lab.export().await;
        let verified = host.verify(lab.target.scratch(), 1).await;
        verified.unwrap_or_else(|said| panic!("{hash}: {said}"));
        lab.stop();
    }
}

/// Configuration of SPDK's own target, with a subsystem that admits the host with these keys.
fn configuration(dir: &Path, hash: &str, group: &str, port: u16) -> Value {
    let step = |method: &str, params: Value| json!({ "method": method, "params": params });
    let file = |name: &str, byte: u8| {
        let path = dir.join(name);
        std::fs::write(&path, dhchap_key(byte)).expect("there is room");
        keep_private(&path);
        step(
            "keyring_file_add_key",
            json!({ "name": name, "path": path }),
        )
    };
    let nqn = nqn_of("spdk");
    let part = |name: &str, config: Value| json!({ "subsystem": name, "config": config });
    let iobuf = json!({ "small_pool_count": 2048, "large_pool_count": 256 });
    json!({ "subsystems": [
        part("keyring", json!([file("host-key", 1), file("ctrlr-key", 2)])),
        part("iobuf", json!([step("iobuf_set_options", iobuf)])),
        part("bdev", json!([
            step("bdev_malloc_create", json!({ "name": "m", "num_blocks": 8192, "block_size": 512 })),
        ])),
        part("nvmf", json!([
            step("nvmf_set_config", json!({ "dhchap_digests": [hash], "dhchap_dhgroups": [group] })),
            step("nvmf_create_transport", json!({ "trtype": "TCP" })),
            step("nvmf_create_subsystem", json!({ "nqn": nqn })),
            step("nvmf_subsystem_add_host", json!({
                "nqn": nqn, "host": HOST, "dhchap_key": "host-key", "dhchap_ctrlr_key": "ctrlr-key",
            })),
            step("nvmf_subsystem_add_ns", json!({ "nqn": nqn, "namespace": { "bdev_name": "m" } })),
            step("nvmf_subsystem_add_listener", json!({ "nqn": nqn, "listen_address": {
                "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string(),
            } })),
        ])),
    ] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_hash_and_group_of_spdks_target_is_taken_but_the_group_of_8192_bits() {
    let target = Target::start().await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    for (hash, group) in [
        ("sha256", "null"),
        ("sha384", "ffdhe2048"),
        ("sha512", "ffdhe3072"),
        ("sha256", "ffdhe4096"),
        ("sha384", "ffdhe6144"),
        ("sha512", "ffdhe8192"),
    ] {
        let port = free_port();
        let file = target.scratch().join("spdk.json");
        let config = configuration(target.scratch(), hash, group, port);
        std::fs::write(&file, config.to_string()).expect("there is room");
        let socket = target.scratch().join("spdk.sock");
        let peer = Tool::new("spdk_tgt")
            .args([
                "-m",
                "0x2",
                "--disable-cpumask-locks",
                "--no-huge",
                "-s",
                "1400",
            ])
            .arg("--json")
            .arg(&file)
            .arg("-r")
            .arg(&socket);
        let mut peer = peer.spawn();
        peer.says("Listening on 127.0.0.1").await;

        let controller = remote_controller(&client, group, "DISABLE").await;
        let mut object = keys(&dhchap_key(1), &dhchap_key(2));
        object["hostnqn"] = HOST.into();
        let credentials = of("NvmeCredential");
        let credential = credentials.created(&controller, "keys", object).await;
        let credential = name_of(&credential);
        let path = tcp_path(port, &nqn_of("spdk"));
        let attached = of("NvmePath").create(&controller, "path", path).await;
        if group == "ffdhe8192" {
            let status = attached.expect_err("8,192 bits");
            assert!(status.message().contains("dhgroup not usable"), "{status}");
        } else {
            let attached = attached.unwrap_or_else(|status| panic!("{hash}, {group}: {status}"));
            of("NvmePath").deleted(&name_of(&attached)).await;
        }
        credentials.deleted(&credential).await;
        of("NvmeRemoteController").deleted(&controller).await;
        peer.stop().await.expect("it ends well");
    }
    target.stop();
}
