//! KVM mode with a QEMU monitor that does not answer, or that nothing listens on. Tests with a running
//! QEMU: `scripts/test.sh --guest`.

mod common;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{
    Client, Options, Resource, Target, eventually, malloc, namespace, pcie_spec, subsystem, unique,
};
use opi_spdk::api::storage::frontend_virtio_blk_service_client::FrontendVirtioBlkServiceClient;
use opi_spdk::api::storage::{CreateVirtioBlkRequest, PciEndpoint, VirtioBlk};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// Client-side deadline of the calls that must fail.
const PATIENCE: Duration = Duration::from_secs(3);

/// A target in KVM mode, and the path of QEMU's monitor socket.
struct Lab {
    target: Target,
    client: Client,
    monitor: PathBuf,
    _dir: TempDir,
}

impl Lab {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let monitor = dir.path().join("qmp");
        let qmp = monitor.display().to_string();
        let args = ["--kvm", "--qmp-addr", &qmp, "--buses", "pci.a"];
        let target = Target::start_with(Options::hugepages().args(args)).await;
        Self {
            client: target.client().await,
            target,
            monitor,
            _dir: dir,
        }
    }

    /// Returns the sockets in the controllers' directory.
    fn sockets(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.target.ctrlr_dir())
            .expect("the target has created the directory");
        let names = entries.map(|entry| entry.expect("the entry can be read").file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    /// Starts to create a disk, with a client-side deadline.
    fn make(&self, id: &str, volume: &str, function: i32) -> JoinHandle<Result<(), Status>> {
        let mut disks = FrontendVirtioBlkServiceClient::new(self.client.channel());
        let mut request = tonic::Request::new(CreateVirtioBlkRequest {
            virtio_blk_id: id.into(),
            virtio_blk: Some(VirtioBlk {
                pcie_id: Some(PciEndpoint {
                    port_id: Some(0),
                    physical_function: Some(function),
                    virtual_function: Some(0),
                }),
                volume_name_ref: volume.into(),
                ..Default::default()
            }),
        });
        request.set_timeout(PATIENCE);
        tokio::spawn(async move { disks.create_virtio_blk(request).await.map(drop) })
    }
}

fn disk(volume: &str, function: i32) -> Value {
    let endpoint = json!({ "port_id": 0, "physical_function": function, "virtual_function": 0 });
    json!({ "pcie_id": endpoint, "volume_name_ref": volume })
}

#[tokio::test]
async fn a_silent_monitor_fails_calls_in_time_without_leftovers() {
    let lab = Lab::new().await;
    // The monitor accepts connections but never answers, as a stopped process does.
    let silent = UnixListener::bind(&lab.monitor).expect("a socket");
    let disks = Resource::new(&lab.client, "VirtioBlk");
    let [first, second] = [
        malloc(&lab.client, &unique("volume"), 16).await,
        malloc(&lab.client, &unique("volume"), 16).await,
    ];
    let begin = Instant::now();
    let waiting = [lab.make("one", &first, 3), lab.make("two", &second, 4)];
    eventually("both sockets are created", PATIENCE, async || {
        (lab.sockets().len() == 2).then_some(())
    })
    .await;

    // A create for the same slot waits for the first one and then has no time left; other calls are not
    // blocked.
    let spare = malloc(&lab.client, &unique("volume"), 16).await;
    let rival = lab.make("rival", &spare, 3);
    assert!(waiting.iter().all(|call| !call.is_finished()));
    let mut unanswered = false;
    for call in waiting {
        let status = call
            .await
            .expect("the call has ended")
            .expect_err("the monitor does not answer");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        assert!(status.message().contains("cannot plug"), "{status}");
        // Only one of the two connected to the monitor.
        unanswered |= status.message().contains("did not greet");
    }
    assert!(unanswered, "no error names the silent monitor");
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    rival
        .await
        .expect("the call has ended")
        .expect_err("the rival fails too");
    eventually("the sockets are removed", PATIENCE, async || {
        lab.sockets().is_empty().then_some(())
    })
    .await;
    assert_eq!(disks.names("").await, Vec::<String>::new());

    // The slot and the volumes are released.
    drop(silent);
    disks
        .refused("", "one", disk(&first, 3), Code::Unavailable)
        .await;
    let volumes = Resource::new(&lab.client, "MallocVolume");
    for volume in [first, second, spare] {
        volumes.deleted(&volume).await;
    }
    lab.target.stop();
}

#[tokio::test]
async fn without_qemu_controllers_are_rejected_with_the_reason() {
    let lab = Lab::new().await;
    let volume = malloc(&lab.client, &unique("volume"), 16).await;
    let exported = subsystem(&lab.client, &unique("sub"), json!({})).await;
    let shown = namespace(&lab.client, &exported, &volume, json!({})).await;
    let spare = malloc(&lab.client, &unique("volume"), 16).await;
    let adapter =
        json!({ "pcie_id": { "port_id": 0, "physical_function": 2, "virtual_function": 0 } });
    let requests = [
        ("NvmeController", exported.as_str(), pcie_spec(0)),
        ("VirtioBlk", "", disk(&spare, 1)),
        ("VirtioScsiController", "", adapter),
    ];
    for (kind, parent, object) in requests {
        let kind = Resource::new(&lab.client, kind);
        for leftover in [false, true] {
            if leftover {
                // A stale socket of a QEMU that has died.
                drop(UnixListener::bind(&lab.monitor).expect("a socket"));
            }
            let status = kind
                .refused(parent, "device", object.clone(), Code::Unavailable)
                .await;
            assert!(status.message().contains("QEMU does not run"), "{status}");
            assert_eq!(kind.names(parent).await, Vec::<String>::new());
            assert_eq!(lab.sockets(), Vec::<String>::new());
        }
        std::fs::remove_file(&lab.monitor).expect("a socket");
    }
    // A network controller does not need QEMU.
    let (controller, _) = common::tcp_controller(&lab.client, &exported).await;
    let controllers = Resource::new(&lab.client, "NvmeController");
    controllers.deleted(&controller).await;
    Resource::new(&lab.client, "NvmeNamespace")
        .deleted(&shown)
        .await;
    lab.target.stop();
}
