//! Firmware data of SMBIOS (DMTF DSP0134): the strings in `class/dmi/id` of sysfs, and the installed memory from the
//! raw table.

use std::path::Path;

use super::text;
use crate::api::inventory::{BaseboardInfo, BiosInfo, ChassisInfo, SystemInfo};

/// Firmware: type 0.
pub fn bios(id: &Path) -> BiosInfo {
    BiosInfo {
        vendor: text(&id.join("bios_vendor")),
        version: text(&id.join("bios_version")),
        date: text(&id.join("bios_date")),
    }
}

/// System: type 1.
pub fn system(id: &Path) -> SystemInfo {
    SystemInfo {
        family: text(&id.join("product_family")),
        name: text(&id.join("product_name")),
        vendor: text(&id.join("sys_vendor")),
        serial_number: text(&id.join("product_serial")),
        uuid: text(&id.join("product_uuid")),
        sku: text(&id.join("product_sku")),
        version: text(&id.join("product_version")),
    }
}

/// Main board: type 2.
pub fn baseboard(id: &Path) -> BaseboardInfo {
    BaseboardInfo {
        asset_tag: text(&id.join("board_asset_tag")),
        serial_number: text(&id.join("board_serial")),
        vendor: text(&id.join("board_vendor")),
        version: text(&id.join("board_version")),
        product: text(&id.join("board_name")),
    }
}

/// Chassis: type 3.
pub fn chassis(id: &Path) -> ChassisInfo {
    let kind = text(&id.join("chassis_type"));
    ChassisInfo {
        asset_tag: text(&id.join("chassis_asset_tag")),
        serial_number: text(&id.join("chassis_serial")),
        type_description: chassis_kind(&kind).to_owned(),
        r#type: kind,
        vendor: text(&id.join("chassis_vendor")),
        version: text(&id.join("chassis_version")),
    }
}

/// Description of a chassis type (DSP0134, table 17); empty if unknown.
fn chassis_kind(number: &str) -> &'static str {
    const KINDS: [&str; 37] = [
        "",
        "Other",
        "Unknown",
        "Desktop",
        "Low Profile Desktop",
        "Pizza Box",
        "Mini Tower",
        "Tower",
        "Portable",
        "Laptop",
        "Notebook",
        "Hand Held",
        "Docking Station",
        "All in One",
        "Sub Notebook",
        "Space-saving",
        "Lunch Box",
        "Main Server Chassis",
        "Expansion Chassis",
        "SubChassis",
        "Bus Expansion Chassis",
        "Peripheral Chassis",
        "RAID Chassis",
        "Rack Mount Chassis",
        "Sealed-case PC",
        "Multi-system Chassis",
        "Compact PCI",
        "Advanced TCA",
        "Blade",
        "Blade Enclosure",
        "Tablet",
        "Convertible",
        "Detachable",
        "IoT Gateway",
        "Embedded PC",
        "Mini PC",
        "Stick PC",
    ];
    let index = number.parse::<usize>().unwrap_or(0);
    KINDS.get(index).copied().unwrap_or("")
}

/// Installed memory in bytes: the sum over the memory devices (type 17) of an SMBIOS table. `None` if the table has
/// none.
pub fn installed_memory(table: &[u8]) -> Option<u64> {
    Structures(table)
        .filter(|structure| structure[0] == MEMORY_DEVICE)
        .filter_map(memory_device)
        .reduce(u64::saturating_add)
}

/// Memory types (DSP0134, 7.18.2) that are not system memory: video memory, ROM, flash, and logical views of
/// persistent memory whose modules are listed as devices themselves.
const OTHER_MEMORY: [u8; 7] = [0x05, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x1f];

const MEMORY_DEVICE: u8 = 17;
const END_OF_TABLE: u8 = 127;

/// Size of a memory device, in bytes (DSP0134, 7.18). `None` for an empty slot, an unknown size, and devices that are
/// not system memory.
fn memory_device(structure: &[u8]) -> Option<u64> {
    if structure
        .get(0x12)
        .is_some_and(|kind| OTHER_MEMORY.contains(kind))
    {
        return None;
    }
    let size = u16::from_le_bytes(structure.get(0x0c..0x0e)?.try_into().ok()?);
    match size {
        0 | 0xffff => None,
        0x7fff => {
            let mib = u32::from_le_bytes(structure.get(0x1c..0x20)?.try_into().ok()?);
            Some(u64::from(mib & 0x7fff_ffff) << 20)
        }
        kib if kib & 0x8000 != 0 => Some(u64::from(kib & 0x7fff) << 10),
        mib => Some(u64::from(mib) << 20),
    }
}

