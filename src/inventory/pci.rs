//! PCI devices from sysfs, with names from the list `pci.ids`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::{Roots, entries, hex, text};
use crate::api::inventory::PcIeDeviceInfo;

/// The machine's PCI devices, ordered by address.
pub fn devices(roots: &Roots) -> Vec<PcIeDeviceInfo> {
    let folder = roots.sys.join("bus/pci/devices");
    let found: Vec<Device> = entries(&folder)
        .into_iter()
        .map(|address| Device::read(&folder.join(&address), address))
        .collect();
    if found.is_empty() {
        return Vec::new();
    }
    let list = fs::read(&roots.pci_ids).unwrap_or_default();
    let names = Names::find(&String::from_utf8_lossy(&list), &found);
    found.iter().map(|device| device.info(&names)).collect()
}

/// What `pci.ids` has a name for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Vendor(u32),
    /// Vendor and device.
    Device(u32, u32),
    /// Vendor and device, then vendor and device of the subsystem.
    Subsystem(u32, u32, u32, u32),
    Class(u32),
    /// Class and subclass.
    Subclass(u32, u32),
}

/// One device as sysfs shows it. A number that cannot be read is absent.
struct Device {
    address: String,
    driver: String,
    revision: String,
    vendor: Option<u32>,
    device: Option<u32>,
    subsystem: Option<(u32, u32)>,
    class: Option<(u32, u32)>,
}

impl Device {
    fn read(folder: &Path, address: String) -> Device {
        let driver = fs::read_link(folder.join("driver")).unwrap_or_default();
        let number = |name: &str| hex(&folder.join(name));
        Device {
            address,
            driver: driver
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            revision: text(&folder.join("revision")),
            vendor: number("vendor"),
            device: number("device"),
            subsystem: number("subsystem_vendor")
                .zip(number("subsystem_device"))
                .filter(|both| *both != (0, 0)),
            class: number("class").map(|all| (all >> 16 & 0xff, all >> 8 & 0xff)),
        }
    }

    fn vendor_key(&self) -> Option<Key> {
        Some(Key::Vendor(self.vendor?))
    }

    fn device_key(&self) -> Option<Key> {
        Some(Key::Device(self.vendor?, self.device?))
    }

    fn subsystem_key(&self) -> Option<Key> {
        let (vendor, device) = self.subsystem?;
        Some(Key::Subsystem(self.vendor?, self.device?, vendor, device))
    }

    fn class_key(&self) -> Option<Key> {
        Some(Key::Class(self.class?.0))
    }

    fn subclass_key(&self) -> Option<Key> {
        let (class, subclass) = self.class?;
        Some(Key::Subclass(class, subclass))
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        [
            self.vendor_key(),
            self.device_key(),
            self.subsystem_key(),
            self.class_key(),
            self.subclass_key(),
        ]
        .into_iter()
        .flatten()
    }

    fn info(&self, names: &Names) -> PcIeDeviceInfo {
        PcIeDeviceInfo {
            driver: self.driver.clone(),
            address: self.address.clone(),
            vendor: names.of(self.vendor_key()),
            product: names.of(self.device_key()),
            revision: self.revision.clone(),
            subsystem: names.of(self.subsystem_key()),
            class: names.of(self.class_key()),
            subclass: names.of(self.subclass_key()),
        }
    }
}

/// The names of what a machine has.
struct Names(HashMap<Key, Option<String>>);

impl Names {
    /// Reads the list once and keeps what the devices need.
    ///
    /// A line is a vendor, indented by a tab a device of it, by two a subsystem of that; or `C` and
    /// a class, indented by a tab a subclass of it.
    fn find(list: &str, devices: &[Device]) -> Names {
        let mut names: HashMap<Key, Option<String>> = devices
            .iter()
            .flat_map(Device::keys)
            .map(|key| (key, None))
            .collect();
        let mut outer = None;
        let mut device = None;
        for line in list.lines() {
            let rest = line.trim_start_matches('\t');
            let depth = line.len() - rest.len();
            let parsed = match (depth, outer, device) {
                (0, ..) => {
                    device = None;
                    let parsed = top(rest);
                    outer = parsed.map(|(key, _)| key);
                    parsed
                }
                (1, Some(Key::Vendor(vendor)), _) => {
                    let parsed = number(rest);
                    device = parsed.map(|(device, _)| device);
                    parsed.map(|(device, name)| (Key::Device(vendor, device), name))
                }
                (1, Some(Key::Class(class)), _) => {
                    number(rest).map(|(subclass, name)| (Key::Subclass(class, subclass), name))
                }
                (2, Some(Key::Vendor(vendor)), Some(device)) => {
                    number(rest).and_then(|(a, rest)| {
                        let (b, name) = number(rest)?;
                        Some((Key::Subsystem(vendor, device, a, b), name))
                    })
                }
                _ => None,
            };
            if let Some((key, name)) = parsed
                && let Some(slot) = names.get_mut(&key)
            {
                *slot = Some(name.to_owned());
            }
        }
        Names(names)
    }

