//! Random requests to the running program, made after the descriptors and nearly right: none is a
//! fault of the server, none hangs, and afterwards the API lists what there is in SPDK.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use common::{
    Client, Http, Options, Random, Resource, Target, Tool, eventually, free_port, name_of, nqn_of,
};
use opi_spdk::api;
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};
use serde_json::{Map, Value, json};

/// Clients at a time, and how much each of them asks.
const CLIENTS: u64 = 4;
const REQUESTS: usize = 700;
const TIME: Duration = Duration::from_secs(40);

/// What a request may be answered with, whatever is in it.
const STATUSES: [u16; 9] = [200, 400, 404, 405, 409, 429, 501, 503, 504];

/// All kinds that can be made, users before what they use.
const KINDS: [&str; 14] = [
    "VirtioScsiLun",
    "VirtioScsiController",
    "VirtioScsiTarget",
    "VirtioBlk",
    "NvmeNamespace",
    "QosVolume",
    "EncryptedVolume",
    "NvmePath",
    "NvmeRemoteController",
    "NvmeController",
    "NvmeSubsystem",
    "AioVolume",
    "MallocVolume",
    "NullVolume",
];

/// All but what a name of the API has, and what is escaped already.
const ESCAPED: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'%')
    .remove(b'.')
    .remove(b'_')
    .remove(b'-');

const IDS: [&str; 4] = ["a", "b", "c", "d"];

/// One client's chance, and the values that make sense on the machine.
struct Fuzz {
    random: Random,
    files: Vec<String>,
    ports: Vec<u16>,
}

