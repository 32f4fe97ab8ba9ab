//! Every route of the API's table and of kinds of our own, taken by a real HTTP client on the built
//! program: made, read, listed, changed, counted, deleted, in every spelling that grpc-gateway takes, and
//! refused with the right status and body.

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

/// What is at the end of a path, and the reset of the whole.
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
    // Of the published API, and of four kinds of our own.
    assert_eq!(routes.rpcs.len(), 88 + 4 * 6 + 1);
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
        .expect("in the table");
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
    assert_eq!(grpc["pci"], inventory["pci"], "one word in each name");

    let taken = routes.taken.lock().expect("no panic").clone();
    let all: BTreeSet<String> = routes.rpcs.keys().cloned().collect();
    assert_eq!(
        all.difference(&taken).collect::<Vec<_>>(),
        [&""; 0],
        "routes that nobody took"
    );
}
