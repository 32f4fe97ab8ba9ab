//! Recovery after a kill: the same objects, the same disks to hosts, and retries of what cannot be restored yet.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::vhost_user::{Command, Kind, RESPONSE, Session};
use common::{
    Client, Fixture, HOST, Initiator, JsonRpc, Options, Resource, Target, Tool, blk_spec,
    dhchap_key, encrypted_spec, eventually, lun_spec, malloc, metrics, name_of, namespace, nqn_of,
    pattern, pcie_spec, remote_controller, scsi_spec, subsystem, tcp_controller, tcp_path,
};
use serde_json::{Value, json};
use tonic::Code;

/// All kinds that are persisted.
const KINDS: [&str; 19] = [
    "NullVolume",
    "MallocVolume",
    "AioVolume",
    "EncryptedVolume",
    "DelayVolume",
    "QosVolume",
    "NvmeRemoteController",
    "NvmePath",
    "NvmeCredential",
    "NvmeSubsystem",
    "NvmeNamespace",
    "NvmeHost",
    "NvmeNamespaceMask",
    "NvmeController",
    "DiscoveryReferral",
    "VirtioBlk",
    "VirtioScsiTarget",
    "VirtioScsiController",
    "VirtioScsiLun",
];

/// Timeout of events that happen without a call.
const SOON: Duration = Duration::from_secs(20);

const MIB: u64 = 1 << 20;

fn file(path: &Path, bytes: u64) {
    let file = File::create(path).expect("a file");
    file.set_len(bytes).expect("there is room");
}

/// Returns everything that Get and List answer, in order.
async fn all(client: &Client) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for kind in KINDS {
        let resource = Resource::new(client, kind);
        for parent in resource.parents().await {
            for name in resource.names(&parent).await {
                let object = resource.get(&name).await.expect("what is listed is there");
                found.push((format!("{kind} {name}"), object));
            }
        }
    }
    found
}

/// Returns the identities by which hosts and machines know disks, as SPDK has them.
async fn identities(socket: &Path) -> Value {
    let mut rpc = JsonRpc::connect(socket).await.expect("SPDK listens");
    let mut ask = async |method| rpc.call(method, Value::Null).await.expect("it answers");
    let mut subsystems = ask("nvmf_get_subsystems").await;
    let mut bdevs = ask("bdev_get_bdevs").await;
    let by_name = |list: &mut Value, key: &str| {
        let list = list.as_array_mut().expect("a list");
        list.sort_by_key(|item| item[key].to_string());
    };
    by_name(&mut subsystems, "nqn");
    by_name(&mut bdevs, "name");
    let bdevs = bdevs.as_array().expect("a list").iter();
    let bdevs: Vec<_> = bdevs
        .map(|bdev| {
            json!([
                bdev["name"],
                bdev["uuid"],
                bdev["num_blocks"],
                bdev["block_size"]
            ])
        })
        .collect();
    for subsystem in subsystems.as_array_mut().expect("a list") {
        let listeners = subsystem["listen_addresses"].as_array_mut();
        if let Some(listeners) = listeners {
            listeners.sort_by_key(ToString::to_string);
        }
    }
    json!({ "subsystems": subsystems, "bdevs": bdevs })
}

/// Returns a subsystem's identity as a host sees it.
async fn seen(host: &Initiator) -> Vec<String> {
    let report = host.identify().await.expect("it connects");
    let identifiers = ["Serial Number", "Namespace ID:", "NGUID", "UUID", "EUI64"];
    let lines = report.lines().map(str::trim);
    let lines = lines.filter(|line| identifiers.iter().any(|part| line.contains(part)));
    lines.map(str::to_owned).collect()
}

