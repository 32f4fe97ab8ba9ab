//! Every route of the API's table, taken by a real HTTP client on the built program: made, read,
//! listed, changed, counted, deleted, in every spelling that grpc-gateway takes, and refused with the
//! right status and body.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use common::{
    Answer, Http, Options, Target, Tool, at, free_port, nqn_of, only, pcie_spec, tcp_spec, with,
};
use opi_spdk::api;
use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::{Value, json};

const TABLE: &str = include_str!("data/opi-api.tsv");

/// An RPC as the table has it.
struct Rpc {
    method: &'static str,
    template: &'static str,
}

/// The routes, and which of them have been taken.
struct Routes {
    http: Http,
    rpcs: BTreeMap<&'static str, Rpc>,
    taken: Mutex<BTreeSet<&'static str>>,
}

impl Routes {
    fn new(target: &Target) -> Self {
        let rpcs = TABLE.lines().filter_map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            let ("rpc", name) = (columns[0], columns[1].rsplit('.').next()?) else {
                return None;
            };
            let (method, template) = columns[4].split_once(' ')?;
            Some((name, Rpc { method, template }))
        });
        Self {
            http: Http(target.http),
            rpcs: rpcs.collect(),
            taken: Mutex::default(),
        }
    }

    /// Takes the route of an RPC; `name` is what its path names.
    async fn call(&self, rpc: &str, name: &str, query: &str, body: Option<&Value>) -> Answer {
        let (rpc, Rpc { method, template }) = self
            .rpcs
            .get_key_value(rpc)
            .unwrap_or_else(|| panic!("no {rpc}"));
        let path = match (template.find('{'), template.find('}')) {
            (Some(from), Some(to)) => {
                let (_, pattern) = template[from + 1..to].split_once('=').expect("a pattern");
                let name = if pattern.contains('*') { name } else { pattern };
                format!("{}{name}{}", &template[..from], &template[to + 1..])
            }
            _ => (*template).to_owned(),
        };
        let query = if query.is_empty() {
            String::new()
        } else {
            format!("?{query}")
        };
        let body = body
            .map(|body| body.to_string().into_bytes())
            .unwrap_or_default();
        self.taken.lock().expect("no panic").insert(rpc);
        self.http
            .send(method, &format!("{path}{query}"), &[], body)
            .await
    }

    /// The same for a call that must succeed.
    async fn ok(&self, rpc: &str, name: &str, query: &str, body: Option<&Value>) -> Value {
        let answer = self.call(rpc, name, query, body).await;
        assert_eq!(
            answer.status, 200,
            "{rpc} {name}?{query} {body:?}: {}",
            answer.body
        );
        assert_eq!(answer.headers["content-type"], "application/json");
        answer.body
    }

    /// The same for a call that must fail, with this HTTP status and this code of gRPC.
    async fn fails(
        &self,
        rpc: &str,
        name: &str,
        query: &str,
        body: Option<&Value>,
        wanted: (u16, i32),
    ) {
        let answer = self.call(rpc, name, query, body).await;
        expect_error(&answer, wanted, &format!("{rpc} {name}?{query} {body:?}"));
    }
}

fn expect_error(answer: &Answer, (status, code): (u16, i32), call: &str) {
    assert_eq!(answer.status, status, "{call}: {}", answer.body);
    let fields: Vec<&String> = answer.body.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["code", "details", "message"], "{call}");
    assert_eq!(answer.body["code"], code, "{call}: {}", answer.body);
    assert!(
        !answer.body["message"].as_str().expect("a text").is_empty(),
        "{call}"
    );
    let details = answer.body["details"].as_array().expect("a list");
    let reason = |detail: &Value| detail["@type"] == "type.googleapis.com/google.rpc.ErrorInfo";
    assert!(details.iter().any(reason), "{call}: {}", answer.body);
}

const NOT_FOUND: (u16, i32) = (404, 5);
const ALREADY_EXISTS: (u16, i32) = (409, 6);
const INVALID: (u16, i32) = (400, 3);
const WRONG_STATE: (u16, i32) = (400, 9);

