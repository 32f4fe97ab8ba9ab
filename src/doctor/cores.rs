//! Checks the reactors' cores: whether they are available, and what else runs on them.

use spdk::cores::CoreSet;

use super::Level::{Error, Warning};
use super::{Report, Running};
use crate::config::Config;
use crate::machine::{Machine, cgroup, cpus, pci};

/// Why nothing else should run on a reactor's core.
const SHARED: &str = "a reactor that has to share its core answers late: its longest delays are the other's time slice";

pub(super) fn examine(
    machine: &Machine,
    config: &Config,
    running: Option<&Running>,
    report: &mut Report,
) {
    let reactors = &config.cores;
    if !are_available(machine, reactors, report) {
        return;
    }
    let own = |pid| running.is_some_and(|running| running.pid == pid);
    let claimed = reactors.iter().find_map(|core| {
        let core: CoreSet = core.to_string().parse().ok()?;
        core.claimed().filter(|(_, pid)| !own(*pid))
    });
    if let Some((core, pid)) = claimed.filter(|_| machine.is_here()) {
        report.add(
            Error,
            "cores",
            format!("core {core} is in use by the SPDK process {pid}"),
            "two reactors on one core halve each other",
            "choose others with --cores, or stop that process",
        );
    }
    exclusive(machine, reactors, report);
    threads(machine, reactors, report);
    speed(machine, reactors, report);
    let nodes = cpus::nodes_of(machine, reactors);
    for device in pci::devices(machine) {
        let driver = device.driver(machine).unwrap_or_default();
        if let Some(node) = device.node(machine)
            && pci::USER_DRIVERS.contains(&driver.as_str())
            && !nodes.contains(&node)
        {
            report.add(
                Warning,
                "NUMA",
                format!("device {device} is on node {node}, the reactors are on {nodes:?}"),
                "each I/O crosses between the nodes",
                format!("choose cores of /sys/devices/system/node/node{node}/cpulist with --cores"),
            );
        }
    }
}

fn are_available(machine: &Machine, reactors: &CoreSet, report: &mut Report) -> bool {
    let online = cpus::online(machine);
    let permitted = match machine.is_here() {
        true => CoreSet::permitted().ok(),
        false => cgroup::cpuset(machine),
    };
    for (set, what) in [
        (&online, "is not online"),
        (&permitted, "is outside of the cpuset"),
    ] {
        let Some(set) = set else { continue };
        if let Some(missing) = reactors.without(set) {
            report.add(
                Error,
                "cores",
                format!("{missing} {what}; this process may use {set}"),
                "a reactor is pinned to its core and cannot start elsewhere",
                format!("choose among {set} with --cores, or change the cpuset of the unit, container or pod"),
            );
            return false;
        }
    }
    let inherited = cpus::inherited(machine);
    match inherited.as_ref().and_then(|inherited| reactors.without(inherited)) {
        Some(outside) => report.ok(
            "cores",
            format!("{reactors}; {outside} outside of the inherited affinity, which is how isolated cores are had"),
        ),
        None => report.ok("cores", reactors.to_string()),
    }
    let left = online.as_ref().and_then(|online| online.without(reactors));
    if online.is_some() && left.is_none() {
        report.add(
            Warning,
            "cores",
            "no core is left beside the reactors",
            "calls, TLS handshakes and the kernel run on the reactors' cores, and I/O waits for them",
            "leave a core out of --cores",
        );
    }
    true
}

