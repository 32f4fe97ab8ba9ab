//! Devices that are bound half, and groups of which vfio would not give a process any device.

use super::*;

const DEVICE: &str = "/sys/bus/pci/devices/0000:01:00.0";
const OTHER: &str = "/sys/bus/pci/devices/0000:01:00.1";

/// A machine with a device of two functions in one IOMMU group, the first on vfio-pci.
fn half_bound(driver: &str, class: &str) -> Tree {
    let tree = good();
    let group = "/sys/kernel/iommu_groups/7";
    for (device, driver, class) in [(DEVICE, "vfio-pci", "0x010802"), (OTHER, driver, class)] {
        tree.write(&format!("{device}/class"), class);
        let bound = format!("/sys/bus/pci/drivers/{driver}");
        tree.link(&format!("{device}/driver"), &bound);
        tree.link(&format!("{device}/iommu_group"), group);
        let name = device.rsplit_once('/').expect("a path").1;
        tree.dir(&format!("{group}/devices/{name}"));
    }
    tree
}

#[test]
fn a_group_with_a_function_on_another_driver_is_an_error_with_what_setup_would_do() {
    for (driver, class, fix) in [
        (
            "nvme",
            "0x010802",
            "opi-spdk setup --bind 0000:01:00.0,0000:01:00.1, or opi-spdk setup --release 0000:01:00.0",
        ),
        (
            "uio_pci_generic",
            "0x010802",
            "opi-spdk setup --bind 0000:01:00.0,0000:01:00.1, or opi-spdk setup --release 0000:01:00.0",
        ),
        (
            "e1000e",
            "0x020000",
            "echo 0000:01:00.1 > /sys/bus/pci/devices/0000:01:00.1/driver/unbind once nothing uses it, \
             or opi-spdk setup --release 0000:01:00.0",
        ),
    ] {
        let tree = half_bound(driver, class);
        let found = bad(&tree, &REACTORS);
        let [finding] = &found[..] else {
            panic!("{driver}: {found:#?}");
        };
        assert_eq!(finding.level, Level::Error);
        let what = format!(
            "0000:01:00.1 has the driver {driver} and is in the IOMMU group of 0000:01:00.0"
        );
        assert_eq!(finding.what, what);
        assert_eq!(finding.fix.as_deref(), Some(fix));
    }
}

#[test]
fn drivers_that_leave_the_group_to_vfio_are_no_fault() {
    for driver in ["vfio-pci", "pci-stub", "pcieport"] {
        let tree = half_bound(driver, "0x010802");
        assert_eq!(bad(&tree, &REACTORS), [], "{driver}");
    }
}