/// One object of a kind, and a change of it.
struct Case {
    message: &'static str,
    parent: &'static str,
    object: Value,
    change: (&'static str, Value),
}

impl Case {
    fn new(
        message: &'static str,
        parent: &'static str,
        object: Value,
        change: (&'static str, Value),
    ) -> Self {
        Self {
            message,
            parent,
            object,
            change,
        }
    }

    /// `nvme_path`
    fn field(&self) -> String {
        let mut field = String::new();
        for c in self.message.chars() {
            if c.is_ascii_uppercase() && !field.is_empty() {
                field.push('_');
            }
            field.push(c.to_ascii_lowercase());
        }
        field
    }

    /// `nvmePath`
    fn camel(&self) -> String {
        let (first, rest) = self.message.split_at(1);
        first.to_lowercase() + rest
    }

    /// The name in the typed form, which is that of the routes.
    fn name(&self, id: &str) -> String {
        let name = format!("{}s/{id}", self.camel());
        if self.parent.is_empty() {
            name
        } else {
            format!("{}/{name}", self.parent)
        }
    }

    /// The canonical JSON of an object: camelCase, 64-bit numbers as strings.
    fn canonical(&self, object: &Value) -> Value {
        let name = format!("opi_api.storage.v1.{}", self.message);
        let message = api::pool().get_message_by_name(&name).expect("a kind");
        let message = DynamicMessage::deserialize(message, object).expect("of its type");
        let options = SerializeOptions::new().stringify_64_bit_integers(true);
        message
            .serialize_with_options(serde_json::value::Serializer, &options)
            .expect("JSON")
    }

    /// What an answer says of what was set: a key is never told.
    fn expected(&self, object: &Value) -> Value {
        let mut canonical = self.canonical(object);
        canonical.as_object_mut().expect("an object").remove("key");
        canonical
    }

    /// All routes of the kind, up to and including its deletion.
    async fn run(&self, routes: &Routes) {
        let [create, get, update, delete, stats] = ["Create", "Get", "Update", "Delete", "Stats"]
            .map(|verb| format!("{verb}{}", self.message));
        let (field, camel, name) = (self.field(), self.camel(), self.name("an-id"));
        let id = format!("{field}_id=an-id");

        routes.fails(&get, &name, "", None, NOT_FOUND).await;
        let made = routes
            .ok(&create, self.parent, &id, Some(&self.object))
            .await;
        common::assert_holds(&made, &self.expected(&self.object));
        // The other spellings mean the same object: so this is a retry, and no conflict.
        let canonical = self.canonical(&self.object);
        let again = routes
            .ok(
                &create,
                self.parent,
                &format!("{camel}Id=an-id"),
                Some(&canonical),
            )
            .await;
        assert_eq!(again, made);
        assert_eq!(routes.ok(&get, &name, "", None).await, made);

        let list = format!("List{}s", self.message);
        let plural = format!("{camel}s");
        let all = routes.ok(&list, self.parent, "page_size=250", None).await;
        assert!(
            all[&plural].as_array().expect("a list").contains(&made),
            "{all}"
        );
        for size in ["page_size=1", "pageSize=1"] {
            let page = routes.ok(&list, self.parent, size, None).await;
            assert_eq!(page[&plural].as_array().map(Vec::len), Some(1), "{page}");
        }
        routes
            .fails(&list, self.parent, "page_size=-1", None, INVALID)
            .await;
        routes
            .fails(&list, self.parent, "page_token=x", None, INVALID)
            .await;

        let counters = routes.ok(&stats, &name, "", None).await;
        assert_eq!(
            counters["stats"].as_object().map(|stats| stats.len()),
            Some(9),
            "{counters}"
        );

        self.change(routes, &update, &name, &made).await;
        self.refusals(routes, &name, [&create, &get, &update, &delete])
            .await;
        assert_eq!(routes.ok(&delete, &name, "", None).await, json!({}));
        routes.fails(&delete, &name, "", None, NOT_FOUND).await;
        for allowed in ["allow_missing=true", "allowMissing=true"] {
            assert_eq!(routes.ok(&delete, &name, allowed, None).await, json!({}));
        }
        routes.fails(&stats, &name, "", None, NOT_FOUND).await;
    }

    async fn change(&self, routes: &Routes, update: &str, name: &str, made: &Value) {
        let (path, value) = &self.change;
        let changed = only(path, value.clone());
        let there = with(self.object.clone(), path, value.clone());
        // What is not in the body stays.
        let answer = routes.ok(update, name, "", Some(&changed)).await;
        common::assert_holds(&answer, &self.expected(&there));
        // Back again, with a mask that names the field alone.
        let back = only(path, at(&self.object, path).clone());
        let masked = routes
            .ok(update, name, &format!("update_mask={path}"), Some(&back))
            .await;
        common::assert_holds(&masked, &self.expected(&self.object));
        let answer = routes
            .ok(update, name, &format!("updateMask={path}"), Some(&changed))
            .await;
        common::assert_holds(&answer, &self.expected(&there));
        let whole = self.canonical(&self.object);
        let whole = routes.ok(update, name, "update_mask=*", Some(&whole)).await;
        common::assert_holds(&whole, &self.expected(&self.object));
        assert_eq!(whole["name"], made["name"]);
    }

    async fn refusals(
        &self,
        routes: &Routes,
        name: &str,
        [create, get, update, delete]: [&str; 4],
    ) {
        let id = format!("{}_id=an-id", self.field());
        let (path, value) = &self.change;
        // Changes of a key are no other content that an answer could show.
        let other = with(self.object.clone(), path, value.clone());
        routes
            .fails(create, self.parent, &id, Some(&other), ALREADY_EXISTS)
            .await;
        let wrong = format!("{}_id=Not%20an%20ID", self.field());
        routes
            .fails(create, self.parent, &wrong, Some(&self.object), INVALID)
            .await;
        routes
            .fails(
                create,
                self.parent,
                "no_such_parameter=1",
                Some(&self.object),
                INVALID,
            )
            .await;
        routes
            .fails(
                create,
                self.parent,
                "",
                Some(&json!({ "noSuchField": 1 })),
                INVALID,
            )
            .await;
        routes
            .fails(create, self.parent, "", Some(&json!([1])), INVALID)
            .await;
        routes
            .fails(
                update,
                name,
                "update_mask=no_such_field",
                Some(&self.object),
                INVALID,
            )
            .await;
        routes
            .fails(
                update,
                name,
                "",
                Some(&json!({ "noSuchField": 1 })),
                INVALID,
            )
            .await;
        let missing = self.name("missing");
        routes
            .fails(update, &missing, "", Some(&self.object), NOT_FOUND)
            .await;
        routes.fails(get, &missing, "", None, NOT_FOUND).await;
        routes
            .fails(delete, &missing, "allow_missing=maybe", None, INVALID)
            .await;
    }
}

/// What the cases stand on: volumes, a subsystem that listens, a remote controller with a path to it.
async fn base(routes: &Routes) -> u16 {
    let volume = json!({ "block_size": 512, "blocks_count": 2048 });
    for id in ["one", "two", "shown"] {
        routes
            .ok(
                "CreateMallocVolume",
                "",
                &format!("malloc_volume_id={id}"),
                Some(&volume),
            )
            .await;
    }
    let subsystem = json!({ "spec": { "nqn": nqn_of("base") } });
    routes
        .ok(
            "CreateNvmeSubsystem",
            "",
            "nvme_subsystem_id=base",
            Some(&subsystem),
        )
        .await;
    let parent = "nvmeSubsystems/base";
    // An identity of its own: in one process the volume and what the path brings are both there.
    let uuid = "2f0ac35e-9f3c-4f4b-8f0e-0a6c5d7ed1a1";
    let shown =
        json!({ "spec": { "volume_name_ref": "volumes/shown", "uuid": uuid, "nguid": uuid } });
    routes
        .ok(
            "CreateNvmeNamespace",
            parent,
            "nvme_namespace_id=shown",
            Some(&shown),
        )
        .await;
    let port = free_port();
    routes
        .ok(
            "CreateNvmeController",
            parent,
            "nvme_controller_id=tcp",
            Some(&tcp_spec(port)),
        )
        .await;
    let remote = json!({ "multipath": "NVME_MULTIPATH_DISABLE" });
    let id = "nvme_remote_controller_id=remote";
    routes
        .ok("CreateNvmeRemoteController", "", id, Some(&remote))
        .await;
    routes
        .ok(
            "CreateVirtioScsiTarget",
            "",
            "virtio_scsi_target_id=one",
            Some(&json!({})),
        )
        .await;
    routes
        .ok(
            "CreateVirtioScsiTarget",
            "",
            "virtio_scsi_target_id=two",
            Some(&json!({})),
        )
        .await;
    port
}

/// An object of every kind that can be made.
fn cases(dir: &std::path::Path, port: u16) -> Vec<Case> {
    let file = |name: &str| {
        let path = dir.join(name);
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(64 * 512))
            .expect("there is room");
        path.display().to_string()
    };
    let volume = || json!({ "block_size": 512, "blocks_count": 64 });
    let on_volume = |more: Value| with(more, "volume_name_ref", json!("volumes/one"));
    let pcie = json!({ "port_id": 0, "physical_function": 1, "virtual_function": 0 });
    let other_volume = || ("volume_name_ref", json!("volumes/two"));
    let namespace = json!({ "spec": {
        "volume_name_ref": "volumes/one", "host_nsid": 5, "eui64": 1_967_554_867_335_598_546_i64,
        "uuid": "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb", "nguid": "1b4e28ba2fa111d2883fb9a761bde3fb",
    }});
    let subsystem =
        json!({ "spec": { "nqn": nqn_of("a-case"), "serial_number": "s1", "max_namespaces": 9 } });
    let remote = json!({ "multipath": "NVME_MULTIPATH_FAILOVER", "queue_size": 128, "tcp": { "hdgst": true } });
    let path = json!({
        "trtype": "NVME_TRANSPORT_TYPE_TCP", "traddr": "127.0.0.1", "fabrics": {
            "trsvcid": port, "subnqn": nqn_of("base"), "adrfam": "NVME_ADDRESS_FAMILY_IPV4",
            "hostnqn": nqn_of("host"),
        },
    });
    let encrypted = json!({
        "key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWU=", "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
    });
    let (sub, remotes) = ("nvmeSubsystems/base", "nvmeRemoteControllers/remote");
    let case = Case::new;
    vec![
        case("NullVolume", "", volume(), ("blocks_count", json!(128))),
        case("MallocVolume", "", volume(), ("blocks_count", json!(128))),
        case(
            "AioVolume",
            "",
            json!({ "block_size": 512, "filename": file("a") }),
            ("filename", json!(file("b"))),
        ),
        case(
            "NvmeSubsystem",
            "",
            subsystem,
            ("spec.serial_number", json!("s2")),
        ),
        case(
            "NvmeNamespace",
            sub,
            namespace,
            ("spec.volume_name_ref", json!("volumes/two")),
        ),
        case(
            "NvmeController",
            sub,
            tcp_spec(free_port()),
            ("spec.fabrics_id.trsvcid", json!(free_port().to_string())),
        ),
        case(
            "NvmeController",
            sub,
            pcie_spec(1),
            ("spec.pcie_id.physical_function", json!(2)),
        ),
        case(
            "NvmeRemoteController",
            "",
            remote,
            ("queue_size", json!(64)),
        ),
        case(
            "NvmePath",
            remotes,
            path,
            ("fabrics.hostnqn", json!(nqn_of("other"))),
        ),
        case(
            "QosVolume",
            "",
            on_volume(json!({ "limits": { "max": { "rw_bandwidth_mbs": 8 } } })),
            other_volume(),
        ),
        case("EncryptedVolume", "", on_volume(encrypted), other_volume()),
        case(
            "VirtioBlk",
            "",
            on_volume(json!({ "pcie_id": pcie.clone() })),
            other_volume(),
        ),
        case(
            "VirtioScsiTarget",
            "",
            json!({ "max_luns": 3 }),
            ("max_luns", json!(4)),
        ),
        case(
            "VirtioScsiController",
            "",
            json!({ "pcie_id": pcie }),
            ("pcie_id.virtual_function", json!(3)),
        ),
        case(
            "VirtioScsiLun",
            "",
            on_volume(json!({ "target_name_ref": "virtioScsiTargets/one" })),
            ("target_name_ref", json!("virtioScsiTargets/two")),
        ),
    ]
}

/// What is at the end of a path, and the reset of the whole.
async fn remote_namespaces(routes: &Routes, path: &Case) {
    let remote = "nvmeRemoteControllers/remote";
    let reset = "ResetNvmeRemoteController";
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
    let routes = Routes::new(&target);
    assert_eq!(routes.rpcs.len(), 88);
    let port = base(&routes).await;
    let cases = cases(target.scratch(), port);
    for case in &cases {
        eprintln!("{}", case.message);
        case.run(&routes).await;
    }
    let path = cases
        .iter()
        .find(|case| case.message == "NvmePath")
        .expect("in the table");
    remote_namespaces(&routes, path).await;
    let inventory = routes
        .ok("GetInventory", "inventory/1/inventory/2", "", None)
        .await;
    assert!(
        inventory["processor"]["totalThreads"]
            .as_u64()
            .is_some_and(|threads| threads > 0)
    );

    let taken = routes.taken.lock().expect("no panic").clone();
    let all: BTreeSet<&str> = routes.rpcs.keys().copied().collect();
    assert_eq!(
        all.difference(&taken).collect::<Vec<_>>(),
        [&""; 0],
        "routes that nobody took"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn numbers_lists_and_errors_of_the_gateway_itself() {
    let target = Target::start().await;
    let routes = Routes::new(&target);
    let http = routes.http;
    for (id, size) in [
        ("a", json!(512)),
        ("b", json!("512")),
        ("c", json!(512.0)),
        ("d", json!(5.12e2)),
    ] {
        let body = json!({ "blockSize": size, "blocks_count": "64" });
        let made = routes
            .ok(
                "CreateNullVolume",
                "",
                &format!("null_volume_id={id}"),
                Some(&body),
            )
            .await;
        assert_eq!(
            (&made["blockSize"], &made["blocksCount"]),
            (&json!("512"), &json!("64"))
        );
        let limits = json!({ "volumeNameRef": id, "limits": { "max": { "rwBandwidthMbs": 4 } } });
        routes
            .ok(
                "CreateQosVolume",
                "",
                &format!("qosVolumeId=limit-{id}"),
                Some(&limits),
            )
            .await;
    }
    for size in [
        json!(512.5),
        json!("x"),
        json!(true),
        json!([512]),
        json!("9223372036854775808"),
    ] {
        let body = json!({ "block_size": size, "blocks_count": 64 });
        routes
            .fails("CreateNullVolume", "", "", Some(&body), INVALID)
            .await;
    }
    // Two lists have one route: it answers both, page by page; each has one of its own besides.
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let page = http
            .send(
                "GET",
                &format!("/v1/volumes?page_size=3&page_token={token}"),
                &[],
                vec![],
            )
            .await;
        assert_eq!(
            (page.status, &page.body["encryptedVolumes"]),
            (200, &json!([])),
            "{page:?}"
        );
        let items = page.body["qosVolumes"].as_array().expect("a list");
        names.extend(
            items
                .iter()
                .map(|item| item["name"].as_str().expect("a name").to_owned()),
        );
        let next = page.body["nextPageToken"]
            .as_str()
            .expect("a token")
            .as_bytes();
        token =
            percent_encoding::percent_encode(next, percent_encoding::NON_ALPHANUMERIC).to_string();
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(
        names,
        [
            "volumes/limit-a",
            "volumes/limit-b",
            "volumes/limit-c",
            "volumes/limit-d"
        ]
    );
    let own = http.send("GET", "/v1/qosVolumes", &[], vec![]).await;
    assert_eq!(
        own.body["qosVolumes"].as_array().map(Vec::len),
        Some(4),
        "{own:?}"
    );
    let own = http.send("GET", "/v1/encryptedVolumes", &[], vec![]).await;
    assert_eq!(
        (own.status, &own.body["encryptedVolumes"]),
        (200, &json!([]))
    );

    for (method, path, body, wanted) in [
        ("GET", "/v1/nothing", "", NOT_FOUND),
        ("GET", "/v2/nullVolumes", "", NOT_FOUND),
        ("PUT", "/v1/nullVolumes", "", (405, 12)),
        ("POST", "/v1/nullVolumes", "{\"block_size\": 512,}", INVALID),
        ("POST", "/v1/nullVolumes", "", INVALID),
        ("POST", "/v1/nullVolumes", "{} {}", INVALID),
        ("GET", "/v1/nullVolumes/a?name=b", "", INVALID),
        ("DELETE", "/v1/nullVolumes/a", "", WRONG_STATE),
    ] {
        let answer = http.send(method, path, &[], body.into()).await;
        expect_error(&answer, wanted, &format!("{method} {path} {body}"));
    }
    let broken = http
        .send(
            "POST",
            "/v1/nullVolumes",
            &[],
            "{\n  \"block_size\": ?}".into(),
        )
        .await;
    let message = broken.body["message"].as_str().expect("a text");
    assert!(
        message.contains("line 2 column 17"),
        "the position is not told: {message}"
    );
}

/// As operators of OPI's bridges type them.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn curl_takes_a_disk_out_to_hosts_and_back() {
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
