//! Plans the steps from the request and the state of the machine.

use std::str::FromStr;

use super::Step;
use super::step::is_loaded;
use crate::machine::pci::Address;
use crate::machine::{Machine, cpus, hugepages, pci};
use spdk::cores::CoreSet;

/// Number and placement of hugepages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pages {
    /// This many in total, on the nodes of the reactors' cores.
    Together(u64),
    /// This many on each of these nodes.
    OnNodes(Vec<(u32, u64)>),
}

impl FromStr for Pages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no number of pages, such as 1024 or node0=512,node1=512");
        if let Ok(number) = text.parse() {
            return Ok(Self::Together(number));
        }
        let part = |part: &str| {
            let (node, pages) = part.strip_prefix("node")?.split_once('=')?;
            Some((node.parse().ok()?, pages.parse().ok()?))
        };
        let nodes: Option<Vec<(u32, u64)>> = text.split(',').map(part).collect();
        nodes.map(Self::OnNodes).ok_or_else(wrong)
    }
}

/// The requested state.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Hugepages to reserve at least.
    pub pages: Option<Pages>,
    /// Page size, in KiB.
    pub page_kib: u64,
    /// The cores whose nodes get the pages.
    pub cores: CoreSet,
    /// Devices to bind to a userspace driver.
    pub bind: Vec<Address>,
    /// The userspace driver.
    pub driver: String,
    /// Devices to return to the kernel.
    pub release: Vec<Address>,
    /// Minimum of asynchronous I/O contexts (fs.aio-max-nr).
    pub aio: Option<u64>,
}

pub(super) fn make(machine: &Machine, wanted: &Wanted) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    if let Some(pages) = &wanted.pages {
        reserve(machine, wanted, pages, &mut steps)?;
    }
    if let Some(aio) = wanted.aio {
        at_least(machine, "/proc/sys/fs/aio-max-nr", aio, &mut steps)?;
    }
    for address in &wanted.release {
        release(machine, address, &mut steps)?;
    }
    for address in &wanted.bind {
        bind(machine, wanted, address, &mut steps)?;
    }
    Ok(steps)
}

fn at_least(
    machine: &Machine,
    file: &str,
    value: u64,
    steps: &mut Vec<Step>,
) -> Result<(), String> {
    match machine.number(file) {
        None => Err(format!("this kernel has no {file}")),
        Some(now) => {
            if now < value {
                let file = file.to_owned();
                steps.push(Step::Set { file, value });
            }
            Ok(())
        }
    }
}

fn reserve(
    machine: &Machine,
    wanted: &Wanted,
    pages: &Pages,
    steps: &mut Vec<Step>,
) -> Result<(), String> {
    let kib = wanted.page_kib;
    let on_nodes = match pages {
        Pages::OnNodes(nodes) => nodes.clone(),
        Pages::Together(number) => {
            let nodes = cpus::nodes_of(machine, &wanted.cores);
            let each = number.div_ceil(nodes.len() as u64);
            nodes.into_iter().map(|node| (node, each)).collect()
        }
    };
    for (node, number) in on_nodes {
        let file = hugepages::file(node, kib);
        if !machine.has(&file) {
            let there: Vec<String> = hugepages::pools(machine)
                .iter()
                .map(|pool| format!("node{} {}", pool.node, hugepages::size(pool.kib)))
                .collect();
            return Err(format!(
                "node{node} has no hugepages of {}; there are: {}",
                hugepages::size(kib),
                there.join(", ")
            ));
        }
        enough_memory(machine, node, number, kib)?;
        at_least(machine, &file, number, steps)?;
    }
    if !hugepages::mounted(machine).contains(&kib) {
        // 2 MiB is the kernel's default size on the supported machines.
        let directory = match kib {
            2048 => "/dev/hugepages".to_owned(),
            _ => format!("/dev/hugepages-{}", hugepages::size(kib)),
        };
        if !machine.has(&directory) {
            steps.push(Step::MakeDir(directory.clone()));
        }
        steps.push(Step::Mount { directory, kib });
    }
    Ok(())
}

