//! Objects removed with SPDK's own commands, out of band.

use std::time::Duration;

use serde_json::json;

use crate::common::{Fixture, JsonRpc, Options, Target, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn objects_removed_in_spdk_can_be_deleted_and_their_address_reused() {
    let (options, socket) = Options::default().with_rpc();
    let target = Target::start_with(options).await;
    let mut rpc = JsonRpc::connect(&socket).await.expect("the socket");
    for whole in [true, false] {
        let fixture = Fixture::tcp(&target, 16).await;
        let (client, port) = (fixture.client.clone(), fixture.port);
        let port = port.to_string();
        let calls = if whole {
            vec![("nvmf_delete_subsystem", json!({ "nqn": fixture.nqn }))]
        } else {
            let address = json!({
                "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port,
            });
            let listener = json!({ "nqn": fixture.nqn, "listen_address": address });
            vec![
                (
                    "nvmf_subsystem_remove_ns",
                    json!({ "nqn": fixture.nqn, "nsid": 1 }),
                ),
                ("nvmf_subsystem_remove_listener", listener),
            ]
        };
        for (call, parameters) in calls {
            let done = rpc.call(call, parameters).await;
            done.unwrap_or_else(|error| panic!("{error}"));
        }
        let soon = Duration::from_secs(15);
        eventually(
            "namespace and controller report the removal",
            soon,
            async || {
                let namespaces = fixture.resource("NvmeNamespace");
                let namespace = namespaces.get(&fixture.namespace).await.expect("kept");
                let controllers = fixture.resource("NvmeController");
                let controller = controllers.get(&fixture.controller).await.expect("kept");
                let gone = namespace["status"]["oper_state"] == "OPER_STATE_OFFLINE"
                    && controller["status"]["active"] != true;
                gone.then_some(())
            },
        )
        .await;
        let log = target.log();
        for name in [&fixture.namespace, &fixture.controller] {
            let told = |line: &str| line.contains(name.as_str()) && line.contains("own commands");
            assert!(log.lines().any(told), "{name}:\n{log}");
        }
        // Controller, namespace, subsystem and volume can all be deleted.
        fixture.remove().await;
        // Nothing keeps the address: another subsystem can listen there.
        let next = Fixture::tcp(&target, 16).await;
        let spec = json!({ "trtype": "NVME_TRANSPORT_TYPE_TCP", "fabrics_id": {
            "traddr": "127.0.0.1", "trsvcid": port, "adrfam": "NVME_ADDRESS_FAMILY_IPV4",
        }});
        let request = json!({
            "parent": next.subsystem, "nvme_controller_id": "again",
            "nvme_controller": { "spec": spec },
        });
        let made = client.ok("CreateNvmeController", request).await;
        let name = json!({ "name": made["name"] });
        client.ok("DeleteNvmeController", name).await;
        next.remove().await;
    }
    target.stop();
}
