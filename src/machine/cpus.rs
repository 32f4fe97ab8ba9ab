//! Processor cores and their isolation.

use spdk::cores::CoreSet;

use super::Machine;

const CPUS: &str = "/sys/devices/system/cpu";

/// Reads a list of cores; `None` if it is empty or unreadable.
pub fn list(machine: &Machine, file: &str) -> Option<CoreSet> {
    machine.text(file)?.parse().ok()
}

/// Online cores.
pub fn online(machine: &Machine) -> Option<CoreSet> {
    list(machine, &format!("{CPUS}/online"))
}

/// Cores isolated from the scheduler.
pub fn isolated(machine: &Machine) -> Option<CoreSet> {
    list(machine, &format!("{CPUS}/isolated"))
}

/// The CPU affinity that this process has inherited.
pub fn inherited(machine: &Machine) -> Option<CoreSet> {
    machine
        .field("/proc/self/status", "Cpus_allowed_list")?
        .parse()
        .ok()
}

/// The hardware threads of a core, including this one.
pub fn siblings(machine: &Machine, core: usize) -> Option<CoreSet> {
    let file = format!("{CPUS}/cpu{core}/topology/thread_siblings_list");
    list(machine, &file)
}

/// The frequency governor of a core, if it has one.
pub fn governor(machine: &Machine, core: usize) -> Option<String> {
    machine.text(format!("{CPUS}/cpu{core}/cpufreq/scaling_governor"))
}

/// NUMA nodes, ascending.
pub fn nodes(machine: &Machine) -> Vec<u32> {
    let names = machine.names("/sys/devices/system/node");
    let mut nodes: Vec<u32> = names
        .iter()
        .filter_map(|name| name.strip_prefix("node")?.parse().ok())
        .collect();
    nodes.sort_unstable();
    nodes
}

/// The NUMA nodes of some cores; node 0 if the machine does not say.
pub fn nodes_of(machine: &Machine, cores: &CoreSet) -> Vec<u32> {
    let has = |node: &u32| {
        let file = format!("/sys/devices/system/node/node{node}/cpulist");
        list(machine, &file).is_some_and(|on| on.intersects(cores))
    };
    let found: Vec<_> = nodes(machine).into_iter().filter(has).collect();
    match found.is_empty() {
        true => vec![0],
        false => found,
    }
}

/// Interrupts that are routed to these cores only.
pub fn interrupts(machine: &Machine, cores: &CoreSet) -> Vec<u32> {
    let mut numbers: Vec<u32> = machine
        .names("/proc/irq")
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter(|number| {
            let dir = format!("/proc/irq/{number}");
            // An interrupt number without a handler is only reserved.
            let handled = machine
                .names(&dir)
                .iter()
                .any(|name| machine.path(format!("{dir}/{name}")).is_dir());
            let to = list(machine, &format!("{dir}/effective_affinity_list"));
            handled && to.is_some_and(|to| to.without(cores).is_none())
        })
        .collect();
    numbers.sort_unstable();
    numbers
}