impl Fuzz {
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len())].clone()
    }

    fn id(&mut self) -> &'static str {
        if self.random.one_in(25) {
            self.pick(&["", "A", "a b", "%2F", "..", "ä"])
        } else {
            self.pick(&IDS)
        }
    }

    fn message(&mut self, message: &MessageDescriptor) -> Value {
        let mut object = Map::new();
        for field in message.fields() {
            let one_of_many = field.containing_oneof().is_some() && self.random.one_in(2);
            if one_of_many
                || field.name() == "name"
                || field.name() == "status"
                || self.random.one_in(8)
            {
                continue;
            }
            let name = if self.random.one_in(2) {
                field.name()
            } else {
                field.json_name()
            };
            object.insert(name.to_owned(), self.value(&field));
        }
        object.into()
    }

    /// Mostly what the field is for.
    fn value(&mut self, field: &FieldDescriptor) -> Value {
        if self.random.one_in(80) {
            return self.random.anything(3);
        }
        match field.name() {
            "block_size" => {
                self.pick(&[json!(512), json!("4096"), json!(512), json!(513), json!(-1)])
            }
            "blocks_count" => self.pick(&[
                json!(8),
                json!("64"),
                json!(2048),
                json!(0),
                json!(i64::MAX),
            ]),
            "metadata_size" | "min_limit" | "min" => json!(null),
            "volume_name_ref" => {
                let id = self.id();
                let form = self.pick(&["volumes/ID", "volumes/ID", "ID", "nullVolumes/ID"]);
                json!(form.replace("ID", id))
            }
            "target_name_ref" => {
                let id = self.id();
                let form = self.pick(&["virtioScsiTargets/ID", "virtioScsiControllers/ID", "ID"]);
                json!(form.replace("ID", id))
            }
            "filename" => json!(self.pick(&self.files.clone())),
            "nqn" | "subnqn" => json!(nqn_of(self.id())),
            "hostnqn" if self.random.one_in(10) => json!("nqn"),
            "hostnqn" => self.pick(&[json!(""), json!(nqn_of("host"))]),
            "psk" => json!(""),
            "traddr" => json!(self.pick(&[
                "127.0.0.1",
                "127.0.0.1",
                "127.0.0.1",
                "::1",
                "localhost",
                "300.0.0.1"
            ])),
            "trsvcid" => json!(self.pick(&self.ports.clone()).to_string()),
            "adrfam" => json!(self.pick(&[
                "NVME_ADDRESS_FAMILY_IPV4",
                "NVME_ADDRESS_FAMILY_IPV4",
                "NVME_ADDRESS_FAMILY_IPV6"
            ])),
            "trtype" => json!(self.pick(&[
                "NVME_TRANSPORT_TYPE_TCP",
                "NVME_TRANSPORT_TYPE_TCP",
                "NVME_TRANSPORT_TYPE_PCIE"
            ])),
            "uuid" => self.pick(&[
                json!(""),
                json!("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"),
                json!("x"),
            ]),
            "cipher" => json!(self.pick(&[
                "ENCRYPTION_TYPE_AES_XTS_128",
                "ENCRYPTION_TYPE_AES_XTS_256",
                "ENCRYPTION_TYPE_AES_CBC_128"
            ])),
            "key" => {
                let bytes: Vec<u8> = (0..self.pick(&[32_u8, 64, 31])).collect();
                json!(base64::engine::general_purpose::STANDARD.encode(bytes))
            }
            _ => self.of_its_type(field),
        }
    }

    fn of_its_type(&mut self, field: &FieldDescriptor) -> Value {
        match field.kind() {
            Kind::Message(wrapper) if wrapper.full_name() == "google.protobuf.Int32Value" => {
                let number = if self.random.one_in(8) { -1 } else { 0 };
                json!(number)
            }
            Kind::Message(inside) => self.message(&inside),
            Kind::Int32 | Kind::Int64 => self.pick(&[
                json!(0),
                json!(0),
                json!(1),
                json!("2"),
                json!(16),
                json!(-1),
                json!(i64::MAX),
            ]),
            Kind::String => json!(self.pick(&["", "", "text"])),
            _ => self.random.field(field, 3),
        }
    }

    /// Method, path and body of a call of this RPC.
    fn request(&mut self, rpc: &MethodDescriptor) -> (String, String, Vec<u8>) {
        let (method, template, body) = route(rpc);
        let mut path = template.replace(['{', '}'], "");
        if let Some((before, after)) = path.split_once('=') {
            path = format!("{}{after}", &before[..=before.rfind('/').expect("a path")]);
        }
        while path.contains('*') {
            let id = if self.random.one_in(40) {
                self.random.segment().trim_matches('*')
            } else {
                self.id()
            };
            path = path.replacen('*', &escape(id), 1);
        }
        let input = rpc.input();
        let mut query = Vec::new();
        for field in input.fields().filter(|field| field.name() != body) {
            let value = match field.name() {
                name if name.ends_with("_id") => self.id().to_owned(),
                "update_mask" => self
                    .pick(&[
                        "*",
                        "blocks_count",
                        "spec",
                        "volume_name_ref",
                        "spec.nqn",
                        "x",
                    ])
                    .to_owned(),
                "allow_missing" => self.pick(&["true", "false", "1"]).to_owned(),
                "page_size" => self.pick(&["0", "1", "250", "-1", "x"]).to_owned(),
                _ => continue,
            };
            if field.name().ends_with("_id") || self.random.one_in(3) {
                query.push(format!("{}={}", field.name(), escape(&value)));
            }
        }
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        let body = match input.get_field_by_name(&body) {
            Some(field) => self
                .message(field.kind().as_message().expect("a body is a message"))
                .to_string(),
            None => {
                if body == "*" {
                    "{}".to_owned()
                } else {
                    String::new()
                }
            }
        };
        let body = body.into_bytes();
        let body = if self.random.one_in(50) {
            self.random.damage(body)
        } else {
            body
        };
        (method, path, body)
    }
}

fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, ESCAPED).to_string()
}

/// Method, path template and body field of the RPC's HTTP option.
fn route(rpc: &MethodDescriptor) -> (String, String, String) {
    let http = api::pool()
        .get_extension_by_name("google.api.http")
        .expect("it is imported");
    let options = rpc.options();
    let rule = options.get_extension(&http);
    let rule = rule.as_message().expect("a message");
    let text = |name: &str| {
        let value = rule.get_field_by_name(name).expect("a field of it");
        value.as_str().unwrap_or_default().to_owned()
    };
    let method = ["get", "post", "delete", "patch"]
        .into_iter()
        .find(|method| !text(method).is_empty());
    let method = method.unwrap_or_else(|| panic!("{} has no route", rpc.name()));
    (method.to_uppercase(), text(method), text("body"))
}

