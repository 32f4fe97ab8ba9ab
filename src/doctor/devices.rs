//! Checks PCI devices for NVMe over PCIe: IOMMU, drivers, and devices that are only partly bound.

use super::Level::{Error, Warning};
use super::Report;
use crate::config::Config;
use crate::machine::{Machine, pci};

pub(super) fn examine(machine: &Machine, config: &Config, report: &mut Report) {
    let devices = pci::devices(machine);
    let given: Vec<_> = devices
        .iter()
        .filter_map(|device| Some((device, device.driver(machine)?)))
        .filter(|(_, driver)| pci::USER_DRIVERS.contains(&driver.as_str()))
        .collect();
    let nvme = devices
        .iter()
        .filter(|device| device.is_nvme(machine))
        .count();
    match (pci::has_iommu(machine), nvme + given.len()) {
        (true, _) => report.ok("IOMMU", "on"),
        (false, 0) => report.ok("IOMMU", "off, and no NVMe device would need it"),
        (false, _) => report.add(
            Warning,
            "IOMMU",
            "off, so vfio-pci takes no device",
            "without it a device reaches all memory; SPDK can then have it through uio_pci_generic only",
            "boot with intel_iommu=on or amd_iommu=on and the firmware's setting for it, or opi-spdk setup --driver uio_pci_generic --bind ...",
        ),
    }
    for device in &devices {
        let driver = device.driver(machine);
        let Some(wanted) = device.driver_override(machine) else {
            if driver.is_none() && device.is_nvme(machine) {
                report.add(
                    Warning,
                    "devices",
                    format!("the NVMe device {device} has no driver"),
                    "nobody can use it: it was given back half way, or the kernel has no driver loaded for it",
                    format!("opi-spdk setup --release {device}"),
                );
            }
            continue;
        };
        if driver.as_deref() != Some(wanted.as_str()) {
            let has = driver.unwrap_or("no driver".to_owned());
            report.add(
                Warning,
                "devices",
                format!("{device} is kept for {wanted}, and has {has}"),
                "nobody can use a device that is bound half way",
                format!("opi-spdk setup --bind {device} --driver {wanted}, or opi-spdk setup --release {device}"),
            );
        }
    }
    for (device, driver) in &given {
        let beside = match driver.as_str() {
            "vfio-pci" => device.beside(machine),
            _ => Vec::new(),
        };
        if let Some((other, kernel)) = beside.first() {
            report.add(
                Error,
                "devices",
                format!("{other} has the driver {kernel} and is in the IOMMU group of {device}"),
                "a process gets an IOMMU group only whole",
                format!(
                    "{}, or opi-spdk setup --release {device}",
                    device.free_group(machine, other)
                ),
            );
        } else if config.no_huge {
            report.add(
                Error,
                "devices",
                format!(
                    "{device} is on {driver}, and no-huge leaves no memory that it could reach"
                ),
                "DMA needs hugepages",
                "leave out --no-huge",
            );
        } else {
            report.ok("devices", format!("{device} is on {driver}"));
        }
    }
}
