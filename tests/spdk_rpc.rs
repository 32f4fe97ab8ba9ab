//! SPDK's own JSON-RPC beside the API: off unless asked for, for its owner alone, and what is made
//! through it stays SPDK's.

mod common;

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use common::{
    Answer, Fixture, Http, Options, Resource, Target, Tool, free_port, name_of, namespace,
    subsystem, tcp_path,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

const PASSWORD: &str = "correct horse";

/// A directory for a target, the socket in it, and a file with the password.
struct Place {
    dir: Arc<TempDir>,
    http: Http,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("opi-")
            .tempdir()
            .expect("a directory");
        std::fs::write(dir.path().join("password"), format!("{PASSWORD}\n")).expect("a file");
        let place = Self {
            dir: Arc::new(dir),
            http: Http(([127, 0, 0, 1], free_port()).into()),
        };
        place.set_mode(0o600);
        place
    }

    fn set_mode(&self, mode: u32) {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.password(), permissions).expect("it is ours");
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("rpc.sock")
    }

    fn lock(&self) -> PathBuf {
        self.dir.path().join("rpc.sock.lock")
    }

    fn password(&self) -> PathBuf {
        self.dir.path().join("password")
    }

    fn options(&self) -> Options {
        let options = Options::default().in_dir(Arc::clone(&self.dir));
        options.args([
            "--spdk-rpc-socket".to_owned(),
            self.socket().display().to_string(),
        ])
    }

    fn with_proxy(&self) -> Options {
        let user = format!("admin:{}", self.password().display());
        let address = self.http.0.to_string();
        self.options()
            .args(["--spdk-rpc-http", &address, "--spdk-rpc-user", &user])
    }

    /// Runs a command of SPDK's own client.
    async fn rpc(&self, args: &[&str]) -> Result<Value, String> {
        let text = Tool::rpc(&self.socket())
            .args(args.iter().copied())
            .run()
            .await?;
        Ok(serde_json::from_str(&text).unwrap_or_else(|_| text.trim().into()))
    }

    async fn bdevs(&self) -> Vec<String> {
        let all = self.rpc(&["bdev_get_bdevs"]).await.expect("a list");
        let all = all.as_array().expect("a list");
        all.iter()
            .map(|bdev| bdev["name"].as_str().expect("a name").to_owned())
            .collect()
    }

    async fn post(&self, pair: &str, body: impl Into<Vec<u8>>) -> Answer {
        let basic = format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(pair)
        );
        self.http
            .send("POST", "/", &[("authorization", &basic)], body.into())
            .await
    }

    /// The last line of a start that must fail.
    fn refused(&self, options: &Options) -> String {
        let mut target = Target::spawn(options);
        let status = target.wait(Duration::from_secs(10));
        assert!(!status.success(), "it started:\n{}", target.log());
        target.log().lines().last().unwrap_or_default().to_owned()
    }
}

fn admin() -> String {
    format!("admin:{PASSWORD}")
}

/// More levels than SPDK takes: it closes the connection.
fn too_deep() -> String {
    let [open, close] = ["[", "]"].map(|bracket| bracket.repeat(70));
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"spdk_get_version","params":{open}{close}}}"#)
}

fn encrypted(base: &str) -> Value {
    json!({
        "volume_name_ref": base, "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
        "key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWU=",
    })
}

