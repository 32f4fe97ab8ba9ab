//! Limits of this process's control groups, of version 1 and 2.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use spdk::cores::CoreSet;

use super::Machine;

/// Mount point of control groups.
const MOUNT: &str = "/sys/fs/cgroup";

/// Version 1 represents "no limit" by the largest multiple of a page.
const NO_LIMIT: u64 = 1 << 60;

/// A limit and its usage, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// The limit.
    pub limit: u64,
    /// The usage.
    pub used: u64,
    /// The file of the limit.
    pub file: PathBuf,
}

impl Limit {
    /// The remainder, in MiB.
    pub fn left_mib(&self) -> u64 {
        self.limit.saturating_sub(self.used) >> 20
    }
}

/// Memory that the process needs beside SPDK's at its start, in MiB (docs/operations.md, Capacity: 105).
pub const BESIDE_MIB: u64 = 128;

/// The memory limit with the smallest remainder, if there is one.
pub fn memory(machine: &Machine) -> Option<Limit> {
    tightest(
        machine,
        "memory",
        &[
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ],
    )
}

/// The limit of hugepages of this size with the smallest remainder, if there is one.
pub fn hugetlb(machine: &Machine, kib: u64) -> Option<Limit> {
    let size = match kib {
        _ if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        _ if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    };
    let names = [
        ("max", "current"),
        ("rsvd.max", "rsvd.current"),
        ("limit_in_bytes", "usage_in_bytes"),
        ("rsvd.limit_in_bytes", "rsvd.usage_in_bytes"),
    ]
    .map(|(limit, used)| {
        (
            format!("hugetlb.{size}.{limit}"),
            format!("hugetlb.{size}.{used}"),
        )
    });
    let names: Vec<_> = names
        .iter()
        .map(|(a, b)| (a.as_str(), b.as_str()))
        .collect();
    tightest(machine, "hugetlb", &names)
}

/// The limit of hugepages over all of these sizes: the sum, if each size has one, with the file of the first. A size without
/// a limit may suffice alone.
pub fn hugetlb_of_all(machine: &Machine, sizes: &BTreeSet<u64>) -> Option<Limit> {
    let limits: Option<Vec<_>> = sizes.iter().map(|kib| hugetlb(machine, *kib)).collect();
    limits?.into_iter().reduce(|sum, one| Limit {
        limit: sum.limit.saturating_add(one.limit),
        used: sum.used.saturating_add(one.used.min(one.limit)),
        file: sum.file,
    })
}

/// The cores that the group may use, if restricted.
pub fn cpuset(machine: &Machine) -> Option<CoreSet> {
    let files = [
        "cpuset.cpus.effective",
        "cpuset.effective_cpus",
        "cpuset.cpus",
    ];
    let groups = groups(machine, "cpuset");
    let mut texts = groups
        .iter()
        .flat_map(|group| files.iter().map(|file| group.join(file)))
        .filter_map(|file| machine.text(file));
    texts.find_map(|text| text.parse().ok())
}

/// The CPU quota of the group in cores, and its file.
pub fn cpu_quota(machine: &Machine) -> Option<(f64, PathBuf)> {
    let quotas = groups(machine, "cpu").into_iter().filter_map(|group| {
        let file = group.join("cpu.max");
        if let Some(text) = machine.text(&file) {
            let (quota, period) = text.split_once(' ')?;
            let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
            return Some((quota / period, file));
        }
        let file = group.join("cpu.cfs_quota_us");
        let quota = machine.number(&file)?;
        let period = machine.number(group.join("cpu.cfs_period_us"))?;
        Some((quota as f64 / period as f64, file))
    });
    quotas.min_by(|a, b| a.0.total_cmp(&b.0))
}

fn tightest(machine: &Machine, controller: &str, names: &[(&str, &str)]) -> Option<Limit> {
    let mut found = Vec::new();
    for group in groups(machine, controller) {
        for (limit, used) in names {
            let file = group.join(limit);
            // "max" does not parse as a number.
            let Some(limit) = machine.number(&file).filter(|limit| *limit < NO_LIMIT) else {
                continue;
            };
            let used = machine.number(group.join(used)).unwrap_or(0);
            found.push(Limit { limit, used, file });
        }
    }
    found
        .into_iter()
        .min_by_key(|limit| limit.limit.saturating_sub(limit.used))
}

/// Directories of the process's groups for a controller, innermost first. In a container the path may be the host's
/// and not mounted; then its ancestors are used.
fn groups(machine: &Machine, controller: &str) -> Vec<PathBuf> {
    let text = machine.text("/proc/self/cgroup").unwrap_or_default();
    let mut directories = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let mount = match controllers {
            "" if machine.has(Path::new(MOUNT).join("cgroup.controllers")) => MOUNT.into(),
            "" => Path::new(MOUNT).join("unified"),
            _ if controllers.split(',').any(|name| name == controller) => {
                let joined = Path::new(MOUNT).join(controllers);
                match machine.has(&joined) {
                    true => joined,
                    false => Path::new(MOUNT).join(controller),
                }
            }
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        let inside = path.ancestors().map(|ancestor| mount.join(ancestor));
        directories.extend(inside.filter(|directory| machine.has(directory)));
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tree::Tree;

    #[test]
    fn the_tightest_limit_of_a_group_and_those_above_it_counts() {
        let tree = Tree::new();
        tree.write("/proc/self/cgroup", "0::/pods/one\n");
        tree.write("/sys/fs/cgroup/cgroup.controllers", "memory hugetlb\n");
        tree.write("/sys/fs/cgroup/pods/memory.max", "1073741824\n");
        tree.write("/sys/fs/cgroup/pods/memory.current", "1048576\n");
        tree.write("/sys/fs/cgroup/pods/one/memory.max", "max\n");
        tree.write("/sys/fs/cgroup/pods/one/hugetlb.2MB.max", "0\n");
        tree.write("/sys/fs/cgroup/pods/one/cpu.max", "150000 100000\n");
        tree.write("/sys/fs/cgroup/pods/one/cpuset.cpus.effective", "2-3\n");
        let machine = tree.machine();
        assert_eq!(memory(&machine).unwrap().left_mib(), 1023);
        assert_eq!(hugetlb(&machine, 2048).unwrap().left_mib(), 0);
        assert_eq!(hugetlb(&machine, 1 << 20), None);
        assert_eq!(cpu_quota(&machine).unwrap().0, 1.5);
        assert_eq!(cpuset(&machine).unwrap().to_string(), "2,3");
    }

    #[test]
    fn version_1_has_a_directory_for_each_controller_and_a_number_for_no_limit() {
        let tree = Tree::new();
        tree.write(
            "/proc/self/cgroup",
            "4:memory:/docker/abc\n3:cpu,cpuacct:/\n0::/\n",
        );
        let memory_dir = "/sys/fs/cgroup/memory";
        tree.write(
            &format!("{memory_dir}/memory.limit_in_bytes"),
            "9223372036854771712",
        );
        tree.write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1");
        assert_eq!(memory(&tree.machine()), None);
        assert_eq!(cpu_quota(&tree.machine()), None);
        tree.write(&format!("{memory_dir}/memory.limit_in_bytes"), "2097152");
        assert_eq!(memory(&tree.machine()).unwrap().left_mib(), 2);
    }
}