/// Refuses a number of pages that would leave programs without memory: the kernel itself sets no limit.
fn enough_memory(machine: &Machine, node: u32, number: u64, kib: u64) -> Result<(), String> {
    let file = format!("/sys/devices/system/node/node{node}/meminfo");
    let Some(text) = machine.text(file) else {
        return Ok(());
    };
    // Memory that the kernel can turn into hugepages, including the page cache.
    let kinds = [
        "MemFree:",
        "Active(file):",
        "Inactive(file):",
        "SReclaimable:",
    ];
    let of_kind = |line: &str| {
        let (_, value) = kinds
            .iter()
            .find_map(|kind| line.split_once(&format!(" {kind}")))?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    let free: u64 = text.lines().filter_map(of_kind).sum();
    let now = machine.number(hugepages::file(node, kib)).unwrap_or(0);
    let asked = number.saturating_sub(now).saturating_mul(kib);
    if asked > free / 10 * 9 {
        return Err(format!(
            "node{node} has {} MiB free, and {} MiB more are asked for in hugepages: a tenth is to be left",
            free >> 10,
            asked >> 10
        ));
    }
    Ok(())
}

fn release(machine: &Machine, address: &Address, steps: &mut Vec<Step>) -> Result<(), String> {
    check_exists(machine, address)?;
    let give = Step::Give {
        address: address.clone(),
    };
    if !give.is_needed(machine) {
        return Ok(());
    }
    match address.in_use(machine) {
        Some(user) => Err(format!("{address} cannot be given back: {user}")),
        None => {
            steps.push(give);
            Ok(())
        }
    }
}

fn bind(
    machine: &Machine,
    wanted: &Wanted,
    address: &Address,
    steps: &mut Vec<Step>,
) -> Result<(), String> {
    check_exists(machine, address)?;
    let driver = &wanted.driver;
    if address.driver(machine).as_ref() == Some(driver) {
        load(machine, driver, steps);
        return Ok(());
    }
    // SPDK uses no other kind here, and for other kinds the usage check does not apply.
    if !address.is_storage(machine) {
        return Err(format!(
            "{address} is left alone: it is no storage controller"
        ));
    }
    if let Some(user) = address.in_use(machine) {
        return Err(format!("{address} is left alone: {user}"));
    }
    if driver == "vfio-pci" && !pci::has_iommu(machine) {
        return Err(format!(
            "{address}: vfio-pci needs an IOMMU, and there is none: boot with intel_iommu=on or amd_iommu=on \
             (and the firmware's setting), or use --driver uio_pci_generic, with which the device reaches all memory"
        ));
    }
    let others = match driver.as_str() {
        "vfio-pci" => address.beside(machine),
        _ => Vec::new(),
    };
    if let Some((other, has)) = others
        .iter()
        .find(|(other, _)| !wanted.bind.contains(other))
    {
        return Err(format!(
            "{address}: {other} (driver {has}) is in its IOMMU group, which a process gets only whole: {}",
            address.free_group(machine, other)
        ));
    }
    load(machine, driver, steps);
    steps.push(Step::Take {
        address: address.clone(),
        driver: driver.clone(),
    });
    Ok(())
}

/// Loads the modules of a userspace driver. vfio-pci needs the IOMMU module, which the kernel may not load with it and
/// without which no process can open a device.
fn load(machine: &Machine, driver: &str, steps: &mut Vec<Step>) {
    let iommu = (driver == "vfio-pci").then_some("vfio_iommu_type1");
    for module in [driver].into_iter().chain(iommu) {
        let step = Step::Load(module.to_owned());
        if !is_loaded(machine, module) && !steps.contains(&step) {
            steps.push(step);
        }
    }
}

fn check_exists(machine: &Machine, address: &Address) -> Result<(), String> {
    match address.exists(machine) {
        true => Ok(()),
        false => {
            let nvme: Vec<String> = pci::devices(machine)
                .iter()
                .filter(|device| device.is_nvme(machine))
                .map(Address::to_string)
                .collect();
            Err(format!(
                "there is no PCI device {address}; NVMe devices: {}",
                match nvme.is_empty() {
                    true => "none".to_owned(),
                    false => nvme.join(", "),
                }
            ))
        }
    }
}
