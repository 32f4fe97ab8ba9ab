//! Names of devices: PCI addresses, or paths such as `/dev/disk/by-id/nvme-...`, which contain serial number or EUI.
//!
//! A device that setup has taken has no path any more, since the kernel's driver made it. The address of each path is
//! recorded until the machine restarts, so that a second run finds the device again.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::step::is_kept;
use crate::machine::Machine;
use crate::machine::pci::{self, Address};

/// Path of the record: a JSON object with the PCI address of each path.
const RECORD: &str = "/run/opi-spdk-devices.json";

/// Directory of paths with serial numbers and EUIs.
const BY_ID: &str = "/dev/disk/by-id";

type Record = BTreeMap<String, Address>;

/// Name of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceName {
    /// Its PCI address.
    Address(Address),
    /// A path under `/dev` of its disk.
    Path(String),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("/dev/") {
            return Ok(Self::Path(text.to_owned()));
        }
        let address = text.parse().map(Self::Address);
        address.map_err(|reason| {
            format!("{reason}, or path, such as {BY_ID}/nvme-eui.0025385b71b00a12")
        })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Path(path) => f.write_str(path),
        }
    }
}

impl DeviceName {
    /// Resolves the name, and polls for the time `wait` while there is no such device: at boot, drivers find devices
    /// and udev creates their paths asynchronously.
    ///
    /// # Errors
    /// Those of [`Self::resolve`].
    pub fn resolve_within(&self, machine: &Machine, wait: Duration) -> Result<Address, String> {
        let deadline = Instant::now() + wait;
        loop {
            // Before the resolution: what appears meanwhile is resolved once more.
            let is_there = match self {
                Self::Address(address) => address.exists(machine),
                Self::Path(path) => machine.has(path),
            };
            let resolved = self.resolve(machine);
            let is_recorded = matches!((self, &resolved), (Self::Path(_), Ok(_)));
            if is_there || is_recorded || Instant::now() >= deadline {
                return resolved;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The device's address.
    ///
    /// # Errors
    /// There is no such device, or the path names no whole NVMe device.
    pub fn resolve(&self, machine: &Machine) -> Result<Address, String> {
        match self {
            Self::Address(address) => Ok(address.clone()),
            Self::Path(path) => match machine.has(path) {
                true => address_of(machine, path),
                false => recorded(machine, path),
            },
        }
    }
}

/// The NVMe controller whose disk is at the path.
fn address_of(machine: &Machine, path: &str) -> Result<Address, String> {
    let device = machine.path(path).canonicalize();
    let device = device.map_err(|error| format!("{path}: {error}"))?;
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    if machine.has(format!("/sys/class/block/{name}/partition")) {
        return Err(format!("{path} is a partition, {name}: name its disk"));
    }
    let owners: Vec<_> = pci::devices(machine)
        .into_iter()
        .filter(|address| address.is_storage(machine))
        .filter(|address| {
            address
                .block_devices(machine)
                .iter()
                .any(|block| *block == name)
        })
        .collect();
    match &owners[..] {
        [] => Err(format!("{path} ({name}) is no disk of a PCI device")),
        [address] if address.is_nvme(machine) => Ok(address.clone()),
        [address] => Err(format!(
            "{path} ({name}) is on {address}, which is no NVMe device and may have other disks: name its address"
        )),
        [one, other, ..] => Err(format!(
            "{path} ({name}) is reached through {one} and {other}: name their addresses"
        )),
    }
}

/// The device that setup has taken under this path.
fn recorded(machine: &Machine, path: &str) -> Result<Address, String> {
    // Another device may be in its place by now, which a driver of the kernel has.
    let is_it = |address: &Address| {
        address.exists(machine) && (is_kept(machine, address) || address.driver(machine).is_none())
    };
    let known = read(machine)?.remove(path).filter(is_it);
    known.ok_or_else(|| {
        let names = machine.names(BY_ID);
        let there: Vec<_> = names
            .iter()
            .filter(|name| name.starts_with("nvme-") && !name.contains("-part"))
            .map(String::as_str)
            .collect();
        let there = match there.is_empty() {
            true => "none".to_owned(),
            false => there.join(", "),
        };
        format!("there is no device {path}; NVMe devices in {BY_ID}: {there}")
    })
}

/// Records the addresses of paths, before their devices are taken.
///
/// # Errors
/// The record cannot be written.
pub fn record(machine: &Machine, names: &[(DeviceName, Address)]) -> Result<(), String> {
    let mut record = read(machine)?;
    let before = record.clone();
    for (name, address) in names {
        if let DeviceName::Path(path) = name {
            // A name of a device that had the address before is not of this one.
            record.retain(|_, known| known != address);
            record.insert(path.clone(), address.clone());
        }
    }
    if record == before {
        return Ok(());
    }
    let path = machine.path(RECORD);
    write(&path, &record).map_err(|error| format!("{}: {error}", path.display()))
}

/// Replaces the file atomically.
fn write(path: &Path, record: &Record) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

fn read(machine: &Machine) -> Result<Record, String> {
    let path = machine.path(RECORD);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| format!("{}: {error}: it is damaged; remove it", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Record::new()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tree::Tree;

    const DEVICE: &str = "/sys/devices/pci0000:00/0000:01:00.0";
    const EUI: &str = "/dev/disk/by-id/nvme-eui.1";

    fn machine() -> Tree {
        let tree = Tree::new();
        tree.dir("/run");
        tree.write(&format!("{DEVICE}/class"), "0x010802\n");
        tree.write(&format!("{DEVICE}/nvme/nvme0/nvme0n1/dev"), "259:0\n");
        tree.write(
            &format!("{DEVICE}/nvme/nvme0/nvme0n1/nvme0n1p1/partition"),
            "1\n",
        );
        tree.link("/sys/bus/pci/devices/0000:01:00.0", DEVICE);
        tree.link(&format!("{DEVICE}/driver"), "/sys/bus/pci/drivers/nvme");
        for (name, disk) in [("nvme0n1", "nvme0n1"), ("nvme0n1p1", "nvme0n1/nvme0n1p1")] {
            tree.write(&format!("/dev/{name}"), "");
            tree.link(
                &format!("/sys/class/block/{name}"),
                &format!("{DEVICE}/nvme/nvme0/{disk}"),
            );
        }
        tree.link(EUI, "/dev/nvme0n1");
        tree.link("/dev/disk/by-id/nvme-eui.1-part1", "/dev/nvme0n1p1");
        tree
    }

    fn name(text: &str) -> DeviceName {
        text.parse().unwrap()
    }

    #[test]
    fn a_device_is_named_by_address_or_by_the_path_of_its_disk() {
        let tree = machine();
        let machine = tree.machine();
        let address: Address = "01:00.0".parse().unwrap();
        for text in ["01:00.0", EUI, "/dev/nvme0n1"] {
            assert_eq!(
                name(text).resolve(&machine).as_ref(),
                Ok(&address),
                "{text}"
            );
        }
        let wrong = "nvme0".parse::<DeviceName>().unwrap_err();
        assert!(
            wrong.contains("PCI address") && wrong.contains("/dev/disk/by-id/"),
            "{wrong}"
        );
        let partition = name("/dev/disk/by-id/nvme-eui.1-part1").resolve(&machine);
        assert!(
            partition
                .unwrap_err()
                .ends_with("is a partition, nvme0n1p1: name its disk")
        );
        let none = name("/dev/disk/by-id/nvme-eui.2")
            .resolve(&machine)
            .unwrap_err();
        assert!(
            none.ends_with("NVMe devices in /dev/disk/by-id: nvme-eui.1"),
            "{none}"
        );
        tree.write("/dev/loop0", "");
        let other = name("/dev/loop0").resolve(&machine).unwrap_err();
        assert!(other.contains("no disk of a PCI device"), "{other}");
        tree.write(&format!("{DEVICE}/class"), "0x010601\n");
        let ahci = name(EUI).resolve(&machine).unwrap_err();
        assert!(
            ahci.contains("is on 0000:01:00.0, which is no NVMe device"),
            "{ahci}"
        );
    }

    #[test]
    fn a_device_that_appears_late_is_waited_for_and_one_that_does_not_is_told() {
        let tree = machine();
        let machine = tree.machine();
        let wait = Duration::from_millis(300);
        std::fs::remove_file(tree.path(EUI)).unwrap();
        let start = Instant::now();
        let missing = name(EUI).resolve_within(&machine, wait).unwrap_err();
        assert!(missing.contains("there is no device"), "{missing}");
        assert!(start.elapsed() >= wait);
        let found = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(wait);
                tree.link(EUI, "/dev/nvme0n1");
            });
            name(EUI).resolve_within(&machine, Duration::from_secs(30))
        });
        assert_eq!(found, "01:00.0".parse());
        // What no wait changes is told at once.
        let start = Instant::now();
        let partition = name("/dev/nvme0n1p1").resolve_within(&machine, Duration::from_secs(30));
        assert!(partition.is_err() && start.elapsed() < Duration::from_secs(10));
    }

    /// The path of a device goes with the kernel's driver.
    #[test]
    fn a_device_that_was_taken_is_found_by_its_name_again_and_another_in_its_place_is_not() {
        let tree = machine();
        let machine = tree.machine();
        let named = name(EUI);
        let address = named.resolve(&machine).unwrap();
        record(&machine, &[(named.clone(), address.clone())]).unwrap();
        std::fs::remove_file(tree.path(EUI)).unwrap();
        assert!(
            named
                .resolve(&machine)
                .unwrap_err()
                .contains("there is no device")
        );
        let driver = format!("{DEVICE}/driver");
        tree.link(&driver, "/sys/bus/pci/drivers/vfio-pci");
        assert_eq!(named.resolve(&machine).as_ref(), Ok(&address));
        // Killed between unbind and probe.
        std::fs::remove_file(tree.path(&driver)).unwrap();
        assert_eq!(named.resolve(&machine), Ok(address));
    }
}
