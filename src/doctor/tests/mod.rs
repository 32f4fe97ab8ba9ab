mod devices;
mod socket_access;

use super::*;
use crate::config::CommandLine;
use crate::machine::tree::Tree;
use clap::Parser;

fn config(flags: &[&str]) -> Config {
    let flags = std::iter::once("opi-spdk").chain(flags.iter().copied());
    let line = CommandLine::try_parse_from(flags).expect("valid flags");
    line.resolve().expect("valid settings")
}

/// A machine without faults: 4 cores, 2 nodes, isolated reactors on cores 1 and 2 of node 0.
fn good() -> Tree {
    let tree = Tree::new();
    tree.write("/sys/devices/system/cpu/online", "0-3\n");
    tree.write("/sys/devices/system/cpu/isolated", "1-2\n");
    for (node, cores, free) in [(0, "0-2", "1024"), (1, "3", "512")] {
        let dir = format!("/sys/devices/system/node/node{node}");
        tree.write(&format!("{dir}/cpulist"), cores);
        let pool = format!("{dir}/hugepages/hugepages-2048kB");
        tree.write(&format!("{pool}/nr_hugepages"), "1024");
        tree.write(&format!("{pool}/free_hugepages"), free);
    }
    tree.write(
        "/proc/self/mountinfo",
        "30 1 0:30 / /dev/hugepages rw - hugetlbfs none rw,pagesize=2M\n",
    );
    tree.write(
        "/proc/self/status",
        "CapEff:\t000001ffffffffff\nCpus_allowed_list:\t0\n",
    );
    tree.write(
        "/proc/self/limits",
        "Max open files            65536                65536                files\n\
         Max locked memory         65536                65536                bytes\n",
    );
    tree.write("/proc/sys/fs/aio-max-nr", "1048576");
    tree.write("/proc/sys/fs/aio-nr", "0");
    tree.write("/proc/sys/vm/max_map_count", "65530");
    tree.write("/proc/sys/kernel/osrelease", "6.1.0-28-amd64\n");
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    tree.write(clock, "tsc\n");
    tree.dir("/var/lib");
    tree.dir("/var/tmp");
    tree.dir("/run");
    tree
}

fn bad(tree: &Tree, flags: &[&str]) -> Vec<Finding> {
    let mut findings = examine(&tree.machine(), &config(flags));
    findings.retain(|finding| finding.level != Level::Ok);
    findings
}

const REACTORS: [&str; 2] = ["--cores", "1-2"];

#[test]
fn a_good_machine_has_nothing_wrong() {
    assert_eq!(bad(&good(), &REACTORS), []);
}

