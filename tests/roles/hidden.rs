//! Objects of others stay unknown to a client whose grants have prefixes: in lists, page tokens and errors.

use ::base64::Engine;
use ::base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::common::{Client, Http, Resource, check_details, eventually, nqn_of};
use super::{ADMIN, LIMIT, TENANT, TENANTS_ADMIN, guarded};

/// UUID of another client's volume.
const UUID: &str = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb";

fn volume() -> Value {
    json!({ "block_size": 512, "blocks_count": 64 })
}

fn delay(of: &str) -> Value {
    json!({ "volume_name_ref": of, "avg_read_latency_us": 10 })
}

/// Checks that a token does not hold a name of another client's object.
fn check_token(token: &str) {
    for part in token.split('.') {
        let bytes = URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("secret"), "{token}: {text}");
    }
}

/// Returns all pages of a list over HTTP, of one object at most each, without revisions.
async fn pages(http: Http, path: &str) -> Vec<Value> {
    let header = format!("Bearer {TENANT}");
    let mut pages = Vec::new();
    let mut token = String::new();
    loop {
        let query = format!("{path}?pageSize=1&pageToken={token}");
        let headers = [("authorization", &*header)];
        let answer = http.send("GET", &query, &headers, Vec::new()).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.body);
        let mut page = answer.body;
        page.as_object_mut().expect("a page").remove("revision");
        let next = page["nextPageToken"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        check_token(&next);
        pages.push(page);
        assert!(pages.len() < 100, "the pages have no end");
        match next.is_empty() {
            true => return pages,
            false => token = next,
        }
    }
}

/// Returns the names of a list over gRPC, read in pages of this size, which all but the last fill.
async fn listed(client: &Client, method: &str, field: &str, size: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let request = json!({ "page_size": size, "page_token": token });
        let page = client.ok(method, request).await;
        let objects = page[field].as_array().map_or(&[][..], Vec::as_slice);
        names.extend(
            objects
                .iter()
                .map(|object| object["name"].as_str().expect("a name").to_owned()),
        );
        token = page["next_page_token"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        check_token(&token);
        if token.is_empty() {
            return names;
        }
        assert_eq!(
            objects.len(),
            size,
            "a page before the last is full: {page}"
        );
    }
}

