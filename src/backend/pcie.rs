//! Checks whether SPDK can take over an NVMe device on the local PCI bus.

use std::path::Path;

use crate::error::Error;

/// Directory in which the kernel lists its PCI devices.
pub const DEVICES: &str = "/sys/bus/pci/devices";

/// Kernel drivers for userspace access to a device.
const USABLE: [&str; 2] = ["vfio-pci", "uio_pci_generic"];

/// PCI Code and ID Assignment: class code of mass storage, non-volatile memory, NVMe.
const NVME_CLASS: &str = "0x010802";

/// Normalizes a PCI address to the kernel's form, `0000:01:00.0`.
///
/// # Errors
/// Says what is wrong with the text.
pub fn address(text: &str) -> Result<String, String> {
    let digits = |text: &str, count| {
        text.len() == count && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let parts: Vec<&str> = text.split([':', '.']).collect();
    let good = match parts.as_slice() {
        [domain, bus, device, function] => {
            digits(domain, 4)
                && digits(bus, 2)
                && digits(device, 2)
                && u8::from_str_radix(device, 16).is_ok_and(|device| device < 32)
                && matches!(function.as_bytes(), [b'0'..=b'7'])
        }
        _ => false,
    };
    let separators: String = text.chars().filter(|c| [':', '.'].contains(c)).collect();
    if good && separators == "::." {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!(
            "{text:?} is not a PCI address: dddd:bb:dd.f in hexadecimal, such as 0000:01:00.0"
        ))
    }
}

/// Checks that SPDK can drive the device at this address, in the kernel's form. Reads sysfs: for control threads only.
///
/// # Errors
/// FAILED_PRECONDITION that says how to bind the device, INVALID_ARGUMENT if it is no NVMe device.
pub fn check_usable(devices: &Path, address: &str) -> Result<(), Error> {
    let device = devices.join(address);
    let Ok(class) = std::fs::read_to_string(device.join("class")) else {
        return Err(Error::invalid(
            "traddr",
            format!("there is no PCI device {address} on this machine"),
        ));
    };
    if class.trim() != NVME_CLASS {
        let what = format!(
            "PCI device {address} is of class {}, and an NVMe controller of {NVME_CLASS}",
            class.trim()
        );
        return Err(Error::invalid("traddr", what));
    }
    let driver = std::fs::read_link(device.join("driver")).ok();
    let driver = driver
        .as_deref()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy());
    match driver {
        Some(driver) if driver == "vfio-pci" && !has_iommu_module(devices) => {
            Err(Error::failed_precondition(
                address,
                format!(
                    "PCI device {address} is on vfio-pci, and the kernel has no module that drives the IOMMU for it: \
                     modprobe vfio_iommu_type1"
                ),
            ))
        }
        Some(driver) if USABLE.contains(&&*driver) => Ok(()),
        other => {
            let state = match other {
                Some(driver) => format!("is bound to {driver}"),
                None => "is bound to no driver".into(),
            };
            Err(Error::failed_precondition(
                address,
                format!(
                    "PCI device {address} {state}; SPDK needs vfio-pci (or uio_pci_generic): \
                     opi-spdk setup --bind {address}, or modprobe -a vfio-pci vfio_iommu_type1; echo vfio-pci > {dir}/driver_override; \
                     echo {address} > {dir}/driver/unbind (if it has one); \
                     echo {address} > /sys/bus/pci/drivers_probe",
                    dir = device.display()
                ),
            ))
        }
    }
}

/// Returns whether VFIO's IOMMU driver is loaded: the kernel need not load it with vfio-pci
/// (Documentation/driver-api/vfio.rst). In VFIO's unsafe no-IOMMU mode it is not needed.
fn has_iommu_module(devices: &Path) -> bool {
    let modules = devices.join("../../../module");
    let unsafe_mode = modules.join("vfio/parameters/enable_unsafe_noiommu_mode");
    modules.join("vfio_iommu_type1").exists()
        || std::fs::read_to_string(unsafe_mode).is_ok_and(|mode| mode.trim() == "Y")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_whole_and_in_lower_case() {
        assert_eq!(address("0000:01:00.0"), Ok("0000:01:00.0".into()));
        assert_eq!(address("10AB:Ff:1f.7"), Ok("10ab:ff:1f.7".into()));
        for bad in [
            "",
            "01:00.0",
            "0000:01:00",
            "0000:01:00.8",
            "0000:01:20.0",
            "0000:01:00:0",
            "0000.01.00.0",
            "000g:01:00.0",
            "0000:01:00.0 ",
            "/0000:01:00.0",
            "0000:01:00.0/..",
        ] {
            assert!(
                address(bad).unwrap_err().contains("not a PCI address"),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_device_must_be_an_nvme_controller_that_spdk_can_drive() {
        let sys = tempfile::tempdir().unwrap();
        let root = sys.path().join("bus/pci/devices");
        let device = |address: &str, class: &str, driver: Option<&str>| {
            let dir = root.join(address);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("class"), format!("{class}\n")).unwrap();
            if let Some(driver) = driver {
                std::os::unix::fs::symlink(format!("../drivers/{driver}"), dir.join("driver"))
                    .unwrap();
            }
            check_usable(&root, address).map_err(|error| error.to_string())
        };
        let no_iommu = device("0000:01:00.5", NVME_CLASS, Some("vfio-pci")).unwrap_err();
        assert!(no_iommu.contains("modprobe vfio_iommu_type1"), "{no_iommu}");
        std::fs::create_dir_all(sys.path().join("module/vfio_iommu_type1")).unwrap();
        assert_eq!(device("0000:01:00.0", NVME_CLASS, Some("vfio-pci")), Ok(()));
        assert_eq!(
            device("0000:01:00.1", NVME_CLASS, Some("uio_pci_generic")),
            Ok(())
        );
        let bound = device("0000:01:00.2", NVME_CLASS, Some("nvme")).unwrap_err();
        assert!(
            bound.contains("is bound to nvme; SPDK needs vfio-pci"),
            "{bound}"
        );
        assert!(
            device("0000:01:00.3", NVME_CLASS, None)
                .unwrap_err()
                .contains("no driver")
        );
        assert!(
            device("0000:01:00.4", "0x020000", None)
                .unwrap_err()
                .contains("class 0x020000")
        );
        let missing = check_usable(&root, "0000:02:00.0").unwrap_err();
        assert!(
            missing.to_string().contains("no PCI device 0000:02:00.0"),
            "{missing}"
        );
    }
}
