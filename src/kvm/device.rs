//! A PCI device to plug, whose backend is a socket of this process.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fault::Fault;
use super::protocol::Version;
use crate::resource::Name;

/// Slots of a PCI bus, which bounds the physical functions per bus.
const SLOTS: u32 = 32;

/// Location of a device: bus and slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    bus: String,
    slot: u32,
}

impl Place {
    /// Maps physical function N to slot N % 32 of bus N / 32, in the configured order of buses.
    ///
    /// # Errors
    /// The valid functions, if there are not enough buses.
    pub(super) fn of(physical_function: i32, buses: &[String]) -> Result<Self, String> {
        let function = u32::try_from(physical_function).ok();
        let bus = function.and_then(|function| buses.get((function / SLOTS) as usize));
        match (function, bus) {
            (Some(function), Some(bus)) => Ok(Self {
                bus: bus.clone(),
                slot: function % SLOTS,
            }),
            _ => Err(format!(
                "{physical_function} has no place in the machine: its buses ({}) take 0 to {}",
                buses.join(", "),
                (buses.len() * SLOTS as usize).saturating_sub(1)
            )),
        }
    }

    /// Whether a device is at this place. QEMU reports the path of the bus, and slot and function as one number.
    pub(super) fn is(&self, bus: &Value, address: &Value) -> bool {
        let bus = bus.as_str().and_then(|path| path.rsplit('/').next());
        bus == Some(self.bus.as_str()) && address.as_u64() == Some(u64::from(self.slot) << 3)
    }
}

/// The device model that the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// An NVMe controller, over vfio-user. Requires QEMU 10.1.
    Nvme,
    /// A virtio-blk disk, over vhost-user.
    VirtioBlk,
    /// A virtio-scsi host adapter, over vhost-user.
    VirtioScsi,
}

impl Model {
    /// QEMU's driver name.
    fn driver(self) -> &'static str {
        match self {
            Self::Nvme => "vfio-user-pci",
            Self::VirtioBlk => "vhost-user-blk-pci",
            Self::VirtioScsi => "vhost-user-scsi-pci",
        }
    }

    /// Whether QEMU uses a character device for the socket, which it reconnects after a restart of this process.
    /// vfio-user has a connection of its own, made only once.
    pub(super) fn has_chardev(self) -> bool {
        self != Self::Nvme
    }
}

/// A device to plug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// ID of the device in QEMU.
    pub id: String,
    /// The device model.
    pub model: Model,
    /// The location.
    pub place: Place,
    /// The socket on which this process serves it.
    pub socket: PathBuf,
}

impl Device {
    /// ID in QEMU of a resource's device, and of its character device: the typed name with dots, since QEMU's IDs
    /// cannot contain slashes.
    pub fn id_of(name: &Name) -> String {
        name.key().as_str().replace('/', ".")
    }

    /// The arguments of `device_add`.
    pub(super) fn add(&self) -> Result<Value, Fault> {
        let mut arguments = json!({
            "driver": self.model.driver(),
            "id": self.id,
            "bus": self.place.bus,
            "addr": format!("{:#x}", self.place.slot),
        });
        if self.model.has_chardev() {
            arguments["chardev"] = json!(self.id);
        } else {
            arguments["socket"] = json!({ "type": "unix", "path": utf8(&self.socket)? });
        }
        Ok(arguments)
    }

    /// The arguments of `chardev-add`.
    pub(super) fn add_chardev(&self, qemu: Version) -> Result<Value, Fault> {
        // QEMU 9.2 added milliseconds; seconds are deprecated.
        let (reconnect, time) = match qemu >= (Version { major: 9, minor: 2 }) {
            true => ("reconnect-ms", 1000),
            false => ("reconnect", 1),
        };
        Ok(json!({
            "id": self.id,
            "backend": { "type": "socket", "data": {
                "addr": { "type": "unix", "data": { "path": utf8(&self.socket)? } },
                "server": false,
                reconnect: time,
            } },
        }))
    }
}

fn utf8(path: &Path) -> Result<&str, Fault> {
    path.to_str().ok_or_else(|| Fault::Path(path.to_owned()))
}
