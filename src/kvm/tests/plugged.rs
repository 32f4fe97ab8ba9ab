//! The wrapper around a kind: what a failed change left is withdrawn by the kind, and what fails is not plugged anew.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::peer::{Peer, chardevs};
use crate::api::storage::{PciEndpoint, VirtioBlk, VolumeStats};
use crate::error::{Error, Violations};
use crate::kvm::{Kvm, Model, Pluggable, Plugged, Slots};
use crate::resource::{
    CallContext, Change, Claims, Collection, Create, Kind, Name, Shared, Stage, Update,
};
use crate::socket_access::SocketAccess;

/// Devices that exist in this test alone.
#[derive(Default)]
struct Devices {
    withdrawn: Arc<AtomicUsize>,
    /// Number of removals that fail.
    stays: AtomicUsize,
}

impl Kind for Devices {
    type Object = VirtioBlk;

    const STAGE: Stage = Stage::Door;

    fn check(&self, _: &VirtioBlk, _: &mut Violations) {}

    fn claims(&self, _: &Name, _: &VirtioBlk) -> Claims {
        Claims::new()
    }

    async fn ensure(
        &self,
        _: &CallContext,
        _: &Name,
        wanted: VirtioBlk,
    ) -> Result<VirtioBlk, Error> {
        Ok(wanted)
    }

    async fn update(
        &self,
        _: &CallContext,
        _: &Name,
        change: Change<VirtioBlk>,
    ) -> Result<VirtioBlk, Error> {
        Ok(change.wanted)
    }

    async fn withdraw(
        &self,
        _: &CallContext,
        _: &Name,
        _: &Change<VirtioBlk>,
    ) -> Result<(), Error> {
        self.withdrawn.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn remove(&self, _: &CallContext, name: &Name, _: &VirtioBlk) -> Result<(), Error> {
        let left = self.stays.load(Ordering::Relaxed).checked_sub(1);
        left.map_or(Ok(()), |left| {
            self.stays.store(left, Ordering::Relaxed);
            Err(Error::failed_precondition(name, "a machine is connected"))
        })
    }

    async fn stats(&self, _: &Name, _: &VirtioBlk) -> Result<VolumeStats, Error> {
        Ok(VolumeStats::default())
    }
}

impl Pluggable for Devices {
    const MODEL: Model = Model::VirtioBlk;
    const FIELD: &'static str = "pcie_id";

    fn endpoint(object: &VirtioBlk) -> Option<&PciEndpoint> {
        object.pcie_id.as_ref()
    }

    fn socket(name: &Name) -> PathBuf {
        name.id().into()
    }
}

/// The devices of a directory, and how many updates were withdrawn.
struct Place {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
    devices: Arc<Collection<Plugged<Devices>>>,
    withdrawn: Arc<AtomicUsize>,
}

impl Place {
    fn new(devices: Devices) -> Self {
        Self::with(devices, None)
    }

    /// With the QEMU of KVM mode, if any.
    fn with(devices: Devices, kvm: Option<&Kvm>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let access = SocketAccess::parse(None, Some("0660")).expect("a mode");
        let withdrawn = Arc::clone(&devices.withdrawn);
        let shared = Shared::new();
        let plugged = Plugged::new(devices, &Slots::new(kvm, dir.path(), access));
        Self {
            devices: Collection::new(plugged, &shared),
            dir,
            shared,
            withdrawn,
        }
    }

    /// Makes a file in place of the socket, whose access can be set.
    fn make_socket(&self) -> PathBuf {
        let socket = self.dir.path().join("d");
        std::fs::write(&socket, "").expect("a file");
        socket
    }

    async fn create(&self) -> Result<VirtioBlk, Error> {
        let request = Create {
            parent: String::new(),
            id: "d".into(),
            object: Some(VirtioBlk {
                name: String::new(),
                ..device(1)
            }),
        };
        self.devices.create(CallContext::default(), request).await
    }
}

fn device(max_io_qps: i64) -> VirtioBlk {
    VirtioBlk {
        name: "volumes/d".into(),
        pcie_id: Some(PciEndpoint {
            port_id: Some(0),
            physical_function: Some(0),
            virtual_function: Some(0),
        }),
        volume_name_ref: "volumes/a".into(),
        max_io_qps,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_device_that_can_neither_be_offered_nor_removed_is_removed_later() {
    let place = Place::new(Devices {
        stays: AtomicUsize::new(1),
        ..Devices::default()
    });
    let error = place.create().await.expect_err("there is no socket");
    assert!(error.is_unsettled(), "{error}");
    let (condition, name) = (&place.shared.conditions, "virtioBlks/d".into());
    assert!(condition.is_deleting(&name), "{:?}", condition.all());
    place.make_socket();
    place
        .create()
        .await
        .expect("what was left is removed first");
}

#[tokio::test]
async fn a_removal_that_fails_again_plugs_no_device_that_was_not_there() {
    let peer = Peer::new();
    let kvm = Kvm {
        qmp_addr: peer.address(),
        buses: vec!["pci.a".to_owned()],
        force_unplug: false,
    };
    let devices = Devices {
        stays: AtomicUsize::new(2),
        ..Devices::default()
    };
    let place = Place::with(devices, Some(&kvm));
    let error = place.create().await.expect_err("there is no socket");
    assert!(error.is_unsettled(), "{error}");
    place.make_socket();
    let qemu = async {
        let mut qemu = peer.accept().await;
        let id = json!({ "id": "virtioBlks.d" });
        qemu.refuses("device_del", id, "DeviceNotFound", "no").await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[]))
            .await;
        qemu.sees_the_end().await;
    };
    let (again, ()) = tokio::join!(place.create(), qemu);
    let error = again.expect_err("a machine is connected");
    assert!(error.to_string().contains("connected"), "{error}");
}

#[tokio::test]
async fn an_update_whose_socket_cannot_be_opened_to_others_is_withdrawn() {
    let place = Place::new(Devices::default());
    let socket = place.make_socket();
    place.create().await.expect("created");
    let update = async |max_io_qps| {
        let request = Update {
            object: Some(device(max_io_qps)),
            mask: None,
            allow_missing: false,
        };
        place.devices.update(CallContext::default(), request).await
    };
    std::fs::remove_file(&socket).expect("removed");
    let error = update(2).await.expect_err("there is no socket");
    assert!(error.is_unsettled(), "{error}");
    assert_eq!(place.withdrawn.load(Ordering::Relaxed), 0);
    place.make_socket();
    update(3).await.expect("updated");
    assert_eq!(place.withdrawn.load(Ordering::Relaxed), 1);
}
