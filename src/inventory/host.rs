//! Processors and memory, as counted by the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{Roots, dmi, entries, hex, text};
use crate::api::inventory::{CpuInfo, MemoryInfo};

/// Online cores and threads: from sysfs's topology, else only threads from `/proc/cpuinfo`.
pub fn processor(roots: &Roots) -> CpuInfo {
    let cpus = roots.sys.join("devices/system/cpu");
    let mut cores = BTreeSet::new();
    let mut threads = 0;
    for name in entries(&cpus) {
        let number = name.strip_prefix("cpu").map(str::parse::<u32>);
        if !matches!(number, Some(Ok(_))) {
            continue;
        }
        // Threads of one core share this list; an offline thread has none.
        let siblings = text(&cpus.join(name).join("topology/thread_siblings_list"));
        if !siblings.is_empty() {
            threads += 1;
            cores.insert(siblings);
        }
    }
    if threads == 0 {
        threads = text(&roots.proc.join("cpuinfo"))
            .lines()
            .filter(|line| line.split(':').next().map(str::trim) == Some("processor"))
            .count();
    }
    CpuInfo {
        total_cores: u32::try_from(cores.len()).unwrap_or(u32::MAX),
        total_threads: u32::try_from(threads).unwrap_or(u32::MAX),
    }
}

/// Installed memory (from the firmware, else the kernel's memory blocks) and usable memory.
pub fn memory(roots: &Roots) -> MemoryInfo {
    let installed = fs::read(roots.sys.join("firmware/dmi/tables/DMI"))
        .ok()
        .and_then(|table| dmi::installed_memory(&table))
        .or_else(|| memory_blocks(&roots.sys.join("devices/system/memory")));
    let usable = text(&roots.proc.join("meminfo"))
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .and_then(|kib| kib.checked_mul(1024));
    let bytes = |value: Option<u64>| i64::try_from(value.unwrap_or(0)).unwrap_or(i64::MAX);
    MemoryInfo {
        total_physical_bytes: bytes(installed),
        total_usable_bytes: bytes(usable),
    }
}

/// Total size of the memory blocks in sysfs, in bytes.
fn memory_blocks(folder: &Path) -> Option<u64> {
    let size = hex(&folder.join("block_size_bytes"))?;
    let number = |name: &str| name.strip_prefix("memory")?.parse::<u32>().ok();
    let count = entries(folder)
        .iter()
        .filter(|name| number(name).is_some())
        .count();
    (count > 0).then(|| size.saturating_mul(count as u64))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Machine;
    use super::*;

    #[test]
    fn threads_of_a_core_are_one_core() {
        let machine = Machine::new();
        for (cpu, siblings) in [(0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")] {
            machine.file(
                &format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"),
                siblings,
            );
        }
        machine.file("sys/devices/system/cpu/cpu4/online", "0");
        machine.file("sys/devices/system/cpu/cpufreq/x", "");
        let found = processor(&machine.roots);
        assert_eq!((found.total_cores, found.total_threads), (2, 4));
    }

    #[test]
    fn cpuinfo_serves_where_sysfs_has_no_topology() {
        let machine = Machine::new();
        let info = "processor\t: 0\nmodel\t: x\n\nprocessor\t: 1\nmodel\t: processor\n";
        machine.file("proc/cpuinfo", info);
        let found = processor(&machine.roots);
        assert_eq!((found.total_cores, found.total_threads), (0, 2));
    }

    #[test]
    fn memory_blocks_serve_where_firmware_is_silent() {
        let machine = Machine::new();
        machine.file("sys/devices/system/memory/block_size_bytes", "8000000\n");
        for block in ["memory0", "memory32", "power"] {
            machine.file(
                &format!("sys/devices/system/memory/{block}/state"),
                "online",
            );
        }
        machine.file("proc/meminfo", "MemTotal:  262000 kB\nMemFree: 1 kB\n");
        let found = memory(&machine.roots);
        assert_eq!(found.total_physical_bytes, 256 << 20);
        assert_eq!(found.total_usable_bytes, 262_000 * 1024);
        // The block size of machines with much memory: 4 GiB.
        machine.file("sys/devices/system/memory/block_size_bytes", "100000000\n");
        assert_eq!(memory(&machine.roots).total_physical_bytes, 8 << 30);
    }

    #[test]
    fn firmware_tells_what_is_in_the_slots() {
        let machine = Machine::new();
        let mut device = vec![0; 0x22];
        (device[0], device[1]) = (17, 0x20);
        device[0x0c..0x0e].copy_from_slice(&4096_u16.to_le_bytes());
        machine.file("sys/firmware/dmi/tables/DMI", device);
        assert_eq!(memory(&machine.roots).total_physical_bytes, 4 << 30);
    }
}