/// Each fault alone is found, with its severity, description and command.
#[test]
fn each_fault_is_found_alone_with_the_command_that_mends_it() {
    let node = "/sys/devices/system/node/node";
    let pool = |n: u32| format!("{node}{n}/hugepages/hugepages-2048kB/free_hugepages");
    let cgroup = "/sys/fs/cgroup";
    let device = "/sys/bus/pci/devices/0000:01:00.0";
    type Break<'a> = &'a dyn Fn(&Tree);
    let in_cgroup = |tree: &Tree, file: &str, text: &str| {
        tree.write("/proc/self/cgroup", "0::/\n");
        tree.write("/sys/fs/cgroup/cgroup.controllers", "memory");
        tree.write(&format!("{cgroup}/{file}"), text);
    };
    let cases: &[(Break, Level, &str, &str, &str)] = &[
        (
            &|tree| {
                tree.write(&pool(0), "10");
                tree.write(&pool(1), "0");
            },
            Level::Error,
            "hugepages",
            "20 MiB are free",
            "setup --hugepages 512",
        ),
        (
            &|tree| tree.write(&pool(0), "0"),
            Level::Warning,
            "NUMA",
            "node 0 has reactors and no free hugepages",
            "node0=512",
        ),
        (
            &|tree| in_cgroup(tree, "hugetlb.2MB.max", "1048576"),
            Level::Error,
            "cgroup",
            "hugetlb.2MB.max leaves 1 MiB",
            "hugepages-2Mi",
        ),
        (
            &|tree| in_cgroup(tree, "memory.max", "1048576"),
            Level::Error,
            "cgroup",
            "memory.max leaves 1 MiB",
            "MemoryMax=",
        ),
        (
            &|tree| in_cgroup(tree, "cpu.max", "50000 100000"),
            Level::Warning,
            "cgroup",
            "allows 0.5 cores' time",
            "AllowedCPUs=",
        ),
        (
            &|tree| in_cgroup(tree, "cpuset.cpus.effective", "0,3"),
            Level::Error,
            "cores",
            "1,2 is outside of the cpuset",
            "--cores",
        ),
        (
            &|tree| tree.write("/sys/devices/system/cpu/online", "0-1"),
            Level::Error,
            "cores",
            "2 is not online",
            "--cores",
        ),
        (
            &|tree| tree.write("/sys/devices/system/cpu/online", "1-2"),
            Level::Warning,
            "cores",
            "no core is left",
            "leave a core out",
        ),
        (
            &|tree| tree.write("/sys/devices/system/cpu/isolated", "1"),
            Level::Warning,
            "isolation",
            "cores 2 are not isolated",
            "isolcpus=1,2",
        ),
        (
            &|tree| {
                tree.dir("/proc/irq/9/driver");
                tree.write("/proc/irq/9/effective_affinity_list", "2");
            },
            Level::Warning,
            "interrupts",
            "interrupt 9 goes",
            "for n in 9; do echo 0,3 > /proc/irq/$n/smp_affinity_list; done",
        ),
        (
            &|tree| {
                for number in [9, 12] {
                    tree.dir(&format!("/proc/irq/{number}/driver"));
                    tree.write(&format!("/proc/irq/{number}/effective_affinity_list"), "2");
                }
            },
            Level::Warning,
            "interrupts",
            "2 interrupts go",
            "for n in 9 12; do echo 0,3",
        ),
        (
            &|tree| {
                tree.write(
                    "/sys/devices/system/cpu/cpu1/topology/thread_siblings_list",
                    "1-2",
                )
            },
            Level::Warning,
            "threads",
            "both have reactors",
            "leave core 2 out",
        ),
        (
            &|tree| {
                tree.write(
                    "/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor",
                    "powersave",
                )
            },
            Level::Warning,
            "frequency",
            "powersave",
            "echo performance",
        ),
        (
            &|tree| {
                tree.write(
                    "/proc/self/limits",
                    "Max open files    1024   4096   files\n",
                )
            },
            Level::Warning,
            "open files",
            "at most 1024",
            "LimitNOFILE=",
        ),
        (
            &|tree| tree.write("/proc/self/status", "CapEff:\t0000000000000000\n"),
            Level::Warning,
            "memlock",
            "64 KiB may be locked",
            "ulimit -l unlimited",
        ),
        (
            &|tree| tree.write("/proc/sys/fs/aio-nr", "1048000"),
            Level::Warning,
            "aio",
            "room for 2 aio volumes",
            "sysctl -w fs.aio-max-nr=",
        ),
        (
            &|tree| tree.write("/proc/sys/vm/max_map_count", "1000"),
            Level::Error,
            "mappings",
            "1000",
            "sysctl -w vm.max_map_count=",
        ),
        (
            &|tree| {
                tree.write(&format!("{device}/class"), "0x010802");
                tree.link(&format!("{device}/driver"), "/sys/bus/pci/drivers/nvme");
            },
            Level::Warning,
            "IOMMU",
            "off",
            "intel_iommu=on",
        ),
        (
            &|tree| {
                tree.dir("/sys/kernel/iommu_groups/1");
                tree.write(&format!("{device}/class"), "0x010802");
                tree.write(&format!("{device}/driver_override"), "(null)\n");
            },
            Level::Warning,
            "devices",
            "NVMe device 0000:01:00.0 has no driver",
            "opi-spdk setup --release 0000:01:00.0",
        ),
        (
            &|tree| tree.write(&format!("{device}/driver_override"), "vfio-pci\n"),
            Level::Warning,
            "devices",
            "kept for vfio-pci, and has no driver",
            "--release 0000:01:00.0",
        ),
        (
            &|tree| tree.write("/proc/sys/kernel/osrelease", "4.19.0-27"),
            Level::Warning,
            "kernel",
            "4.19",
            "5.10",
        ),
        (
            &|tree| {
                let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
                tree.write(clock, "hpet");
            },
            Level::Warning,
            "clock",
            "hpet",
            "echo tsc",
        ),
        (
            &|tree| {
                tree.write(
                    "/proc/net/tcp",
                    "0: 00000000:C383 00000000:0000 0A 0:0 00:0 0 0 0 4711 1",
                );
                tree.write("/proc/77/comm", "bridge\n");
                tree.dir("/proc/77/fd");
                let link = tree.path("/proc/77/fd/3");
                std::os::unix::fs::symlink("socket:[4711]", link).unwrap();
            },
            Level::Error,
            "ports",
            "grpc-addr 127.0.0.1:50051: bridge (process 77) listens on 0.0.0.0:50051",
            "--grpc-addr",
        ),
        (
            &|tree| {
                std::fs::remove_dir(tree.path("/run")).unwrap();
                tree.write("/run", "");
            },
            Level::Error,
            "ctrlr-dir",
            "cannot be written to",
            "--ctrlr-dir",
        ),
        (
            &|tree| {
                std::fs::remove_dir(tree.path("/var/tmp")).unwrap();
                tree.write("/var/tmp", "");
            },
            Level::Error,
            "core locks",
            "/var/tmp cannot be written to",
            "mount it writable",
        ),
    ];
    for (damage, level, check, what, fix) in cases {
        let tree = good();
        damage(&tree);
        let found = bad(&tree, &REACTORS);
        let [finding] = &found[..] else {
            panic!("{check} {what}: found {found:#?}");
        };
        assert_eq!(
            (finding.level, finding.check),
            (*level, *check),
            "{finding:?}"
        );
        assert!(finding.what.contains(what), "{finding:?}");
        assert!(finding.fix.as_ref().unwrap().contains(fix), "{finding:?}");
        assert!(finding.why.is_some());
    }
}

