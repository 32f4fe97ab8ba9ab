//! Access control: each role with each method, over gRPC and HTTP; tenants; certificates; and the reload of grants.

#[path = "../common/mod.rs"]
mod common;

mod certificates;
mod hidden;
mod streams;
mod table;
mod tenants;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use std::process::Command;
use std::time::Duration;

use opi_spdk::api;
use prost_reflect::MethodDescriptor;
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::{Code, Status};

use common::{
    Client, Http, Options, Resource, Target, base64, check_details, dhchap_key, eventually,
    name_of, nqn_of, path_of,
};

/// Timeout of a reload.
const LIMIT: Duration = Duration::from_secs(20);

const VIEWER: &str = "viewer-0123456789abcdef0123456789abcdef";
const OPERATOR: &str = "operator-0123456789abcdef0123456789ab";
const ADMIN: &str = "admin-0123456789abcdef0123456789abcdef";
const TENANT: &str = "tenant-0123456789abcdef0123456789abcde";
const TENANTS_ADMIN: &str = "tenants-admin-0123456789abcdef01234567";
const WATCHER: &str = "watcher-0123456789abcdef0123456789abcd";
const ALL: [(&str, &str); 3] = [("viewer", VIEWER), ("operator", OPERATOR), ("admin", ADMIN)];

fn written(dir: &Path, name: &str, text: &str) -> PathBuf {
    let file = dir.join(name);
    std::fs::write(&file, text).expect("the file can be written");
    std::fs::set_permissions(&file, Permissions::from_mode(0o600))
        .expect("the permissions can be set");
    file
}

/// Returns a grant for the holder of a token.
fn grant(dir: &Path, role: &str, token: &str, prefix: &str) -> String {
    let file = written(dir, &format!("{role}-{prefix}token"), &format!("{token}\n"));
    let prefix = match prefix {
        "" => String::new(),
        prefix => format!("prefix = {prefix:?}\n"),
    };
    format!("[[grant]]\nrole = {role:?}\ntoken-file = {file:?}\n{prefix}")
}

/// Starts a target with a token for each role, for a tenant's operator and admin, and for a viewer of the tenant's
/// objects.
async fn guarded(dir: &tempfile::TempDir) -> (Target, Client, PathBuf) {
    let dir = dir.path();
    let mut text = ALL
        .map(|(role, token)| grant(dir, role, token, ""))
        .concat();
    text += &grant(dir, "operator", TENANT, "tenant-");
    text += &grant(dir, "admin", TENANTS_ADMIN, "tenant-");
    text += &grant(dir, "viewer", WATCHER, "tenant-");
    let file = written(dir, "access.toml", &text);
    let socket = dir.join("grpc.sock").display().to_string();
    let file_name = file.display().to_string();
    let options = Options::default().args(["--access-file", &file_name, "--listen-uds", &socket]);
    let target = Target::start_with(options).await;
    let client = target.client().await;
    (target, client, file)
}

fn methods() -> Vec<MethodDescriptor> {
    let services = api::pool().services();
    let all = services.flat_map(|service| service.methods().collect::<Vec<_>>());
    all.collect()
}

