//! What was removed by SPDK's own commands, behind the API's back.

use serde_json::json;

use crate::common::{Fixture, JsonRpc, Options, Target};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_spdk_no_longer_has_can_be_deleted_and_its_address_used_again() {
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
        // Controller, namespace, subsystem, volume: each delete succeeds.
        fixture.remove().await;
        // Nothing is left of them: the address serves another subsystem.
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