/// Of this machine the program has just been built for at least the baseline.
#[test]
fn a_processor_without_what_spdk_was_built_for_is_an_error() {
    let tree = good();
    let here = std::fs::read_to_string("/proc/cpuinfo").expect("a file");
    tree.write("/proc/cpuinfo", &here);
    let of_processor = |found: Vec<Finding>| {
        let mut processor = found.into_iter().filter(|one| one.check == "processor");
        processor.next().map(|one| (one.level, one.what))
    };
    assert_eq!(of_processor(bad(&tree, &REACTORS)), None);
    tree.write("/proc/cpuinfo", "processor : 0\nflags : fpu sse2\n");
    let (level, what) = of_processor(bad(&tree, &REACTORS)).expect("a finding");
    assert!(level == Level::Error && what.contains("ssse3"), "{what}");
}

#[test]
fn memlock_is_an_error_once_a_device_is_on_vfio() {
    let tree = good();
    tree.write("/proc/self/status", "CapEff:\t0\n");
    tree.dir("/sys/kernel/iommu_groups/1");
    let device = "/sys/bus/pci/devices/0000:01:00.0";
    tree.link(&format!("{device}/driver"), "/sys/bus/pci/drivers/vfio-pci");
    let found = bad(&tree, &REACTORS);
    assert_eq!((found[0].check, found[0].level), ("memlock", Level::Error));
}

/// As in the preflight checks: the limits of all mounted sizes together count, and a size without a limit may suffice.
#[test]
fn a_limit_of_one_page_size_is_no_fault_where_another_size_suffices() {
    let tree = good();
    tree.write("/proc/self/cgroup", "0::/\n");
    tree.write("/sys/fs/cgroup/cgroup.controllers", "hugetlb");
    tree.write("/sys/fs/cgroup/hugetlb.2MB.max", "536870912");
    let of = |found: Vec<Finding>| found.into_iter().map(|one| one.what).collect::<Vec<_>>();
    let only =
        "/sys/fs/cgroup/hugetlb.2MB.max leaves 512 MiB of hugepages, and 1024 MiB are asked for";
    assert_eq!(of(bad(&tree, &REACTORS)), [only]);
    let mounts = tree.read("/proc/self/mountinfo")
        + "31 1 0:31 / /huge rw - hugetlbfs none rw,pagesize=1024M\n";
    tree.write("/proc/self/mountinfo", &mounts);
    assert_eq!(of(bad(&tree, &REACTORS)), [""; 0]);
    tree.write("/sys/fs/cgroup/hugetlb.1GB.max", "0");
    assert_eq!(of(bad(&tree, &REACTORS)), [only]);
    tree.write("/sys/fs/cgroup/hugetlb.1GB.max", "1073741824");
    assert_eq!(of(bad(&tree, &REACTORS)), [""; 0]);
}

