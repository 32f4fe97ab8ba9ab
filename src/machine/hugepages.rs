//! Hugepage pools, per NUMA node and size.

use std::collections::BTreeSet;

use super::{Machine, cpus, mounts};

/// Pages of one size on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The NUMA node.
    pub node: u32,
    /// Size of a page.
    pub kib: u64,
    /// Reserved pages.
    pub total: u64,
    /// Free pages.
    pub free: u64,
}

impl Pool {
    /// Free memory, in MiB.
    pub fn free_mib(&self) -> u64 {
        self.free.saturating_mul(self.kib) / 1024
    }

    /// The sysfs file of the number of pages.
    pub fn file(&self) -> String {
        file(self.node, self.kib)
    }
}

/// The sysfs file of a node's number of pages of one size.
pub fn file(node: u32, kib: u64) -> String {
    format!("{}/nr_hugepages", dir(node, kib))
}

fn dir(node: u32, kib: u64) -> String {
    format!("/sys/devices/system/node/node{node}/hugepages/hugepages-{kib}kB")
}

/// Lists all pools, including empty ones.
pub fn pools(machine: &Machine) -> Vec<Pool> {
    let mut pools = Vec::new();
    for node in cpus::nodes(machine) {
        let names = machine.names(format!("/sys/devices/system/node/node{node}/hugepages"));
        pools.extend(names.iter().filter_map(|name| {
            let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            let kib: u64 = kib.parse().ok()?;
            let number = |what: &str| machine.number(format!("{}/{what}", dir(node, kib)));
            Some(Pool {
                node,
                kib,
                total: number("nr_hugepages")?,
                free: number("free_hugepages")?,
            })
        }));
    }
    pools
}

/// Page sizes with a mounted hugetlbfs, in KiB: SPDK maps files there.
pub fn mounted(machine: &Machine) -> BTreeSet<u64> {
    let mounts = mounts::mounts(machine);
    let huge = mounts.iter().filter(|mount| mount.kind == "hugetlbfs");
    huge.filter_map(|mount| kib(mount.option("pagesize=")?))
        .collect()
}

/// Parses `2M` or `1G` into KiB.
pub fn kib(size: &str) -> Option<u64> {
    let (number, unit) = size.split_at_checked(size.len().checked_sub(1)?)?;
    let factor = match unit {
        "K" | "k" => 1,
        "M" | "m" => 1024,
        "G" | "g" => 1024 * 1024,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Formats a size as in mount options: `2M`, `1G`.
pub fn size(kib: u64) -> String {
    match kib {
        _ if kib >= 1 << 20 => format!("{}G", kib >> 20),
        _ if kib >= 1 << 10 => format!("{}M", kib >> 10),
        _ => format!("{kib}K"),
    }
}