/// Creates objects of others: before, between and after the tenant's in each list, one of them over the tenant's volume.
async fn others_create(admin: &Client) {
    let volumes = Resource::new(admin, "NullVolume");
    let mut known = volume();
    known["uuid"] = json!(UUID);
    volumes.created("", "aa-secret", known).await;
    volumes.created("", "zz-secret", volume()).await;
    let delays = Resource::new(admin, "DelayVolume");
    delays
        .created("", "aa-secret-d", delay("volumes/aa-secret"))
        .await;
    delays
        .created("", "zz-secret-d", delay("volumes/tenant-1"))
        .await;
    let subsystem = json!({ "spec": { "nqn": nqn_of("taken"), "hostnqn": nqn_of("host") } });
    Resource::new(admin, "NvmeSubsystem")
        .created("", "secret-s", subsystem)
        .await;
    let limits = json!({ "volume_name_ref": "volumes/zz-secret", "limits": { "max": { "rw_iops_kiops": 1 } } });
    Resource::new(admin, "QosVolume")
        .created("", "aa-secret-q", limits)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_tenants_lists_are_the_same_whatever_others_have() {
    let dir = tempfile::tempdir().expect("a directory");
    let (target, client, _) = guarded(&dir).await;
    let (admin, tenant) = (client.with_token(ADMIN), client.with_token(TENANT));
    let http = Http(target.http);
    for id in ["tenant-1", "tenant-2", "tenant-3"] {
        Resource::new(&tenant, "NullVolume")
            .created("", id, volume())
            .await;
    }
    let limits = json!({ "volume_name_ref": "volumes/tenant-2", "limits": { "max": { "rw_iops_kiops": 1 } } });
    Resource::new(&tenant, "QosVolume")
        .created("", "tenant-q", limits)
        .await;
    let paths = [
        "/v1/nullVolumes",
        "/v1/delayVolumes",
        "/v1/volumes",
        "/v1/objects",
        "/v1/nvmeSubsystems",
    ];
    let mut before = Vec::new();
    for path in paths {
        before.push(pages(http, path).await);
    }
    others_create(&admin).await;
    for (path, before) in paths.into_iter().zip(before) {
        assert_eq!(pages(http, path).await, before, "{path}");
    }
    let mine = ["volumes/tenant-1", "volumes/tenant-2", "volumes/tenant-3"];
    for size in [1, 2, 3, 50] {
        assert_eq!(
            listed(&tenant, "ListNullVolumes", "null_volumes", size).await,
            mine
        );
        let objects = listed(&tenant, "ListObjects", "objects", size).await;
        assert_eq!(objects.len(), 4, "{objects:?}");
    }
    let all = admin.ok("ListNullVolumes", json!({})).await;
    assert_eq!(names_of(&all).len(), 5, "{all}");

    // A token of one grant is a position for another, and shows that one's objects only.
    let request = json!({ "page_size": 1 });
    let page = admin.ok("ListNullVolumes", request.clone()).await;
    let request = |token: &Value| json!({ "page_size": 50, "page_token": token });
    let page = tenant
        .ok("ListNullVolumes", request(&page["next_page_token"]))
        .await;
    assert_eq!(names_of(&page), mine);
    let page = tenant
        .ok("ListNullVolumes", json!({ "page_size": 2 }))
        .await;
    let page = admin
        .ok("ListNullVolumes", request(&page["next_page_token"]))
        .await;
    assert_eq!(names_of(&page), ["volumes/tenant-3", "volumes/zz-secret"]);
    target.stop();
}

/// Returns the names of the null volumes of a page.
fn names_of(page: &Value) -> Vec<&Value> {
    let volumes = page["null_volumes"].as_array().expect("volumes");
    volumes.iter().map(|volume| &volume["name"]).collect()
}

/// Checks that no part of an error names an object of others.
fn check_error(status: &Status) {
    check_details(status);
    let details = String::from_utf8_lossy(status.details());
    let whole = format!("{status:?} {details}");
    assert!(!whole.contains("secret"), "{whole}");
    assert!(
        status.message().contains("an object of another tenant"),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn errors_of_a_tenant_name_no_object_of_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let (target, client, _) = guarded(&dir).await;
    let (admin, tenant) = (client.with_token(ADMIN), client.with_token(TENANT));
    let http = Http(target.http);
    Resource::new(&tenant, "NullVolume")
        .created("", "tenant-1", volume())
        .await;
    others_create(&admin).await;

    let mut taken = volume();
    taken["uuid"] = json!(UUID);
    let create = json!({ "null_volume_id": "tenant-2", "null_volume": taken });
    let status = tenant
        .fails("CreateNullVolume", create.clone(), Code::AlreadyExists)
        .await;
    check_error(&status);
    let subsystem = json!({ "spec": { "nqn": nqn_of("taken"), "hostnqn": nqn_of("host") } });
    let create_subsystem = json!({ "nvme_subsystem_id": "tenant-s", "nvme_subsystem": subsystem });
    let status = client
        .with_token(TENANTS_ADMIN)
        .fails("CreateNvmeSubsystem", create_subsystem, Code::AlreadyExists)
        .await;
    check_error(&status);
    let used = json!({ "name": "volumes/tenant-1" });
    let status = tenant
        .fails("DeleteNullVolume", used.clone(), Code::FailedPrecondition)
        .await;
    check_error(&status);
    assert!(status.message().starts_with("volumes/tenant-1"), "{status}");
    let beside =
        json!({ "delay_volume_id": "tenant-d", "delay_volume": delay("volumes/tenant-1") });
    let status = tenant
        .fails("CreateDelayVolume", beside, Code::FailedPrecondition)
        .await;
    check_error(&status);

    // Over HTTP too.
    let header = format!("Bearer {TENANT}");
    let headers = [("authorization", &*header)];
    for (verb, path, body) in [
        (
            "POST",
            "/v1/nullVolumes?nullVolumeId=tenant-2",
            taken.to_string().into_bytes(),
        ),
        ("DELETE", "/v1/nullVolumes/tenant-1", Vec::new()),
    ] {
        let answer = http.send(verb, path, &headers, body).await;
        let text = format!("{} {:?}", answer.body, answer.headers);
        assert!(matches!(answer.status, 400 | 409), "{path}: {text}");
        assert!(
            text.contains("an object of another tenant") && !text.contains("secret"),
            "{text}"
        );
    }

    // Without a prefix the names are told, and the log has them for both.
    let status = admin
        .fails(
            "CreateNullVolume",
            json!({ "null_volume": taken }),
            Code::AlreadyExists,
        )
        .await;
    let whole = "already belongs to volumes/aa-secret (NullVolume)";
    assert!(status.message().contains(whole), "{status}");
    let told = async || {
        let log = target.log();
        let lines = log.lines().filter(|line| line.contains(whole)).count();
        (lines >= 3).then_some(())
    };
    eventually("the log has the whole reasons", LIMIT, told).await;
    target.stop();
}