/// Asks at random; how often each RPC was answered with each status.
async fn ask(http: Http, mut fuzz: Fuzz, end: Instant) -> BTreeMap<(String, u16), usize> {
    let all: Vec<MethodDescriptor> = api::pool()
        .services()
        .flat_map(|s| s.methods().collect::<Vec<_>>())
        .collect();
    let creates: Vec<_> = all
        .iter()
        .filter(|rpc| rpc.name().starts_with("Create"))
        .cloned()
        .collect();
    let mut answers = BTreeMap::new();
    for _ in 0..REQUESTS {
        if Instant::now() > end {
            break;
        }
        let rpc = if fuzz.random.one_in(2) {
            fuzz.pick(&creates)
        } else {
            fuzz.pick(&all)
        };
        let (method, path, body) = fuzz.request(&rpc);
        let shown = String::from_utf8_lossy(&body).into_owned();
        let answer = http.send(&method, &path, &[], body).await;
        assert!(
            STATUSES.contains(&answer.status),
            "{method} {path} {shown}: {} {}",
            answer.status,
            answer.body
        );
        assert!(
            answer.body.is_object(),
            "{method} {path} {shown}: {}",
            answer.body
        );
        *answers
            .entry((rpc.name().to_owned(), answer.status))
            .or_default() += 1;
    }
    answers
}

/// What SPDK itself says, beside the API.
struct Spdk {
    socket: PathBuf,
}

impl Spdk {
    async fn list(&self, command: &str) -> Vec<Value> {
        let text = Tool::rpc(&self.socket)
            .arg(command)
            .run()
            .await
            .expect("SPDK answers");
        serde_json::from_str(&text).expect("a list")
    }

    async fn names(&self, command: &str, field: &str) -> BTreeSet<String> {
        let all = self.list(command).await;
        all.iter()
            .map(|item| item[field].as_str().expect("a text").to_owned())
            .collect()
    }
}

/// The last part of a name.
fn id_of(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().to_owned()
}

async fn ids(client: &Client, kinds: &[&'static str]) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for kind in kinds {
        ids.extend(
            Resource::new(client, kind)
                .names("")
                .await
                .iter()
                .map(|name| id_of(name)),
        );
    }
    ids
}

/// The names of all objects of a kind, in all parents.
async fn all_names(client: &Client, kind: &'static str) -> Vec<String> {
    let resource = Resource::new(client, kind);
    let parents = match kind {
        "NvmePath" => {
            Resource::new(client, "NvmeRemoteController")
                .names("")
                .await
        }
        _ if resource.nested => Resource::new(client, "NvmeSubsystem").names("").await,
        _ => vec![String::new()],
    };
    let mut names = Vec::new();
    for parent in parents {
        for object in resource.list(&parent).await {
            let name = name_of(&object);
            assert_eq!(
                resource.get(&name).await.expect("what is listed is there"),
                object
            );
            names.push(name);
        }
    }
    names
}

