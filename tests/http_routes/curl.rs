//! The curl commands that operators of OPI bridges use.

use serde_json::{Value, json};

use crate::common::{Options, Target, Tool, free_port, pcie_spec, tcp_spec};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn curl_exports_a_disk_and_removes_it() {
    let target = Target::start_with(Options::hugepages()).await;
    let v1 = format!("http://{}/v1", target.http);
    let curl = async |method: &str, path: &str, body: Option<Value>| {
        let tool = Tool::at("curl".into()).args([
            "--silent",
            "--show-error",
            "--fail-with-body",
            "-X",
            method,
        ]);
        let tool = match body {
            Some(body) => tool.args([
                "-H",
                "Content-Type: application/json",
                "-d",
                &body.to_string(),
            ]),
            None => tool,
        };
        let text = tool.arg(format!("{v1}/{path}")).run().await;
        let text = text.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        serde_json::from_str::<Value>(&text)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}: {text}"))
    };
    let port = free_port();
    let volume = json!({ "block_size": 512, "blocks_count": 2048 });
    curl("POST", "mallocVolumes?malloc_volume_id=disk", Some(volume)).await;
    let subsystem =
        json!({ "spec": { "nqn": "nqn.2022-09.io.spdk:opitest1", "serial_number": "OPI" } });
    curl(
        "POST",
        "nvmeSubsystems?nvme_subsystem_id=subsys0",
        Some(subsystem),
    )
    .await;
    let sub = "nvmeSubsystems/subsys0";
    let namespace = json!({ "spec": {
        "volume_name_ref": "disk", "host_nsid": 10, "uuid": "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
        "nguid": "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb", "eui64": "1967554867335598546",
    }});
    let path = format!("{sub}/nvmeNamespaces?nvme_namespace_id=namespace0");
    let namespace = curl("POST", &path, Some(namespace)).await;
    assert_eq!(namespace["spec"]["eui64"], "1967554867335598546");
    curl(
        "POST",
        &format!("{sub}/nvmeControllers?nvme_controller_id=tcp0"),
        Some(tcp_spec(port)),
    )
    .await;
    curl(
        "POST",
        &format!("{sub}/nvmeControllers?nvme_controller_id=pcie0"),
        Some(pcie_spec(0)),
    )
    .await;
    assert!(
        target.ctrlr_dir().join("subsys0/cntrl").exists(),
        "no socket for a virtual machine"
    );

    let remote = json!({ "multipath": "NVME_MULTIPATH_MULTIPATH" });
    curl(
        "POST",
        "nvmeRemoteControllers?nvme_remote_controller_id=nvmetcp12",
        Some(remote),
    )
    .await;
    let over = "nvmeRemoteControllers/nvmetcp12";
    let way = json!({ "trtype": "NVME_TRANSPORT_TYPE_TCP", "traddr": "127.0.0.1", "fabrics": {
        "subnqn": "nqn.2022-09.io.spdk:opitest1", "trsvcid": port.to_string(), "adrfam": "NVME_ADDRESS_FAMILY_IPV4",
        "hostnqn": "nqn.2014-08.org.nvmexpress:uuid:feb98abe-d51f-40c8-b348-2753f3571d3c",
    }});
    curl(
        "POST",
        &format!("{over}/nvmePaths?nvme_path_id=nvmetcp12path0"),
        Some(way),
    )
    .await;
    let seen = curl("GET", &format!("{over}/nvmeRemoteNamespaces"), None).await;
    let seen = &seen["nvmeRemoteNamespaces"][0];
    assert_eq!(
        (&seen["nsid"], &seen["uuid"]),
        (&json!(10), &namespace["spec"]["uuid"]),
        "{seen}"
    );
    assert_eq!(seen["eui64"], namespace["spec"]["eui64"]);
    curl(
        "GET",
        &format!("{over}/nvmePaths/nvmetcp12path0:stats"),
        None,
    )
    .await;
    curl("POST", &format!("{over}:reset"), Some(json!({}))).await;

    for path in [
        &format!("{over}/nvmePaths/nvmetcp12path0"),
        over,
        &format!("{sub}/nvmeControllers/tcp0"),
        &format!("{sub}/nvmeControllers/pcie0"),
        &format!("{sub}/nvmeNamespaces/namespace0"),
        sub,
        "mallocVolumes/disk",
    ] {
        assert_eq!(curl("DELETE", path, None).await, json!({}), "{path}");
    }
}