    /// The name; where the list has none, the number.
    fn of(&self, key: Option<Key>) -> String {
        let Some(key) = key else {
            return String::new();
        };
        if let Some(Some(name)) = self.0.get(&key) {
            return name.clone();
        }
        match key {
            Key::Vendor(id) | Key::Device(_, id) => format!("0x{id:04x}"),
            Key::Subsystem(_, _, vendor, device) => format!("0x{vendor:04x}:0x{device:04x}"),
            Key::Class(id) | Key::Subclass(_, id) => format!("0x{id:02x}"),
        }
    }
}

/// A line without indent: a vendor or a class.
fn top(line: &str) -> Option<(Key, &str)> {
    match line.strip_prefix("C ") {
        Some(class) => number(class).map(|(id, name)| (Key::Class(id), name)),
        None => number(line).map(|(id, name)| (Key::Vendor(id), name)),
    }
}

/// A hexadecimal number and what follows it.
fn number(line: &str) -> Option<(u32, &str)> {
    let (digits, rest) = line.split_once(' ')?;
    let id = u32::from_str_radix(digits, 16).ok()?;
    Some((id, rest.trim()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Machine;
    use super::*;

    const LIST: &str = "# a comment\n\
        1af4  First Maker\n\
        \t1042  Disk One\n\
        \t\t1af4 1100  Board of the Maker\n\
        1b36  Second Maker\n\
        \t1042  Disk Two\n\
        C 01  Storage\n\
        \t08  Fast storage\n\
        \t\t02  NVMe\n\
        C 1b36  odd\n";

    fn machine() -> Machine {
        let machine = Machine::new();
        for (address, values) in [
            (
                "0000:01:00.0",
                ["0x1af4", "0x1042", "0x010802", "0x1af4", "0x1100"],
            ),
            (
                "0000:00:1f.0",
                ["0x8086", "0xabcd", "0xff1200", "0x0000", "0x0000"],
            ),
        ] {
            let names = [
                "vendor",
                "device",
                "class",
                "subsystem_vendor",
                "subsystem_device",
            ];
            for (name, value) in names.into_iter().zip(values) {
                machine.file(&format!("sys/bus/pci/devices/{address}/{name}"), value);
            }
            machine.file(&format!("sys/bus/pci/devices/{address}/revision"), "0x01\n");
        }
        machine.link(
            "sys/bus/pci/devices/0000:01:00.0/driver",
            "../../../bus/pci/drivers/nvme",
        );
        machine
    }

    #[test]
    fn names_come_from_the_list_and_numbers_stand_where_it_has_none() {
        let machine = machine();
        machine.file("pci.ids", LIST);
        let found = devices(&machine.roots);
        assert_eq!(
            found,
            [
                PcIeDeviceInfo {
                    address: "0000:00:1f.0".into(),
                    vendor: "0x8086".into(),
                    product: "0xabcd".into(),
                    revision: "0x01".into(),
                    class: "0xff".into(),
                    subclass: "0x12".into(),
                    ..Default::default()
                },
                PcIeDeviceInfo {
                    driver: "nvme".into(),
                    address: "0000:01:00.0".into(),
                    vendor: "First Maker".into(),
                    product: "Disk One".into(),
                    revision: "0x01".into(),
                    subsystem: "Board of the Maker".into(),
                    class: "Storage".into(),
                    subclass: "Fast storage".into(),
                },
            ]
        );
    }

    #[test]
    fn without_the_list_numbers_stand() {
        let found = devices(&machine().roots);
        assert_eq!(found[1].vendor, "0x1af4");
        assert_eq!(found[1].subsystem, "0x1af4:0x1100");
        assert_eq!(found[1].class, "0x01");
    }

    #[test]
    fn a_device_that_tells_nothing_has_its_address() {
        let machine = Machine::new();
        machine.file("sys/bus/pci/devices/0000:00:00.0/vendor", "what");
        let found = devices(&machine.roots);
        let want = PcIeDeviceInfo {
            address: "0000:00:00.0".into(),
            ..Default::default()
        };
        assert_eq!(found, [want]);
    }
}
