//! virtio drivers in user space: SPDK's own, which find a device at its vhost-user socket just as a
//! virtual machine does.

use std::path::PathBuf;

use serde_json::json;

use super::driver::Driver;

/// Queues that a driver asks for: one to each of its disks, and for some devices others.
const QUEUES: u32 = 8;

/// How a machine reaches one device.
pub struct Virtio;

impl Virtio {
    /// A virtio-blk device; its disk is the bdev `Disk`.
    pub fn blk(socket: PathBuf) -> Driver {
        driver(socket, "blk")
    }

    /// A virtio-scsi device; the disk at SCSI target N is the bdev `DisktN`.
    pub fn scsi(socket: PathBuf) -> Driver {
        driver(socket, "scsi")
    }
}

fn driver(socket: PathBuf, kind: &str) -> Driver {
    let attach = json!({
        "name": "Disk", "trtype": "user", "traddr": socket, "dev_type": kind,
        "vq_count": QUEUES, "vq_size": 256,
    });
    // The device reads and writes its memory.
    Driver::attaching("bdev_virtio_attach_controller", attach, true)
}