/// Iterates over the structures of an SMBIOS table, without their strings: type, length, and the data up to that
/// length. Ends at the end of the table or at the first truncated structure.
struct Structures<'a>(&'a [u8]);

impl<'a> Iterator for Structures<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(*self.0.get(1)?);
        if length < 4 || self.0[0] == END_OF_TABLE {
            return None;
        }
        let structure = self.0.get(..length)?;
        // The strings end with an empty one, so with two zero bytes, even if there are none.
        let strings = &self.0[length..];
        let end = strings.windows(2).position(|pair| pair == [0, 0])?;
        self.0 = &strings[end + 2..];
        Some(structure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory device of 40 bytes with the given size fields, and one string.
    fn device(size: u16, extended: u32) -> Vec<u8> {
        let mut bytes = vec![0; 0x28];
        (bytes[0], bytes[1]) = (MEMORY_DEVICE, 0x28);
        bytes[0x0c..0x0e].copy_from_slice(&size.to_le_bytes());
        bytes[0x1c..0x20].copy_from_slice(&extended.to_le_bytes());
        bytes.extend(b"DIMM 0\0\0");
        bytes
    }

    const BIOS: [u8; 8] = [0, 4, 0, 0, b'x', 0, 0, 0];
    const END: [u8; 6] = [END_OF_TABLE, 4, 0, 0, 0, 0];

    #[test]
    fn memory_devices_are_summed() {
        let mut table = BIOS[..7].to_vec();
        table.extend(device(0x7fff, 65536)); // 64 GiB
        table.extend(device(16384, 0)); // 16 GiB
        table.extend(device(0x8000 | 512, 0)); // 512 KiB
        table.extend(device(0, 0)); // empty slot
        table.extend(device(0xffff, 0)); // unknown
        for other in OTHER_MEMORY {
            let mut device = device(4096, 0);
            device[0x12] = other;
            table.extend(device);
        }
        table.extend(END);
        table.extend(device(1024, 0)); // behind the end
        assert_eq!(
            installed_memory(&table),
            Some((64 << 30) + (16 << 30) + (512 << 10))
        );
    }

    /// A realistic layout: memory among structures of other types and lengths, with and without strings, some of which
    /// look like structures.
    #[test]
    fn memory_is_found_among_all_that_a_table_has() {
        let structure = |kind: u8, length: u8, strings: &[&[u8]]| {
            let mut bytes = vec![0x11; usize::from(length)];
            (bytes[0], bytes[1]) = (kind, length);
            for string in strings {
                bytes.extend([string, &b"\0"[..]].concat());
            }
            bytes.extend(if strings.is_empty() {
                &b"\0\0"[..]
            } else {
                b"\0"
            });
            bytes
        };
        let mut table = structure(0, 0x1a, &[b"Maker", b"1.2.3", b"01/31/2026"]);
        table.extend(structure(1, 0x1b, &[b"Maker", b"Server"]));
        table.extend(structure(4, 0x30, &[b"\x11\x28\x01", b"CPU 0"]));
        table.extend(structure(16, 0x17, &[]));
        table.extend(device(0x7fff, 32768)); // 32 GiB
        table.extend(structure(20, 0x23, &[]));
        table.extend(device(32767 - 1, 0)); // MiB, the most that fit
        table.extend(structure(32, 0x0b, &[]));
        table.extend(END);
        assert_eq!(
            installed_memory(&table),
            Some((32 << 30) + (32766 << 20)),
            "{table:?}"
        );
    }

    #[test]
    fn a_damaged_table_is_read_as_far_as_it_is_whole() {
        let whole = [device(1024, 0), device(2048, 0)].concat();
        for cut in 0..whole.len() {
            let found = installed_memory(&whole[..cut]);
            let want = (cut >= device(1024, 0).len()).then_some(1 << 30);
            assert_eq!(found, want, "cut at {cut}");
        }
        assert_eq!(installed_memory(&[17, 0, 0, 0, 0, 0]), None);
        assert_eq!(installed_memory(&[17, 4, 0, 0, 0, 0]), None);
        assert_eq!(installed_memory(&[]), None);
    }

    #[test]
    fn chassis_kinds_have_names() {
        assert_eq!(chassis_kind("1"), "Other");
        assert_eq!(chassis_kind("36"), "Stick PC");
        for odd in ["", "0", "37", "-1", "x"] {
            assert_eq!(chassis_kind(odd), "", "{odd}");
        }
    }
}