fn denied(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::PermissionDenied | Code::Unauthenticated
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_role_may_call_only_its_methods() {
    let dir = tempfile::tempdir().expect("a directory");
    let (target, client, _) = guarded(&dir).await;
    assert!(client.is_serving().await, "health checks need no grant");
    for method in methods() {
        let path = path_of(&method);
        for other in [None, Some("a-token-that-nobody-has-0123456789abcdef")] {
            let client = other.map_or(client.clone(), |token| client.with_token(token));
            let status = client.call_raw(&path, Default::default()).await;
            let status = status.expect_err("the caller has no grant");
            assert_eq!(status.code(), Code::Unauthenticated, "{path}: {status}");
            check_details(&status);
        }
        for (role, token) in ALL {
            let answer = match method.is_server_streaming() {
                // A permitted stream does not end.
                true => streams::begin(&client, &path, token).await,
                false => {
                    let client = client.with_token(token);
                    client.call_raw(&path, Default::default()).await.map(drop)
                }
            };
            let refused = answer.as_ref().is_err_and(denied);
            assert_eq!(
                refused,
                !table::may(role, method.name()),
                "{role}, {path}: {answer:?}"
            );
        }
    }
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn http_has_the_same_roles() {
    let dir = tempfile::tempdir().expect("a directory");
    let (target, _, _) = guarded(&dir).await;
    let http = Http(target.http);
    let description = http
        .send("GET", "/openapi.json", &[], Vec::new())
        .await
        .body;
    let paths = description["paths"].as_object().expect("paths");
    for (path, operations) in paths {
        let asked: String = path
            .split('/')
            .map(|part| match part.starts_with('{') {
                true => match part.split_once(':') {
                    Some((_, verb)) => format!("/nothing:{verb}"),
                    None => "/nothing".to_owned(),
                },
                false => format!("/{part}"),
            })
            .collect::<String>()[1..]
            .to_owned();
        for (verb, operation) in operations.as_object().expect("operations") {
            let id = operation["operationId"].as_str().expect("an ID");
            let name = id
                .split("_and_")
                .next()
                .and_then(|id| id.rsplit('_').next());
            let name = name.expect("a method");
            let verb = verb.to_uppercase();
            let body = match &*verb {
                "POST" | "PATCH" => b"{}".to_vec(),
                _ => Vec::new(),
            };
            let nobody = http.send(&verb, &asked, &[], body.clone()).await;
            assert_eq!(nobody.status, 401, "{verb} {asked}: {}", nobody.body);
            for (role, token) in ALL {
                let header = format!("Bearer {token}");
                let headers = [("authorization", &*header)];
                let answer = http.send(&verb, &asked, &headers, body.clone()).await;
                let refused = matches!(answer.status, 401 | 403);
                assert_eq!(
                    refused,
                    !table::may(role, name),
                    "{role}: {verb} {asked}: {}",
                    answer.body
                );
            }
        }
    }
    for (path, is_open) in [
        ("/healthz", true),
        ("/readyz", true),
        ("/", true),
        ("/metrics", false),
        ("/v1/events", false),
    ] {
        let status = http.status(path, &[]).await;
        assert_eq!(status, if is_open { 200 } else { 401 }, "{path}");
        for (token, wanted) in [(VIEWER, 200), (TENANT, if is_open { 200 } else { 403 })] {
            let header = format!("Bearer {token}");
            let status = http.status(path, &[("authorization", &*header)]).await;
            assert_eq!(status, wanted, "{path}");
        }
    }
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn hosts_and_keys_are_for_admins() {
    let dir = tempfile::tempdir().expect("a directory");
    let (target, client, _) = guarded(&dir).await;
    let (admin, operator) = (client.with_token(ADMIN), client.with_token(OPERATOR));
    let host = "nqn.2022-09.io.spdk:the-host";
    let subsystems = Resource::new(&operator, "NvmeSubsystem");
    let known = json!({ "spec": { "nqn": nqn_of("known"), "hostnqn": host } });
    let open = json!({ "spec": { "nqn": nqn_of("open") } });
    // Without a host it would admit all of them.
    for spec in [&known, &open] {
        let refused = subsystems.create("", "open", spec.clone()).await;
        let status = refused.expect_err("a subsystem is for admins");
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    }
    let missing = json!({
        "nvme_subsystem": { "name": "nvmeSubsystems/open", "spec": open["spec"] }, "allow_missing": true,
    });
    let status = operator
        .fails("UpdateNvmeSubsystem", missing, Code::PermissionDenied)
        .await;
    assert!(status.message().contains("hosts and keys"), "{status}");
    let made = Resource::new(&admin, "NvmeSubsystem")
        .created("", "open", open)
        .await;
    let name = name_of(&made);
    operator
        .fails(
            "DeleteNvmeSubsystem",
            json!({ "name": name }),
            Code::PermissionDenied,
        )
        .await;

    let update = |spec: Value, mask: Value| {
        let object = json!({ "name": name, "spec": spec });
        json!({ "nvme_subsystem": object, "update_mask": mask })
    };
    for (spec, mask) in [
        (json!({ "hostnqn": host }), Value::Null),
        (json!({ "model_number": "m" }), json!("*")),
        (json!({ "model_number": "m" }), json!("spec")),
        (json!({}), json!("spec.psk")),
    ] {
        let request = update(spec, mask);
        operator
            .fails("UpdateNvmeSubsystem", request, Code::PermissionDenied)
            .await;
    }
    operator
        .ok(
            "UpdateNvmeSubsystem",
            update(json!({ "model_number": "m" }), Value::Null),
        )
        .await;
    admin
        .ok(
            "UpdateNvmeSubsystem",
            update(json!({ "hostnqn": host }), Value::Null),
        )
        .await;
    let encrypted = json!({
        "encrypted_volume_id": "e",
        "encrypted_volume": {
            "volume_name_ref": "volumes/none", "key": "AAAA", "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
        },
    });
    operator
        .fails("CreateEncryptedVolume", encrypted, Code::PermissionDenied)
        .await;
    let credential = json!({
        "parent": "nvmeRemoteControllers/none",
        "nvme_credential": { "hostnqn": host, "dhchap_key": base64(dhchap_key(1)) },
    });
    operator
        .fails("CreateNvmeCredential", credential, Code::PermissionDenied)
        .await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_tenant_sees_only_the_objects_of_its_prefix() {
    let dir = tempfile::tempdir().expect("a directory");
    let (target, client, _) = guarded(&dir).await;
    let (admin, tenant) = (client.with_token(ADMIN), client.with_token(TENANT));
    let volume = json!({ "block_size": 512, "blocks_count": 64, "uuid": "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb" });
    let others = Resource::new(&admin, "NullVolume")
        .created("", "other", volume)
        .await;
    let others = name_of(&others);
    let mine = json!({ "block_size": 512, "blocks_count": 64 });
    let volumes = Resource::new(&tenant, "NullVolume");
    for id in ["", "other2", "tenantx"] {
        let status = volumes.create("", id, mine.clone()).await.expect_err(id);
        assert_eq!(status.code(), Code::PermissionDenied, "{id}: {status}");
    }
    let disguised = json!({
        "null_volume_id": "other3",
        "null_volume": { "name": "volumes/tenant-x", "block_size": 512, "blocks_count": 64 },
    });
    tenant
        .fails("CreateNullVolume", disguised, Code::PermissionDenied)
        .await;
    volumes.created("", "tenant-v", mine).await;
    let listed = volumes.list("").await;
    let names: Vec<String> = listed.iter().map(name_of).collect();
    assert_eq!(names, ["volumes/tenant-v"]);
    for (method, name) in [
        ("GetNullVolume", others.as_str()),
        ("StatsNullVolume", &others),
        ("DeleteNullVolume", &others),
        (
            "GetNullVolume",
            "volumes/1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
        ),
    ] {
        tenant
            .fails(method, json!({ "name": name }), Code::PermissionDenied)
            .await;
    }

    let spec = json!({ "spec": { "nqn": nqn_of("tenant-s") } });
    // Whom a subsystem admits is for admins; its namespaces are the operator's.
    let subsystems = Resource::new(&admin, "NvmeSubsystem");
    let subsystem = name_of(&subsystems.created("", "tenant-s", spec).await);
    let namespaces = Resource::new(&tenant, "NvmeNamespace");
    for reference in [
        &*others,
        "other",
        "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
        "nullVolumes/other",
    ] {
        let object = json!({ "spec": { "volume_name_ref": reference } });
        let status = namespaces
            .create(&subsystem, "n", object)
            .await
            .expect_err(reference);
        assert_eq!(
            status.code(),
            Code::PermissionDenied,
            "{reference}: {status}"
        );
    }
    let object = json!({ "spec": { "volume_name_ref": "volumes/tenant-v" } });
    namespaces.created(&subsystem, "n", object).await;
    let file = json!({
        "aio_volume_id": "tenant-a",
        "aio_volume": { "filename": "/etc/passwd", "block_size": 512 },
    });
    let referral = json!({
        "discovery_referral_id": "tenant-r",
        "discovery_referral": {
            "trtype": "NVME_TRANSPORT_TYPE_TCP", "traddr": "192.0.2.7", "trsvcid": 8009,
        },
    });
    for (method, request) in [
        ("CreateAioVolume", file),
        ("CreateDiscoveryReferral", referral),
    ] {
        tenant.fails(method, request, Code::PermissionDenied).await;
    }

    // Lists of all kinds are filtered too.
    let objects = tenant.ok("ListObjects", json!({})).await;
    let objects = objects["objects"].as_array().expect("objects");
    let mut names: Vec<&str> = objects
        .iter()
        .map(|o| o["name"].as_str().expect("a name"))
        .collect();
    names.sort_unstable();
    let namespace = format!("{subsystem}/nvmeNamespaces/n");
    assert_eq!(names, [subsystem.as_str(), &namespace, "volumes/tenant-v"]);
    let all = admin.ok("ListObjects", json!({})).await;
    assert_eq!(all["objects"].as_array().map(Vec::len), Some(4));
    tenant
        .fails(
            "GetInventory",
            json!({ "name": "inventory/1" }),
            Code::PermissionDenied,
        )
        .await;

    let watcher = client.with_token(WATCHER);
    let request = json!({ "name": "volumes/tenant-v" });
    watcher.ok("GetNullVolume", request.clone()).await;
    watcher
        .fails("DeleteNullVolume", request, Code::PermissionDenied)
        .await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn grants_are_reloaded_and_invalid_ones_change_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (target, client, file) = guarded(&dir).await;
    let list = async |token| {
        client
            .with_token(token)
            .call("ListNullVolumes", json!({}))
            .await
    };
    assert!(list(VIEWER).await.is_ok());
    written(
        dir.path(),
        "access.toml",
        "[[grant]]\nrole = \"root\"\nuid = 1\n",
    );
    target.signal(Signal::HUP);
    eventually("the rejected reload is logged", LIMIT, async || {
        target
            .log()
            .contains("configuration not reloaded")
            .then_some(())
    })
    .await;
    assert!(
        list(VIEWER).await.is_ok(),
        "the previous grants stay in force"
    );
    let only = grant(dir.path(), "admin", ADMIN, "");
    written(dir.path(), "access.toml", &only);
    target.signal(Signal::HUP);
    eventually("the viewer's grant is revoked", LIMIT, async || {
        list(VIEWER).await.is_err().then_some(())
    })
    .await;
    assert!(list(ADMIN).await.is_ok());
    assert!(file.exists());

    let address = target.grpc.to_string();
    let token = written(dir.path(), "mine", ADMIN);
    let token = token.display().to_string();
    // The program's own user needs no token on the Unix socket.
    let socket = format!("unix:{}", dir.path().join("grpc.sock").display());
    for (address, flags, status) in [
        (&address, &["--token-file", &token][..], 0),
        (&address, &[], 26),
        (&socket, &[], 0),
    ] {
        let mut shell = Command::new(env!("CARGO_BIN_EXE_opi-spdk"));
        shell
            .args(["get", "NullVolume", "--addr", address])
            .args(flags);
        let out = shell.output().expect("the program starts");
        assert_eq!(out.status.code(), Some(status), "{out:?}");
    }

    let log = target.log();
    for (_, token) in ALL {
        assert!(!log.contains(token), "a token is in the log");
    }
    target.stop();
}