fn call(method: &str) -> String {
    json!({ "jsonrpc": "2.0", "id": 7, "method": method }).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_made_by_rpc_is_a_raw_bdev_and_no_object_of_the_api() {
    let place = Place::new();
    let target = Target::start_with(place.options()).await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "NullVolume");
    place
        .rpc(&["bdev_null_create", "raw", "4", "512"])
        .await
        .expect("made");

    assert!(
        volumes.names("").await.is_empty(),
        "a raw bdev is in a list"
    );
    assert_eq!(
        volumes
            .get("volumes/raw")
            .await
            .expect_err("no object")
            .code(),
        Code::NotFound
    );
    assert_eq!(
        volumes.delete("raw").await.expect_err("no object").code(),
        Code::NotFound
    );
    let object = json!({ "block_size": 512, "blocks_count": 8192 });
    let status = volumes
        .refused("", "raw", object.clone(), Code::AlreadyExists)
        .await;
    assert!(status.message().contains("\"raw\""), "{status}");

    let parent = subsystem(&client, "sub", json!({})).await;
    let shown = namespace(&client, &parent, "raw", json!({})).await;
    let status = volumes
        .refused("", "raw", object.clone(), Code::AlreadyExists)
        .await;
    assert!(status.message().contains("\"raw\""), "{status}");
    let other = Resource::new(&client, "NvmeNamespace");
    let twin = json!({ "spec": { "volume_name_ref": "raw" } });
    other
        .refused(&parent, "twin", twin, Code::FailedPrecondition)
        .await;
    let subsystems = place.rpc(&["nvmf_get_subsystems"]).await.expect("a list");
    let exported = subsystems
        .as_array()
        .expect("a list")
        .iter()
        .any(|s| s["namespaces"][0]["name"] == "raw");
    assert!(exported, "{subsystems}");

    other.deleted(&shown).await;
    place
        .rpc(&["bdev_null_delete", "raw"])
        .await
        .expect("free again");
    volumes.created("", "raw", object).await;
    assert_eq!(place.bdevs().await, ["raw"]);
    volumes.deleted("volumes/raw").await;
    assert!(place.bdevs().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_socket_is_its_owners_and_goes_with_the_target() {
    let place = Place::new();
    // A stale one, as a process that was killed leaves it.
    drop(UnixListener::bind(place.socket()).expect("a socket"));
    let target = Target::start_with(place.options()).await;
    let metadata = std::fs::metadata(place.socket()).expect("it is there");
    assert!(metadata.file_type().is_socket());
    assert_eq!(
        metadata.permissions().mode() & 0o077,
        0,
        "others may use it"
    );
    // For the tools that watch: threads and pollers, and SPDK's trace buffer.
    let threads = place.rpc(&["thread_get_stats"]).await.expect("an answer");
    assert!(
        threads["threads"]
            .as_array()
            .is_some_and(|threads| !threads.is_empty()),
        "{threads}"
    );
    let trace = place
        .rpc(&["trace_get_info"])
        .await
        .expect("a trace buffer");
    let file = format!(
        "/dev/shm{}",
        trace["tpoint_shm_path"]
            .as_str()
            .expect("a path")
            .replace("/dev/shm", "")
    );
    assert!(Path::new(&file).exists(), "{trace}");
    target.stop();
    for left in [place.socket(), place.lock(), file.into()] {
        assert!(!left.exists(), "{} is left behind", left.display());
    }
}

/// The unix sockets that a process listens on, by /proc: those of its files whose inodes the kernel lists
/// with a path.
fn listening(target: &Target) -> Vec<String> {
    let folder = format!("/proc/{}/fd", target.pid().as_raw_nonzero());
    let files = std::fs::read_dir(folder).expect("its files");
    let inodes: Vec<String> = files
        .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
        .filter_map(|to| {
            let inode = to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let all = std::fs::read_to_string("/proc/net/unix").expect("the kernel's list");
    let named = all.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (inode, path) = (columns.get(6)?, columns.get(7)?);
        inodes
            .iter()
            .any(|own| own == inode)
            .then(|| (*path).to_owned())
    });
    named.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_the_setting_there_is_no_socket() {
    let place = Place::new();
    let target = Target::start_with(place.options()).await;
    assert_eq!(listening(&target), [place.socket().display().to_string()]);
    let target = {
        let next = Options::default().after(&target);
        target.stop();
        Target::start_with(next).await
    };
    assert!(listening(&target).is_empty(), "{:?}", listening(&target));
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_controller_that_is_attached_by_rpc_is_beside_those_of_the_api() {
    let place = Place::new();
    let target = Target::start_with(place.options()).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let (export, other) = (Fixture::tcp(&peer, 16).await, Fixture::tcp(&peer, 16).await);
    let client = target.client().await;
    let [remotes, paths] = ["NvmeRemoteController", "NvmePath"].map(|k| Resource::new(&client, k));
    let attach = async |name: &str| {
        let (nqn, port) = (other.nqn.as_str(), other.port.to_string());
        let to = [
            "-a",
            "127.0.0.1",
            "-s",
            &port,
            "-n",
            nqn,
            "-t",
            "tcp",
            "-f",
            "ipv4",
        ];
        let attach = ["bdev_nvme_attach_controller", "-b", name];
        let attached = place.rpc(&[&attach[..], &to].concat()).await;
        attached.expect("attached")
    };
    let detach = async |name: &str| {
        let detached = place.rpc(&["bdev_nvme_detach_controller", name]).await;
        detached.expect("it is still there")
    };
    attach("raw").await;
    let object = json!({ "multipath": "NVME_MULTIPATH_MULTIPATH" });
    let status = remotes
        .refused("", "raw", object, Code::AlreadyExists)
        .await;
    assert!(status.message().contains("\"raw\""), "{status}");

    // One that takes the name of the API's while that has no path.
    let own = common::remote_controller(&client, "own", "MULTIPATH").await;
    detach("raw").await;
    attach("own").await;
    let list = json!({ "parent": own });
    let found = client.ok("ListNvmeRemoteNamespaces", list.clone()).await;
    assert_eq!(found["nvme_remote_namespaces"], json!([]), "{found}");
    let path = tcp_path(export.port, &export.nqn);
    let status = paths
        .refused(&own, "p", path.clone(), Code::FailedPrecondition)
        .await;
    assert!(status.message().contains("not known here"), "{status}");
    detach("own").await;

    // A raw one first does not keep the API from its own.
    attach("raw").await;
    let path = name_of(&paths.created(&own, "p", path).await);
    let found = client.ok("ListNvmeRemoteNamespaces", list).await;
    assert_eq!(
        found["nvme_remote_namespaces"].as_array().map(Vec::len),
        Some(1)
    );
    paths.deleted(&path).await;
    detach("raw").await;
    target.stop();
    peer.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_takes_the_place_of_a_volume_is_not_touched() {
    let place = Place::new();
    let target = Target::start_with(place.options()).await;
    let client = target.client().await;
    let object = json!({ "block_size": 512, "blocks_count": 64 });
    for (kind, delete) in [
        ("NullVolume", "bdev_null_delete"),
        ("MallocVolume", "bdev_malloc_delete"),
    ] {
        let volumes = Resource::new(&client, kind);
        let name = name_of(&volumes.created("", "api", object.clone()).await);
        let first = place.rpc(&["bdev_get_bdevs"]).await;
        place.rpc(&[delete, "api"]).await.expect("deleted");
        // One that has only gone is made again, the same, by its repeated creation or a change.
        volumes.created("", "api", object.clone()).await;
        assert_eq!(place.rpc(&["bdev_get_bdevs"]).await, first, "{kind}");
        place.rpc(&[delete, "api"]).await.expect("deleted");
        let wider = json!({ "blocks_count": 128 });
        volumes.updated(&name, wider, None).await;
        volumes.stats(&name).await;
        place.rpc(&[delete, "api"]).await.expect("deleted");
        let made = place.rpc(&["bdev_null_create", "api", "4", "4096"]).await;
        made.expect("a raw one of that name");
        let before = place.rpc(&["bdev_get_bdevs"]).await;

        let state = Code::FailedPrecondition;
        client
            .fails(&format!("Stats{kind}"), json!({ "name": name }), state)
            .await;
        for change in [
            json!({ "blocks_count": 256 }),
            json!({ "block_size": 4096 }),
        ] {
            volumes.update_refused(&name, change, None, state).await;
        }
        volumes.deleted(&name).await;
        assert_eq!(place.rpc(&["bdev_get_bdevs"]).await, before, "{kind}");
        let made = place.rpc(&["bdev_null_delete", "api"]).await;
        made.expect("it is still there");
    }

    let volumes = Resource::new(&client, "EncryptedVolume");
    common::malloc(&client, "base", 4).await;
    let secret = volumes.created("", "secret", encrypted("base")).await;
    let made = place.rpc(&["bdev_crypto_delete", "secret"]).await;
    made.expect("deleted");
    let made = place.rpc(&["bdev_null_create", "secret", "4", "512"]).await;
    made.expect("a raw one of that name");
    let name = json!({ "name": name_of(&secret) });
    for call in ["StatsEncryptedVolume", "DeleteEncryptedVolume"] {
        let state = Code::FailedPrecondition;
        client.fails(call, name.clone(), state).await;
    }
    let made = place.rpc(&["bdev_null_delete", "secret"]).await;
    made.expect("it is still there");
    volumes.deleted(&name_of(&secret)).await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_proxy_forwards_for_its_user_only() {
    let place = Place::new();
    let target = Target::start_with(place.with_proxy()).await;
    let version = place.post(&admin(), call("spdk_get_version")).await;
    assert_eq!(
        (version.status, &version.body["id"]),
        (200, &json!(7)),
        "{version:?}"
    );
    assert_eq!(version.headers["content-type"], "application/json");
    let version = version.body["result"]["version"]
        .as_str()
        .expect("a version")
        .to_owned();
    assert!(version.starts_with("SPDK v26.01"), "{version}");

    let made = json!({
        "jsonrpc": "2.0", "id": 1, "method": "bdev_null_create",
        "params": { "name": "raw", "num_blocks": 8, "block_size": 512 },
    });
    assert_eq!(
        place.post(&admin(), made.to_string()).await.body["result"],
        "raw"
    );
    // An error of SPDK is an answer, as it is at the socket.
    let twice = place.post(&admin(), made.to_string()).await;
    assert_eq!(twice.status, 200);
    assert!(twice.body["error"]["code"].is_i64(), "{twice:?}");
    // What has no id gets no answer, and is done all the same.
    let silent =
        json!({ "jsonrpc": "2.0", "method": "bdev_null_delete", "params": { "name": "raw" } });
    let answer = place.post(&admin(), silent.to_string()).await;
    assert_eq!((answer.status, answer.body), (204, Value::Null));
    // An id of null is none to SPDK: many of them keep no place either.
    for _ in 0..20 {
        let null = json!({ "jsonrpc": "2.0", "id": null, "method": "spdk_get_version" });
        assert_eq!(place.post(&admin(), null.to_string()).await.status, 204);
    }
    let gone = async || place.bdevs().await.is_empty().then_some(());
    common::eventually("the bdev is gone", Duration::from_secs(5), gone).await;
    // A list of all methods is more than one packet.
    let methods = place.post(&admin(), call("rpc_get_methods")).await;
    assert!(
        methods.body["result"]
            .as_array()
            .is_some_and(|all| all.len() > 100)
    );

    for pair in ["admin:wrong", "root:correct horse", "admin:", ""] {
        let refused = place.post(pair, call("spdk_get_version")).await;
        assert_eq!(refused.status, 401, "{pair:?}");
        assert!(refused.headers.contains_key("www-authenticate"));
        assert!(refused.body["result"].is_null());
    }
    let without = place
        .http
        .send("POST", "/", &[], call("spdk_get_version").into())
        .await;
    assert_eq!(without.status, 401);
    let log = target.log();
    assert!(
        !log.contains(PASSWORD) && log.contains("bdev_null_create"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_proxy_refuses_what_is_no_request_and_says_when_spdk_is_gone() {
    let place = Place::new();
    let target = Target::start_with(place.with_proxy()).await;
    for (body, status, code) in [
        ("{".to_owned(), 400, -32700),
        (String::new(), 400, -32700),
        (format!("{}{}", call("a"), call("b")), 400, -32700),
        ("[]".to_owned(), 400, -32600),
        (format!("[{}]", call("spdk_get_version")), 400, -32600),
        (" ".repeat(32 * 1024 + 1), 413, -32600),
        (too_deep(), 400, -32600),
    ] {
        let answer = place.post(&admin(), body.clone()).await;
        assert_eq!(
            (answer.status, &answer.body["error"]["code"]),
            (status, &json!(code)),
            "{body:.40}"
        );
    }
    // As long as one may be; SPDK takes it.
    let long = call("spdk_get_version");
    let long = format!("{}{long}", " ".repeat(32 * 1024 - long.len()));
    assert_eq!(place.post(&admin(), long).await.status, 200);
    for (method, path, status) in [
        ("GET", "/", 405),
        ("PUT", "/", 405),
        ("POST", "/v1/nullVolumes", 404),
    ] {
        let answer = place.http.send(method, path, &[], Vec::new()).await;
        assert_eq!(answer.status, status, "{method} {path}");
    }
    std::fs::remove_file(place.socket()).expect("it is there");
    let answer = place.post(&admin(), call("spdk_get_version")).await;
    assert_eq!(
        (answer.status, &answer.body["error"]["code"]),
        (502, &json!(-32603)),
        "{answer:?}"
    );
    drop(target);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_start_that_would_be_unsafe_or_without_use_is_refused() {
    let place = Place::new();
    let alone = Options::default().args(["--spdk-rpc-http", "127.0.0.1:0"]);
    assert!(
        place
            .refused(&alone)
            .contains("spdk-rpc-socket: is needed with spdk-rpc-http")
    );

    place.set_mode(0o644);
    let line = place.refused(&place.with_proxy());
    assert!(
        line.contains("spdk-rpc-user") && line.contains("(mode 0644)"),
        "{line}"
    );
    place.set_mode(0o600);

    let listener = UnixListener::bind(place.socket()).expect("a socket");
    let line = place.refused(&place.options());
    assert!(line.contains("another program listens there"), "{line}");
    assert!(place.socket().exists(), "it was taken from its owner");
    drop(listener);

    std::fs::remove_file(place.socket()).expect("it is there");
    std::fs::write(place.socket(), "data").expect("a file");
    let line = place.refused(&place.options());
    assert!(line.contains("not a socket"), "{line}");
    assert_eq!(std::fs::read(place.socket()).expect("it stays"), b"data");
}