async fn check_against_spdk(client: &Client, spdk: &Spdk) {
    // A remote namespace comes and goes with its peer, which is another subsystem here.
    eventually(
        "the volumes are the bdevs",
        Duration::from_secs(20),
        async || {
            let mut volumes = ids(
                client,
                &["NullVolume", "MallocVolume", "AioVolume", "EncryptedVolume"],
            )
            .await;
            for remote in Resource::new(client, "NvmeRemoteController")
                .names("")
                .await
            {
                let list = client
                    .ok("ListNvmeRemoteNamespaces", json!({ "parent": remote }))
                    .await;
                let list = list["nvme_remote_namespaces"]
                    .as_array()
                    .expect("a list")
                    .clone();
                volumes.extend(list.iter().map(|namespace| id_of(&name_of(namespace))));
            }
            let bdevs = spdk.names("bdev_get_bdevs", "name").await;
            if volumes != bdevs {
                eprintln!("volumes {volumes:?}, bdevs {bdevs:?}");
            }
            (volumes == bdevs).then_some(())
        },
    )
    .await;
    let sockets = ids(client, &["VirtioBlk", "VirtioScsiController"]).await;
    assert_eq!(spdk.names("vhost_get_controllers", "ctrlr").await, sockets);

    let mut subsystems = BTreeMap::new();
    for object in Resource::new(client, "NvmeSubsystem").list("").await {
        let name = name_of(&object);
        let count = async |kind| Resource::new(client, kind).names(&name).await.len();
        let nqn = object["spec"]["nqn"].as_str().expect("a text").to_owned();
        subsystems.insert(
            nqn,
            (count("NvmeNamespace").await, count("NvmeController").await),
        );
    }
    let len = |value: &Value| value.as_array().map_or(0, Vec::len);
    let there: BTreeMap<String, (usize, usize)> = (spdk.list("nvmf_get_subsystems").await.iter())
        .filter(|subsystem| subsystem["subtype"] == "NVMe")
        .map(|subsystem| {
            let nqn = subsystem["nqn"].as_str().expect("a text").to_owned();
            (
                nqn,
                (
                    len(&subsystem["namespaces"]),
                    len(&subsystem["listen_addresses"]),
                ),
            )
        })
        .collect();
    assert_eq!(
        subsystems, there,
        "namespaces and controllers of each subsystem"
    );
}

/// Deletes all there is: what is in use becomes free in a later round.
async fn delete_all(client: &Client) {
    let mut left = Vec::new();
    for _ in 0..4 {
        left.clear();
        for kind in KINDS {
            for name in all_names(client, kind).await {
                if let Err(status) = Resource::new(client, kind).delete(&name).await {
                    left.push(format!("{kind} {name}: {status}"));
                }
            }
        }
        if left.is_empty() {
            return;
        }
    }
    panic!("cannot be deleted: {left:#?}");
}

fn files(dir: &Path) -> Vec<String> {
    let file = |name: &str, length: u64| {
        let path = dir.join(name);
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(length))
            .expect("there is room");
        path.display().to_string()
    };
    vec![
        file("first", 1 << 20),
        file("second", 1 << 20),
        file("empty", 0),
        dir.display().to_string(),
        "relative".into(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_request_is_a_fault_of_the_server_and_lists_are_what_exists() {
    let dir = Arc::new(
        tempfile::Builder::new()
            .prefix("opi-")
            .tempdir()
            .expect("a directory"),
    );
    let spdk = Spdk {
        socket: dir.path().join("rpc.sock"),
    };
    let options = Options::hugepages().in_dir(Arc::clone(&dir));
    let options = options.args([
        "--spdk-rpc-socket".to_owned(),
        spdk.socket.display().to_string(),
    ]);
    let target = Target::start_with(options).await;
    let (files, ports) = (files(dir.path()), [free_port(), free_port()].to_vec());
    let end = Instant::now() + TIME;
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|client| {
            let random = Random(client.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let fuzz = Fuzz {
                random,
                files: files.clone(),
                ports: ports.clone(),
            };
            tokio::spawn(ask(Http(target.http), fuzz, end))
        })
        .collect();
    let mut answers: BTreeMap<(String, u16), usize> = BTreeMap::new();
    for client in clients {
        for (answer, count) in client.await.expect("no answer was a fault") {
            *answers.entry(answer).or_default() += count;
        }
    }
    eprintln!("{answers:?}");
    let made = KINDS
        .iter()
        .filter(|kind| answers.contains_key(&(format!("Create{kind}"), 200)));
    let made: Vec<_> = made.collect();
    assert!(made.len() >= 10, "only {made:?} came to be");

    let client = target.client().await;
    assert!(client.is_serving().await);
    for kind in KINDS {
        all_names(&client, kind).await;
    }
    check_against_spdk(&client, &spdk).await;
    delete_all(&client).await;
    assert!(spdk.list("bdev_get_bdevs").await.is_empty());
    check_against_spdk(&client, &spdk).await;
    let log = target.log();
    assert!(!log.contains("panicked"), "{log}");
    target.stop();
}