#[test]
fn without_hugepages_memory_is_held_against_the_cgroup_and_what_is_available() {
    let tree = good();
    tree.write(
        "/proc/meminfo",
        "MemTotal: 9 kB\nMemAvailable:    2097152 kB\n",
    );
    let flags = ["--cores", "1-2", "--no-huge"];
    let found = bad(&tree, &flags);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].check, found[0].level),
        ("hugepages", Level::Warning)
    );
    tree.write("/proc/meminfo", "MemAvailable:    1024 kB\n");
    assert_eq!(
        bad(&tree, &flags)[0].what,
        "1 MiB are available, and 1024 MiB are asked for"
    );
}

#[test]
fn core_0_is_not_to_be_isolated_but_others_are() {
    let tree = good();
    let fix = |cores: &str| {
        let found = bad(&tree, &["--cores", cores]);
        let finding = found.iter().find(|one| one.check == "isolation").unwrap();
        finding.fix.clone().unwrap()
    };
    tree.write("/sys/devices/system/cpu/isolated", "");
    assert_eq!(
        fix("0"),
        "choose --cores 3, and boot with isolcpus=3 nohz_full=3 rcu_nocbs=3"
    );
    assert!(fix("0-1").starts_with("choose --cores 2,3, and boot with isolcpus=2,3 "));
    assert!(fix("0-3").starts_with("leave core 0 out of --cores"));
}

/// The kernel's view of a process that holds the lock of the state directory, all free hugepages and one of the ports.
#[test]
fn what_the_opi_spdk_that_runs_with_this_state_has_is_no_fault() {
    use std::os::unix::fs::MetadataExt;
    let tree = good();
    let lock = "/var/lib/opi-spdk/lock";
    tree.write(lock, "77\n");
    for node in [0, 1] {
        let pool = format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB");
        tree.write(&format!("{pool}/free_hugepages"), "0");
    }
    tree.write(
        "/proc/net/tcp",
        "0: 0100007F:C383 00000000:0000 0A 0:0 00:0 0 0 0 4711 1\n\
         1: 0100007F:1F92 00000000:0000 0A 0:0 00:0 0 0 0 4712 1",
    );
    let opened = |pid: u32, inode: u32| {
        tree.write(&format!("/proc/{pid}/comm"), "some\n");
        tree.dir(&format!("/proc/{pid}/fd"));
        let link = tree.path(&format!("/proc/{pid}/fd/3"));
        std::os::unix::fs::symlink(format!("socket:[{inode}]"), link).unwrap();
    };
    opened(77, 4711);
    opened(78, 4712);
    // The lock of a process that has died, and that of another file.
    let inode = std::fs::metadata(tree.path(lock)).unwrap().ino();
    for locks in [
        "",
        &format!("1: FLOCK  ADVISORY  WRITE 77 08:01:{} 0 EOF\n", inode + 1),
    ] {
        tree.write("/proc/locks", locks);
        let checks: Vec<_> = bad(&tree, &REACTORS).iter().map(|one| one.check).collect();
        assert_eq!(checks, ["hugepages", "ports", "ports"]);
    }
    let held = format!(
        "1: POSIX  ADVISORY  READ 5 08:01:9 0 EOF\n2: FLOCK  ADVISORY  WRITE 77 08:01:{inode} 0 EOF\n"
    );
    tree.write("/proc/locks", &held);
    let found = examine(&tree.machine(), &config(&REACTORS));
    let told = "opi-spdk (process 77) runs with this state-dir: its cores, ports and hugepages are not counted";
    assert!(
        found
            .iter()
            .any(|one| one.level == Level::Ok && one.what == told)
    );
    let found = bad(&tree, &REACTORS);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0]
            .what
            .contains("some (process 78) listens on 127.0.0.1:8082")
    );
    // An upgrade replaces the file of a running program.
    tree.link("/proc/77/exe", "/usr/bin/opi-spdk");
    assert_eq!(bad(&tree, &REACTORS).len(), 1);
    tree.link("/proc/77/exe", "/usr/bin/opi-spdk (deleted)");
    let found = bad(&tree, &REACTORS);
    let fix = found.iter().find(|one| one.check == "program");
    let fix = fix.and_then(|one| one.fix.as_deref());
    assert_eq!(fix, Some("systemctl restart opi-spdk"), "{found:#?}");
}
