//! Parses the answers of QEMU's queries.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::fault::Fault;

/// Plug state of a PCI device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// QEMU has no device of this ID.
    Absent,
    /// QEMU has it, but no guest driver has taken it.
    Plugged,
    /// The guest has enabled its memory, as a driver does.
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
    /// -1 while the guest has it disabled.
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

/// Parses the answer to `query-pci`.
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
    /// Starts with `disconnected:unix:PATH` until it is connected, then has another form.
    filename: String,
}

impl Chardev {
    /// Whether it is connected.
    pub(super) fn is_connected(&self) -> bool {
        !self.filename.starts_with("disconnected:")
    }

    /// Whether it is connected (QEMU does not report to what) or tries to connect to this socket.
    pub(super) fn leads_to(&self, socket: &Path) -> bool {
        let target = self.filename.strip_prefix("disconnected:unix:");
        target.is_none_or(|target| target.split(',').next().map(Path::new) == Some(socket))
    }
}

/// Parses the answer to `query-chardev`.
pub(super) fn chardev(answer: Value, id: &str) -> Result<Option<Chardev>, Fault> {
    let all: Vec<Chardev> =
        serde_json::from_value(answer).map_err(|error| unreadable("query-chardev", &error))?;
    Ok(all.into_iter().find(|chardev| chardev.label == id))
}

/// Parses the answer to `query-status`: whether the guest's CPUs run.
pub(super) fn is_running(answer: &Value) -> Result<bool, Fault> {
    let running = answer["running"].as_bool();
    running.ok_or_else(|| unreadable("query-status", &"it does not tell whether the machine runs"))
}
