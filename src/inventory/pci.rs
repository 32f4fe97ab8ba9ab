//! PCI devices from sysfs, with names from `pci.ids`.

use std::fs;
use std::path::Path;

use super::pci_ids::{Key, Names};
use super::{Roots, entries, hex, text};
use crate::api::inventory::PcIeDeviceInfo;

/// Lists the machine's PCI devices, ordered by address.
pub fn devices(roots: &Roots, names: &mut Names) -> Vec<PcIeDeviceInfo> {
    let folder = roots.sys.join("bus/pci/devices");
    let found: Vec<Device> = entries(&folder)
        .into_iter()
        .map(|address| Device::read(&folder.join(&address), address))
        .collect();
    names.learn(&roots.pci_ids, found.iter().flat_map(Device::keys));
    found.iter().map(|device| device.info(names)).collect()
}

/// A device in sysfs. Numbers that cannot be read are `None`.
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
        let number = |name: &str| u32::try_from(hex(&folder.join(name))?).ok();
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
            self.subsystem.map(|(vendor, _)| Key::Vendor(vendor)),
            self.class_key(),
            self.subclass_key(),
        ]
        .into_iter()
        .flatten()
    }

    /// The subsystem's name from `pci.ids`; else the device's name if both have the same numbers (like lspci), or its
    /// vendor's name and number.
    fn subsystem_name(&self, names: &Names) -> String {
        let Some((vendor, device)) = self.subsystem else {
            return String::new();
        };
        if let Some(name) = self.subsystem_key().and_then(|key| names.known(key)) {
            return name.to_owned();
        }
        if (self.vendor, self.device) == (Some(vendor), Some(device)) {
            return names.of(self.device_key());
        }
        format!("{} 0x{device:04x}", names.of(Some(Key::Vendor(vendor))))
    }

    fn info(&self, names: &Names) -> PcIeDeviceInfo {
        PcIeDeviceInfo {
            driver: self.driver.clone(),
            address: self.address.clone(),
            vendor: names.of(self.vendor_key()),
            product: names.of(self.device_key()),
            revision: self.revision.clone(),
            subsystem: self.subsystem_name(names),
            class: names.of(self.class_key()),
            subclass: names.of(self.subclass_key()),
        }
    }
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
        let found = devices(&machine.roots, &mut Names::default());
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
    fn a_subsystem_without_a_name_has_its_devices_or_its_vendors() {
        let machine = machine();
        machine.file("pci.ids", LIST);
        let folder = "sys/bus/pci/devices/0000:01:00.0";
        let named = |vendor: &str, device: &str| {
            machine.file(&format!("{folder}/subsystem_vendor"), vendor);
            machine.file(&format!("{folder}/subsystem_device"), device);
            let found = devices(&machine.roots, &mut Names::default());
            found[1].subsystem.clone()
        };
        assert_eq!(named("0x1af4", "0x1042"), "Disk One");
        assert_eq!(named("0x1b36", "0x1042"), "Second Maker 0x1042");
        assert_eq!(named("0x1b37", "0x0001"), "0x1b37 0x0001");
    }

    #[test]
    fn without_the_list_numbers_stand() {
        let found = devices(&machine().roots, &mut Names::default());
        assert_eq!(found[1].vendor, "0x1af4");
        assert_eq!(found[1].subsystem, "0x1af4 0x1100");
        assert_eq!(found[1].class, "0x01");
    }

    #[test]
    fn a_device_that_tells_nothing_has_its_address() {
        let machine = Machine::new();
        machine.file("sys/bus/pci/devices/0000:00:00.0/vendor", "what");
        let found = devices(&machine.roots, &mut Names::default());
        let want = PcIeDeviceInfo {
            address: "0000:00:00.0".into(),
            ..Default::default()
        };
        assert_eq!(found, [want]);
    }
}
