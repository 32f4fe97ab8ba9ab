//! The ways out: the exports of a volume to a host or a VM.

use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;

use serde_json::{Value, json};

use crate::common::{
    Driver, HOST, Initiator, PSK, Virtio, base64, blk_spec, free_port, lun_spec, nqn_of, pcie_spec,
    scsi_spec, tcp_spec,
};
use crate::lab::{Lab, Made};

/// A way out.
pub struct WayOut {
    /// The protocol.
    pub name: &'static str,
    /// Whether the initiator has a command to write zeroes; otherwise it writes zeroes as data.
    pub zeroes_by_command: bool,
    /// Whether the initiator supports flush; otherwise every flush fails.
    pub flushes: bool,
    /// Whether unmap is offered for every volume, and succeeds without effect if the volume does not
    /// support it: hosts read the capability once per controller, while its namespaces come and go.
    pub always_unmaps: bool,
    /// Exports the volume with this reference, under this ID.
    pub make: for<'a> fn(&'a Lab, &'a str, &'a str) -> Making<'a>,
}

/// The future of a way out's `make`.
pub type Making<'a> = Pin<Box<dyn Future<Output = Export> + 'a>>;

/// An exported volume.
pub struct Export {
    /// The initiator's driver.
    pub driver: Driver,
    /// The initiator's bdev.
    pub disk: &'static str,
    /// The objects of the export.
    pub made: Made,
}

/// All ways out.
pub const WAYS_OUT: &[WayOut] = &[
    TCP,
    WayOut {
        name: "NVMe/TCP with TLS",
        zeroes_by_command: true,
        flushes: true,
        always_unmaps: true,
        make: |lab, volume, id| Box::pin(tls(lab, volume, id)),
    },
    WayOut {
        name: "vfio-user",
        zeroes_by_command: true,
        flushes: true,
        always_unmaps: true,
        make: |lab, volume, id| Box::pin(vfio_user(lab, volume, id)),
    },
    WayOut {
        name: "vhost-user-blk",
        zeroes_by_command: false,
        flushes: true,
        always_unmaps: false,
        make: |lab, volume, id| Box::pin(vhost_user_blk(lab, volume, id)),
    },
    WayOut {
        name: "vhost-user-scsi",
        zeroes_by_command: false,
        // SPDK's driver reports support for flush but has no command for it.
        flushes: false,
        always_unmaps: false,
        make: |lab, volume, id| Box::pin(vhost_user_scsi(lab, volume, id)),
    },
];

/// Plain NVMe/TCP, also used to read base volumes.
pub const TCP: WayOut = WayOut {
    name: "NVMe/TCP",
    zeroes_by_command: true,
    flushes: true,
    always_unmaps: true,
    make: |lab, volume, id| Box::pin(tcp(lab, volume, id)),
};

/// The bdev of the controller's first namespace.
const NAMESPACE: &str = "Remoten1";

async fn nvme(lab: &Lab, volume: &str, id: &str, mut subsystem: Value, controller: Value) -> Made {
    let mut made = Made::default();
    subsystem["nqn"] = nqn_of(id).into();
    let subsystem = json!({ "spec": subsystem });
    let over = made
        .add(&lab.client, "NvmeSubsystem", "", id, subsystem)
        .await;
    let namespace = json!({ "spec": { "volume_name_ref": volume } });
    made.add(&lab.client, "NvmeNamespace", &over, "n", namespace)
        .await;
    made.add(&lab.client, "NvmeController", &over, "c", controller)
        .await;
    made
}

async fn over_tcp(
    lab: &Lab,
    volume: &str,
    id: &str,
    subsystem: Value,
    host: impl FnOnce(Initiator) -> Initiator,
) -> Export {
    let port = free_port();
    Export {
        made: nvme(lab, volume, id, subsystem, tcp_spec(port)).await,
        driver: host(Initiator::tcp(port, &nqn_of(id))).driver(),
        disk: NAMESPACE,
    }
}

async fn tcp(lab: &Lab, volume: &str, id: &str) -> Export {
    over_tcp(lab, volume, id, json!({}), |host| host).await
}

async fn tls(lab: &Lab, volume: &str, id: &str) -> Export {
    let key = lab.dir().join("psk");
    std::fs::write(&key, PSK).expect("the file can be written");
    // SPDK rejects a key file that others can read.
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&key, mode).expect("the permissions can be set");
    let subsystem = json!({ "hostnqn": HOST, "psk": base64(PSK) });
    let host = |host: Initiator| host.with_host(HOST).with_psk(&key);
    over_tcp(lab, volume, id, subsystem, host).await
}

async fn vfio_user(lab: &Lab, volume: &str, id: &str) -> Export {
    Export {
        made: nvme(lab, volume, id, json!({}), pcie_spec(1)).await,
        driver: Initiator::vfio_user(&lab.target.ctrlr_dir().join(id), &nqn_of(id)).driver(),
        disk: NAMESPACE,
    }
}

async fn vhost_user_blk(lab: &Lab, volume: &str, id: &str) -> Export {
    let mut made = Made::default();
    made.add(&lab.client, "VirtioBlk", "", id, blk_spec(volume))
        .await;
    Export {
        made,
        driver: Virtio::blk(lab.target.ctrlr_dir().join(id)),
        disk: "Disk",
    }
}

async fn vhost_user_scsi(lab: &Lab, volume: &str, id: &str) -> Export {
    let mut made = Made::default();
    made.add(&lab.client, "VirtioScsiController", "", id, scsi_spec())
        .await;
    made.add(&lab.client, "VirtioScsiLun", "", id, lun_spec(id, volume))
        .await;
    Export {
        made,
        driver: Virtio::scsi(lab.target.ctrlr_dir().join(id)),
        disk: "Diskt0",
    }
}