/// Returns the SCSI targets that a machine finds at a controller, each with its identification data.
fn scsi_disks(socket: &Path) -> Vec<(u8, Vec<u8>)> {
    /// Offset of the byte `response` in a virtio-scsi response; 0 is VIRTIO_SCSI_S_OK.
    const TAKEN: usize = 11;
    let kind = Kind::Scsi;
    let mut session = Session::start(socket, &kind.options()).expect("it connects");
    let disks = (0..4).filter_map(|target| {
        let inquiry = Command::new(target, &[0x12, 1, 0x83, 0, 255, 0]).encode();
        let sizes = [RESPONSE, 255];
        let answer = session.transfer(kind.queue(), &[&inquiry], &sizes);
        let mut parts = answer.expect("it answers").parts;
        (parts[0][TAKEN] == 0).then(|| (target, parts.swap_remove(1)))
    });
    disks.collect()
}

fn rpc_options(dir: &Path) -> (Options, PathBuf) {
    let socket = dir.join("rpc.sock");
    let args = ["--spdk-rpc-socket", socket.to_str().expect("UTF-8")];
    (Options::hugepages().args(args), socket)
}

/// Creates objects of every kind; returns a host of subsystem `s`.
async fn make(target: &Target, peer: &Fixture) -> Initiator {
    let client = target.client().await;
    let of = |kind| Resource::new(&client, kind);
    file(&target.scratch().join("disk"), 16 * MIB);
    let aio = json!({ "filename": target.scratch().join("disk"), "block_size": 512 });
    let aio = name_of(&of("AioVolume").created("", "aio", aio).await);
    let null = json!({ "block_size": 512, "blocks_count": 2048 });
    for id in [
        "null", "under", "spare", "gone", "lun-a", "lun-b", "disk", "slow",
    ] {
        of("NullVolume").created("", id, null.clone()).await;
    }
    let memory = malloc(&client, "memory", 4).await;
    let key = common::base64((0..32).collect::<Vec<u8>>());
    let encrypted = encrypted_spec("volumes/under", "AES_XTS_128", &key);
    let encrypted = name_of(
        &of("EncryptedVolume")
            .created("", "encrypted", encrypted)
            .await,
    );
    let delay = json!({ "volume_name_ref": "volumes/slow", "avg_read_latency_us": 10 });
    of("DelayVolume").created("", "delay", delay).await;
    let referral =
        json!({ "trtype": "NVME_TRANSPORT_TYPE_TCP", "traddr": "192.0.2.7", "trsvcid": 8009 });
    of("DiscoveryReferral")
        .created("", "referral", referral)
        .await;
    let limits = json!({ "volume_name_ref": "volumes/spare",
        "limits": { "max": { "rw_bandwidth_mbs": 100 } } });
    of("QosVolume").created("", "limits", limits).await;

    let remote = remote_controller(&client, "remote", "MULTIPATH").await;
    let keys = json!({ "hostnqn": HOST, "dhchap_key": common::base64(dhchap_key(8)) });
    of("NvmeCredential").created(&remote, "keys", keys).await;
    of("NvmePath")
        .created(&remote, "path", tcp_path(peer.port, &peer.nqn))
        .await;

    let shown = subsystem(&client, "s", json!({})).await;
    namespace(&client, &shown, &aio, json!({})).await;
    // Deleting a namespace in the middle must not renumber the others.
    let gone = namespace(&client, &shown, "volumes/gone", json!({})).await;
    namespace(&client, &shown, &memory, json!({ "eui64": 7 })).await;
    of("NvmeNamespace").deleted(&gone).await;
    let over_remote = subsystem(&client, "far", json!({})).await;
    let host = json!({ "hostnqn": HOST, "dhchap_key": common::base64(dhchap_key(7)) });
    of("NvmeHost").created(&over_remote, "host", host).await;
    let far = namespace(&client, &over_remote, "remoten1", json!({})).await;
    let mask = json!({ "namespace": far, "hostnqns": [HOST] });
    of("NvmeNamespaceMask")
        .created(&over_remote, "mask", mask)
        .await;
    namespace(&client, &over_remote, &encrypted, json!({})).await;
    let (_, port) = tcp_controller(&client, &shown).await;
    of("NvmeController")
        .created(&shown, "pcie", pcie_spec(1))
        .await;

    of("VirtioBlk")
        .created("", "blk", blk_spec("volumes/disk"))
        .await;
    of("VirtioScsiTarget").created("", "scsi", json!({})).await;
    of("VirtioScsiController")
        .created("", "scsi", scsi_spec())
        .await;
    let luns = of("VirtioScsiLun");
    luns.created("", "a", lun_spec("volumes/scsi", "volumes/lun-a"))
        .await;
    luns.created("", "b", lun_spec("volumes/scsi", "volumes/lun-b"))
        .await;
    // The remaining LUN has number 1 and keeps it.
    luns.deleted("volumes/a").await;
    of("NullVolume").deleted("volumes/gone").await;
    Initiator::tcp(port, &nqn_of("s"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_each_kind_is_there_again_after_a_kill_and_is_the_same_to_hosts() {
    let place = tempfile::tempdir().expect("a directory");
    let (options, socket) = rpc_options(place.path());
    let mut target = Target::start_with(options.clone()).await;
    let peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 16).await;
    let host = make(&target, &export).await;
    let data = target.scratch().join("data");
    std::fs::write(&data, pattern(1024)).expect("there is room");
    let written = host.copy_in(target.scratch(), &data, 1).await;
    written.expect("it takes data");
    let before = all(&target.client().await).await;
    assert!(
        KINDS
            .iter()
            .all(|kind| before.iter().any(|(name, _)| name.starts_with(kind)))
    );
    let (known, view) = (identities(&socket).await, seen(&host).await);
    let scsi = scsi_disks(&target.ctrlr_dir().join("scsi"));
    assert_eq!(
        scsi.iter().map(|(target, _)| *target).collect::<Vec<_>>(),
        [1]
    );
    target.kill();

    let mut again = Target::start_with(options.clone().after(&target)).await;
    let client = again.client().await;
    assert_eq!(all(&client).await, before);
    assert_eq!(identities(&socket).await, known);
    assert_eq!(seen(&host).await, view);
    assert_eq!(scsi_disks(&again.ctrlr_dir().join("scsi")), scsi);
    let back = again.scratch().join("back");
    let read = host.copy_out(again.scratch(), 1, 1024, &back).await;
    read.expect("it gives data back");
    assert!(
        std::fs::read(&back).expect("a file") == pattern(1024),
        "the data is another"
    );
    let log = again.log();
    assert!(log.contains("malloc volumes restored empty"), "{log}");

    // Restored objects can be updated and deleted, and deleted ones stay deleted.
    let nulls = Resource::new(&client, "NullVolume");
    let grown = json!({ "blocks_count": 4096 });
    nulls.updated("volumes/null", grown, None).await;
    let luns = Resource::new(&client, "VirtioScsiLun");
    luns.created("", "a", lun_spec("volumes/scsi", "volumes/lun-a"))
        .await;
    Resource::new(&client, "QosVolume")
        .deleted("volumes/limits")
        .await;
    let before = all(&client).await;
    again.kill();
    let third = Target::start_with(options.after(&again)).await;
    assert_eq!(all(&third.client().await).await, before);
    third.stop();
    peer.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_missing_at_the_start_leaves_its_volume_pending_until_it_is_there() {
    let place = tempfile::tempdir().expect("a directory");
    let (path, aside) = (place.path().join("disk"), place.path().join("aside"));
    file(&path, 16 * MIB);
    let mut target = Target::start().await;
    let client = target.client().await;
    let object = json!({ "filename": path, "block_size": 512 });
    let volume = Resource::new(&client, "AioVolume")
        .created("", "file", object)
        .await;
    let shown = subsystem(&client, "s", json!({})).await;
    let disk = namespace(&client, &shown, "volumes/file", json!({})).await;
    let (_, port) = tcp_controller(&client, &shown).await;
    let before = all(&client).await;
    target.kill();
    std::fs::rename(&path, &aside).expect("it is there");

    let again = Target::start_with(Options::default().after(&target)).await;
    let client = again.client().await;
    let [volumes, namespaces] = ["AioVolume", "NvmeNamespace"].map(|k| Resource::new(&client, k));
    let found = volumes.get("volumes/file").await;
    assert_eq!(found.expect("it is answered as it was"), volume);
    let state =
        async || namespaces.get(&disk).await.expect("it is there")["status"]["oper_state"].clone();
    assert_eq!(state().await, "OPER_STATE_OFFLINE");
    for (kind, name) in [(&volumes, "volumes/file"), (&namespaces, disk.as_str())] {
        let stats = client
            .call(&kind.method("Stats"), json!({ "name": name }))
            .await;
        let status = stats.expect_err("there are none");
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("retried"), "{status}");
    }
    let pending =
        |number| format!("opi_spdk_objects{{kind=\"AioVolume\",condition=\"pending\"}} {number}\n");
    let told = metrics(again.http);
    assert!(told.contains(&pending(1)));
    let reason = "opi_spdk_object_pending_seconds{object=\"aioVolumes/file\",reason=\"";
    let why = told.lines().find_map(|line| line.strip_prefix(reason));
    let why = why.unwrap_or_else(|| panic!("why it is pending: {told}"));
    assert!(why.contains(path.to_str().expect("UTF-8")), "{why}");
    let object = json!({ "filename": path, "block_size": 512 });
    volumes
        .refused("", "file", object, Code::InvalidArgument)
        .await;

    std::fs::rename(&aside, &path).expect("it is there");
    eventually("the namespace is back", SOON, async || {
        (state().await == "OPER_STATE_ONLINE").then_some(())
    })
    .await;
    assert_eq!(all(&client).await, before);
    let told = metrics(again.http);
    assert!(told.contains(&pending(0)) && !told.contains("aioVolumes/file\",reason="));
    let host = Initiator::tcp(port, &nqn_of("s"));
    let verified = host.verify(again.scratch(), 1).await;
    verified.expect("it is as good as before");
    again.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn volumes_of_the_configuration_are_read_only_objects() {
    let place = tempfile::tempdir().expect("a directory");
    let (path, config) = (place.path().join("disk"), place.path().join("config.toml"));
    file(&path, MIB);
    let volumes = format!(
        "[[volume]]\nkind = \"malloc\"\nname = \"Malloc0\"\nsize-mib = 1\n\
         [[volume]]\nkind = \"null\"\nname = \"Null0\"\nsize-mib = 1\n\
         [[volume]]\nkind = \"aio\"\nname = \"Aio0\"\nfilename = {path:?}\n"
    );
    std::fs::write(&config, volumes).expect("a file");
    let args = ["--config".to_owned(), config.display().to_string()];
    let target = Target::start_with(Options::default().args(args)).await;
    let client = target.client().await;
    for (kind, id) in [
        ("MallocVolume", "Malloc0"),
        ("NullVolume", "Null0"),
        ("AioVolume", "Aio0"),
    ] {
        let (resource, name) = (Resource::new(&client, kind), format!("volumes/{id}"));
        assert_eq!(resource.names("").await, std::slice::from_ref(&name));
        let object = resource.get(&name).await.expect("it is there");
        let number = |field: &str| object[field].to_string().replace('"', "");
        assert_eq!(
            [number("block_size"), number("blocks_count")],
            ["512", "2048"]
        );
        assert_eq!(object["uuid"].as_str().map(str::len), Some(36));
        resource.stats(&name).await;
        let deleted = client
            .call(&resource.method("Delete"), json!({ "name": name }))
            .await;
        let bigger = json!({ "blocks_count": 4096 });
        let updated = resource.update(&name, bigger, None).await.map(drop);
        for refused in [deleted.map(drop), updated] {
            let status = refused.expect_err("it is the configuration's");
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            assert!(status.message().contains("configuration file"), "{status}");
        }
    }
    target.stop();
}

/// UUID of a bdev created by SPDK's own command.
const RAW: &str = "4b4e28ba-2fa1-11d2-883f-b9a761bde3fb";

/// Returns the SCSI targets of a controller: their numbers, and the index in `uuids` of the volume behind each.
fn scsi_volumes(socket: &Path, uuids: &[String]) -> Vec<(u8, usize)> {
    let volume = |answer: Vec<u8>| {
        let text = String::from_utf8_lossy(&answer).into_owned();
        let is_named = |uuid: &String| text.contains(&uuid.replace('-', ""));
        let found = uuids.iter().position(is_named);
        found.unwrap_or_else(|| panic!("none of {uuids:?} is in {text:?}"))
    };
    let disks = scsi_disks(socket).into_iter();
    disks
        .map(|(target, answer)| (target, volume(answer)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lun_keeps_its_number_through_updates_and_its_volume_through_a_restart() {
    let place = tempfile::tempdir().expect("a directory");
    let (options, socket) = rpc_options(place.path());
    let mut target = Target::start_with(options.clone()).await;
    let client = target.client().await;
    let luns = Resource::new(&client, "VirtioScsiLun");
    let malloc_volumes = Resource::new(&client, "MallocVolume");
    let mut uuids = Vec::new();
    for id in ["lun-zero", "lun-one", "lun-two"] {
        let volume = malloc(&client, id, 4).await;
        let object = malloc_volumes.get(&volume).await.expect("it is there");
        uuids.push(object["uuid"].as_str().expect("a text").to_owned());
    }
    uuids.push(RAW.to_owned());
    let [one, two, raw_disk] = [1, 2, 3];
    let disks = |socket: &Path| scsi_volumes(socket, &uuids);
    let raw = async || {
        let args = ["bdev_malloc_create", "-b", "lun-raw", "-u", RAW, "4", "512"];
        Tool::rpc(&socket).args(args).run().await.expect("made");
    };
    raw().await;
    let controllers = Resource::new(&client, "VirtioScsiController");
    controllers.created("", "scsi", scsi_spec()).await;
    controllers.created("", "other", scsi_spec()).await;
    for (id, volume) in [
        ("a", "volumes/lun-zero"),
        ("b", uuids[1].as_str()),
        ("c", RAW),
    ] {
        luns.created("", id, lun_spec("volumes/scsi", volume)).await;
    }
    luns.deleted("volumes/a").await;
    let is = |volume| vec![(1, volume), (2, raw_disk)];
    let [scsi, other] = ["scsi", "other"].map(|id| target.ctrlr_dir().join(id));
    assert_eq!(disks(&scsi), is(one));

    // Number 0 is free and stays free.
    let volume = |name: &str| json!({ "volume_name_ref": name });
    let missing = luns.update("volumes/b", volume("volumes/none"), None).await;
    let missing = missing.expect_err("there is none");
    assert_eq!(missing.code(), Code::NotFound, "{missing}");
    assert_eq!(disks(&scsi), is(one));
    luns.updated("volumes/b", volume("volumes/lun-two"), None)
        .await;
    assert_eq!(disks(&scsi), is(two));
    luns.updated("volumes/b", volume(&uuids[1]), None).await;
    let elsewhere = json!({ "target_name_ref": "volumes/other" });
    luns.updated("volumes/b", elsewhere, None).await;
    assert_eq!(disks(&other), [(0, one)]);
    let back = json!({ "target_name_ref": "volumes/scsi" });
    luns.updated("volumes/b", back, None).await;
    assert_eq!(disks(&scsi), is(one));
    assert_eq!(disks(&other), []);
    target.kill();

    // A volume referred to by UUID can be found only once its bdev exists.
    let again = Target::start_with(options.after(&target)).await;
    let scsi = again.ctrlr_dir().join("scsi");
    assert_eq!(disks(&scsi), [(1, one)]);
    raw().await;
    eventually("the other LUN is back", SOON, async || {
        (disks(&scsi) == is(one)).then_some(())
    })
    .await;
    let client = again.client().await;
    let luns = Resource::new(&client, "VirtioScsiLun");
    for name in ["volumes/b", "volumes/c"] {
        luns.stats(name).await;
    }
    again.stop();
}