fn exclusive(machine: &Machine, reactors: &CoreSet, report: &mut Report) {
    let isolated = cpus::isolated(machine);
    let shared = match &isolated {
        Some(isolated) => reactors.without(isolated),
        None => Some(reactors.clone()),
    };
    match shared {
        Some(shared) => report.add(
            Warning,
            "isolation",
            format!("cores {shared} are not isolated: the scheduler runs other programs there"),
            SHARED,
            isolate(machine, reactors),
        ),
        None => report.ok("isolation", "all reactors have isolated cores"),
    }
    let interrupts = cpus::interrupts(machine, reactors);
    if let Some(first) = interrupts.first() {
        let others = cpus::online(machine).and_then(|online| online.without(reactors));
        report.add(
            Warning,
            "interrupts",
            match interrupts.len() {
                1 => format!("interrupt {first} goes to the reactors' cores"),
                number => format!("{number} interrupts go to the reactors' cores (first: {first})"),
            },
            SHARED,
            match others {
                Some(others) => format!(
                    "for n in {}; do echo {others} > /proc/irq/$n/smp_affinity_list; done # and keep irqbalance off {reactors}",
                    joined(&interrupts, " ")
                ),
                None => "leave a core out of --cores, for them".to_owned(),
            },
        );
    }
    if let Some((quota, file)) = cgroup::cpu_quota(machine) {
        report.add(
            Warning,
            "cgroup",
            format!("{} allows {quota} cores' time", file.display()),
            "a reactor polls all the time: a quota stops it for milliseconds in each period, with every I/O on it",
            "give whole cores by cpuset (AllowedCPUs=, --cpuset-cpus, static CPU manager) and lift the quota",
        );
    }
}

/// Advice for isolating the reactors' cores. Core 0 cannot be isolated: the kernel keeps work there regardless.
fn isolate(machine: &Machine, reactors: &CoreSet) -> String {
    let boot = |cores: &str| format!("isolcpus={cores} nohz_full={cores} rcu_nocbs={cores}");
    if reactors.iter().all(|core| core != 0) {
        return format!("boot with {}", boot(&reactors.to_string()));
    }
    let online = cpus::online(machine);
    let others: Vec<usize> = online.iter().flat_map(CoreSet::iter).collect();
    let others = others.strip_prefix(&[0]).unwrap_or(&others);
    let asked = reactors.iter().count();
    match others.len().checked_sub(asked) {
        // Chooses the highest cores; core 0 stays for everything else.
        Some(at) => {
            let cores = joined(&others[at..], ",");
            format!("choose --cores {cores}, and boot with {}", boot(&cores))
        }
        None => "leave core 0 out of --cores, and isolate the others: it has the kernel's own work"
            .to_owned(),
    }
}

fn joined<T: ToString>(numbers: &[T], by: &str) -> String {
    let numbers: Vec<String> = numbers.iter().map(T::to_string).collect();
    numbers.join(by)
}

fn threads(machine: &Machine, reactors: &CoreSet, report: &mut Report) {
    for core in reactors.iter() {
        let Some(siblings) = cpus::siblings(machine, core) else {
            continue;
        };
        let other = siblings.iter().find(|other| *other != core);
        let Some(other) =
            other.filter(|other| *other > core || !reactors.iter().any(|one| one == *other))
        else {
            continue;
        };
        let both = reactors.iter().any(|one| one == other);
        report.add(
            Warning,
            "threads",
            match both {
                true => format!("cores {core} and {other} are threads of one core, and both have reactors"),
                false => format!("core {other} is the other thread of core {core}, which has a reactor"),
            },
            "two threads share the execution units of their core, so a reactor gets about half of it",
            match both {
                true => format!("leave core {other} out of --cores"),
                false => format!("echo 0 > /sys/devices/system/cpu/cpu{other}/online, or keep programs off it"),
            },
        );
    }
}

fn speed(machine: &Machine, reactors: &CoreSet, report: &mut Report) {
    let slow = reactors.iter().find_map(|core| {
        let governor = cpus::governor(machine, core)?;
        (governor != "performance").then_some((core, governor))
    });
    if let Some((core, governor)) = slow {
        report.add(
            Warning,
            "frequency",
            format!("the frequency governor of core {core} is {governor}"),
            "a reactor would run slower than its core can",
            format!(
                "echo performance > /sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"
            ),
        );
    }
}
