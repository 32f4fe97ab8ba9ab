//! The wrapper around a kind: what a failed update left is withdrawn by the kind.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::api::storage::{PciEndpoint, VirtioBlk, VolumeStats};
use crate::error::{Error, Violations};
use crate::kvm::{Model, Pluggable, Plugged, Slots};
use crate::resource::{
    CallContext, Change, Claims, Collection, Create, Kind, Name, Shared, Stage, Update,
};
use crate::socket_access::SocketAccess;

/// Devices that exist in this test alone.
#[derive(Default)]
struct Devices {
    withdrawn: Arc<AtomicUsize>,
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

    async fn remove(&self, _: &CallContext, _: &Name, _: &VirtioBlk) -> Result<(), Error> {
        Ok(())
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

#[tokio::test]
async fn an_update_whose_socket_cannot_be_opened_to_others_is_withdrawn() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("d");
    std::fs::write(&socket, "").expect("a file in place of the socket");
    let access = SocketAccess::parse(None, Some("0660")).expect("a mode");
    let devices = Devices::default();
    let withdrawn = Arc::clone(&devices.withdrawn);
    let shared = Shared::new();
    let devices = Collection::new(
        Plugged::new(devices, &Slots::new(None, dir.path(), access)),
        &shared,
    );
    let of = |max_io_qps| VirtioBlk {
        name: "volumes/d".into(),
        pcie_id: Some(PciEndpoint {
            port_id: Some(0),
            physical_function: Some(0),
            virtual_function: Some(0),
        }),
        volume_name_ref: "volumes/a".into(),
        max_io_qps,
        ..Default::default()
    };
    let update = async |max_io_qps| {
        let request = Update {
            object: Some(of(max_io_qps)),
            mask: None,
            allow_missing: false,
        };
        devices.update(CallContext::default(), request).await
    };
    let request = Create {
        parent: String::new(),
        id: "d".into(),
        object: Some(VirtioBlk {
            name: String::new(),
            ..of(1)
        }),
    };
    let created = devices.create(CallContext::default(), request).await;
    created.expect("created");
    std::fs::remove_file(&socket).expect("removed");
    let error = update(2).await.expect_err("there is no socket");
    assert!(error.is_unsettled(), "{error}");
    assert_eq!(withdrawn.load(Ordering::Relaxed), 0);
    std::fs::write(&socket, "").expect("a file in place of the socket");
    update(3).await.expect("updated");
    assert_eq!(withdrawn.load(Ordering::Relaxed), 1);
}
