//! Every HTTP route of the API's table and of this project's kinds, exercised on the program by an HTTP
//! client: create, read, list, update, stats and delete, in every spelling that grpc-gateway accepts,
//! and rejections with their status and body.

mod case;
#[path = "../common/mod.rs"]
mod common;
mod curl;
mod described;
mod lab;
mod own;
mod routes;

use std::collections::BTreeSet;

use case::Case;
use common::{Options, Target};
use lab::{base, cases};
use routes::{INVALID, NOT_FOUND, Routes, WRONG_STATE};
use serde_json::json;

/// Lists the remote namespaces of a path, and resets the remote controller.
async fn remote_namespaces(routes: &Routes, path: &Case) {
    let remote = "nvmeRemoteControllers/remote";
    let reset = "ResetNvmeRemoteController";
    let pcie = json!({ "trtype": "NVME_TRANSPORT_TYPE_PCIE", "traddr": "ffff:ff:1f.7" });
    routes
        .fails(
            reset,
            "nvmeRemoteControllers/missing",
            "",
            Some(&json!({})),
            NOT_FOUND,
        )
        .await;
    routes
        .fails("CreateNvmePath", remote, "", Some(&pcie), INVALID)
        .await;
    routes
        .ok(
            "CreateNvmePath",
            remote,
            "nvmePathId=way",
            Some(&path.object),
        )
        .await;
    let list = routes
        .ok("ListNvmeRemoteNamespaces", remote, "", None)
        .await;
    let found = &list["nvmeRemoteNamespaces"][0];
    let name = format!("{remote}/nvmeRemoteNamespaces/remoten1");
    assert_eq!(
        (&found["name"], &found["nsid"]),
        (&json!(name), &json!(1)),
        "{list}"
    );
    assert_eq!(
        routes.ok("GetNvmeRemoteNamespace", &name, "", None).await,
        *found
    );
    let other = name.replace("remoten1", "remoten2");
    routes
        .fails("GetNvmeRemoteNamespace", &other, "", None, NOT_FOUND)
        .await;
    assert_eq!(
        routes.ok(reset, remote, "", Some(&json!({}))).await,
        json!({})
    );
    let used = ("DeleteNvmeRemoteController", remote);
    routes.fails(used.0, used.1, "", None, WRONG_STATE).await;
    routes
        .ok(
            "DeleteNvmePath",
            &format!("{remote}/nvmePaths/way"),
            "",
            None,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_route_answers_in_every_spelling() {
    let target = Target::start_with(Options::hugepages()).await;
    let routes = Routes::new(&target).await;
    // The RPCs of the published API, and of five kinds of this project.
    assert_eq!(routes.rpcs.len(), 88 + 5 * 6 + 1);
    let port = base(&routes).await;
    let cases = cases(target.scratch(), port);
    let client = target.client().await;
    for case in &cases {
        eprintln!("{}", case.message);
        case.run(&routes, &client).await;
    }
    let path = cases
        .iter()
        .find(|case| case.message == "NvmePath")
        .expect("the table has a case");
    remote_namespaces(&routes, path).await;
    let nobody = "nvmeSubsystems/missing/nvmeHosts/missing";
    let psk = json!({ "psk": true });
    routes
        .fails("RekeyNvmeHost", nobody, "", Some(&psk), NOT_FOUND)
        .await;
    let inventory = routes
        .ok("GetInventory", "inventory/1/inventory/2", "", None)
        .await;
    assert!(
        inventory["processor"]["totalThreads"]
            .as_u64()
            .is_some_and(|threads| threads > 0)
    );
    let grpc = client.ok("GetInventory", json!({})).await;
    assert_eq!(
        grpc["processor"]["total_threads"],
        inventory["processor"]["totalThreads"]
    );
    assert_eq!(
        grpc["pci"], inventory["pci"],
        "PCI devices have the same fields in both APIs"
    );

    let taken = routes.taken.lock().expect("no panic").clone();
    let all: BTreeSet<String> = routes.rpcs.keys().cloned().collect();
    assert_eq!(
        all.difference(&taken).collect::<Vec<_>>(),
        [&""; 0],
        "routes that were not exercised"
    );
}
