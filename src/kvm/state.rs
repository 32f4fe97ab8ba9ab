//! What QEMU says of its devices: the answers of its queries, read.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::fault::Fault;

/// How far a PCI device has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// QEMU has no device of this id.
    Absent,
    /// QEMU has it; no driver of the guest has taken it.
    Plugged,
    /// The guest has switched its memory on, as a driver does.
    Taken,
}

#[derive(Deserialize)]
struct Bus {
    devices: Vec<Pci>,
}

#[derive(Deserialize)]
struct Pci {
    qdev_id: String,
    regions: Vec<Region>,
    pci_bridge: Option<Bridge>,
}

#[derive(Deserialize)]
struct Region {
    /// -1 while the guest has it switched off.
    address: i64,
}

#[derive(Deserialize)]
struct Bridge {
    #[serde(default)]
    devices: Vec<Pci>,
}

impl Pci {
    fn find<'a>(devices: &'a [Pci], id: &str) -> Option<&'a Pci> {
        devices.iter().find_map(|device| match &device.pci_bridge {
            _ if device.qdev_id == id => Some(device),
            Some(bridge) => Self::find(&bridge.devices, id),
            None => None,
        })
    }
}

fn unreadable(command: &'static str, problem: &dyn std::fmt::Display) -> Fault {
    Fault::Answer {
        command,
        problem: problem.to_string(),
    }
}

/// Reads the answer to `query-pci`.
pub(super) fn presence(answer: Value, id: &str) -> Result<Presence, Fault> {
    let buses: Vec<Bus> =
        serde_json::from_value(answer).map_err(|error| unreadable("query-pci", &error))?;
    let found = buses.iter().find_map(|bus| Pci::find(&bus.devices, id));
    Ok(match found {
        None => Presence::Absent,
        Some(device) if device.regions.iter().any(|region| region.address >= 0) => Presence::Taken,
        Some(_) => Presence::Plugged,
    })
}

/// A character device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Chardev {
    label: String,
    /// `disconnected:unix:PATH` and more until it is connected, then another form.
    filename: String,
}

impl Chardev {
    /// Whether it has a connection.
    pub(super) fn is_connected(&self) -> bool {
        !self.filename.starts_with("disconnected:")
    }

    /// Whether it has a connection (nothing tells where to) or tries to get one to this socket.
    pub(super) fn leads_to(&self, socket: &Path) -> bool {
        let target = self.filename.strip_prefix("disconnected:unix:");
        target.is_none_or(|target| target.split(',').next().map(Path::new) == Some(socket))
    }
}

/// Reads the answer to `query-chardev`.
pub(super) fn chardev(answer: Value, id: &str) -> Result<Option<Chardev>, Fault> {
    let all: Vec<Chardev> =
        serde_json::from_value(answer).map_err(|error| unreadable("query-chardev", &error))?;
    Ok(all.into_iter().find(|chardev| chardev.label == id))
}

/// Reads the answer to `query-status`: whether the guest's processors run.
pub(super) fn is_running(answer: &Value) -> Result<bool, Fault> {
    let running = answer["running"].as_bool();
    running.ok_or_else(|| unreadable("query-status", &"it does not tell whether the machine runs"))
}
