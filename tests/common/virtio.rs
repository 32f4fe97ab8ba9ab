//! SPDK's user-space virtio drivers, which connect to a device's vhost-user socket as a virtual machine
//! does.

use std::path::PathBuf;

use serde_json::json;

use super::driver::Driver;

/// Virtqueues that a driver requests: one per disk, plus the control and event queues of virtio-scsi.
const QUEUES: u32 = 8;

/// How a virtio driver attaches a device.
pub struct Virtio;

impl Virtio {
    /// Attaches a virtio-blk device; its disk is the bdev `Disk`.
    pub fn blk(socket: PathBuf) -> Driver {
        driver(socket, "blk")
    }

    /// Attaches a virtio-scsi device; the disk at SCSI target N is the bdev `DisktN`.
    pub fn scsi(socket: PathBuf) -> Driver {
        driver(socket, "scsi")
    }
}

fn driver(socket: PathBuf, kind: &str) -> Driver {
    let attach = json!({
        "name": "Disk", "trtype": "user", "traddr": socket, "dev_type": kind,
        "vq_count": QUEUES, "vq_size": 256,
    });
    // The device accesses the driver's memory directly, so that memory must be shared hugepages.
    Driver::attaching("bdev_virtio_attach_controller", attach, true)
}
