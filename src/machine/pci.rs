//! PCI devices: their drivers, and what uses them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::openers::{self, Node};
use super::{Machine, kernel_users, mounts};

const DEVICES: &str = "/sys/bus/pci/devices";

/// Class and subclass of NVMe controllers.
const NVME: u64 = 0x0108;

/// Classes of the device nodes through which processes use a storage controller and its disks.
const NODE_CLASSES: [&str; 4] = ["block", "nvme", "nvme-generic", "scsi_generic"];

/// How long a process may have a node open without being a user of the device: udev probes it so.
const PROBED: Duration = Duration::from_secs(1);

/// Drivers that give a device to a userspace process.
pub const USER_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// Address of a device: domain, bus, device and function.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(String);

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.0
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no PCI address, such as 0000:01:00.0 or 01:00.0");
        let lower = text.to_ascii_lowercase();
        let full = match lower.matches(':').count() {
            1 => format!("0000:{lower}"),
            _ => lower,
        };
        let lengths_fit = full.len() == 12
            && full.bytes().enumerate().all(|(at, byte)| match at {
                4 | 7 => byte == b':',
                10 => byte == b'.',
                11 => (b'0'..=b'7').contains(&byte),
                _ => byte.is_ascii_hexdigit(),
            });
        match lengths_fit {
            true => Ok(Self(full)),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Address {
    /// Path of a sysfs file of the device.
    pub fn file(&self, name: &str) -> String {
        format!("{DEVICES}/{self}/{name}")
    }

    /// Whether the device exists.
    pub fn exists(&self, machine: &Machine) -> bool {
        machine.has(format!("{DEVICES}/{self}"))
    }

    /// The bound driver.
    pub fn driver(&self, machine: &Machine) -> Option<String> {
        machine.link_name(self.file("driver"))
    }

    /// The driver override, if one is set: only that driver may bind the device.
    pub fn driver_override(&self, machine: &Machine) -> Option<String> {
        let text = machine.text(self.file("driver_override"))?;
        (!text.is_empty() && text != "(null)").then_some(text)
    }

    /// The IOMMU group.
    pub fn group(&self, machine: &Machine) -> Option<String> {
        machine.link_name(self.file("iommu_group"))
    }

    /// The NUMA node, if the device has one.
    pub fn node(&self, machine: &Machine) -> Option<u32> {
        machine.text(self.file("numa_node"))?.parse().ok()
    }

    /// Whether the device is an NVMe controller.
    pub fn is_nvme(&self, machine: &Machine) -> bool {
        class(machine, self).is_some_and(|class| class >> 8 == NVME)
    }

    /// Whether the device is a mass storage controller.
    pub fn is_storage(&self, machine: &Machine) -> bool {
        class(machine, self).is_some_and(|class| class >> 16 == 0x01)
    }

    /// Other devices of the IOMMU group whose drivers use it: vfio gives a process only a whole group. Drivers that
    /// leave the group to vfio (`driver_managed_dma` in the kernel) do not count, such as those of bridges.
    pub fn beside(&self, machine: &Machine) -> Vec<(Self, String)> {
        let names = machine.names(self.file("iommu_group/devices"));
        let others = names.iter().filter_map(|name| name.parse::<Self>().ok());
        others
            .filter(|other| other != self)
            .filter_map(|other| Some((other.clone(), other.driver(machine)?)))
            .filter(|(_, driver)| !["pcieport", "pci-stub"].contains(&driver.as_str()))
            .filter(|(_, driver)| !driver.contains("vfio"))
            .collect()
    }

    /// The commands that take `other` out of the way of vfio, as it is in this device's IOMMU group.
    pub fn free_group(&self, machine: &Machine, other: &Self) -> String {
        match other.is_storage(machine) {
            true => format!("opi-spdk setup --bind {self},{other}"),
            // Setup takes no other kind, as it cannot tell whether one is in use.
            false => format!(
                "echo {other} > {} once nothing uses it",
                other.file("driver/unbind")
            ),
        }
    }

    /// The user of the device, which must not be unbound then.
    pub fn in_use(&self, machine: &Machine) -> Option<String> {
        match class(machine, self).map(|class| class >> 16) {
            Some(0x06) => return Some("it is a bridge".to_owned()),
            Some(0x03) => return Some("it is a display".to_owned()),
            _ => {}
        }
        self.interface_in_use(machine)
            .or_else(|| self.storage_in_use(machine))
            .or_else(|| {
                let nodes = ["block", "nvme"].map(|class| self.nodes_of(machine, class));
                kernel_users::user(machine, &nodes.concat())
            })
            .or_else(|| self.opened(machine))
            .or_else(|| self.held(machine))
    }

    /// The process that has one of the device's nodes open, or why that cannot be told.
    fn held(&self, machine: &Machine) -> Option<String> {
        let nodes: Vec<_> = NODE_CLASSES
            .iter()
            .flat_map(|class| {
                let names = self.nodes_of(machine, class).into_iter();
                names.filter_map(move |name| {
                    let number = machine.text(format!("/sys/class/{class}/{name}/dev"))?;
                    let is_block = *class == "block";
                    Some(Node {
                        name,
                        number,
                        is_block,
                    })
                })
            })
            .collect();
        let end = Instant::now() + PROBED;
        loop {
            match openers::opener(machine, &nodes) {
                Ok(Some(_)) if Instant::now() < end => std::thread::sleep(PROBED / 20),
                found => return found.unwrap_or_else(Some),
            }
        }
    }

    fn interface_in_use(&self, machine: &Machine) -> Option<String> {
        let own = machine.names(self.file("net")).into_iter();
        own.chain(self.below(machine, "net")).find_map(|name| {
            let flags = machine.text(format!("/sys/class/net/{name}/flags"))?;
            let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
            // IFF_UP
            (flags & 1 != 0).then(|| format!("its network interface {name} is up"))
        })
    }

    /// Names of the class directory `kind` one level down, where virtio devices have theirs.
    fn below(&self, machine: &Machine, kind: &str) -> Vec<String> {
        let children = machine.names(self.file(""));
        let virtio = children.iter().filter(|name| name.starts_with("virtio"));
        virtio
            .flat_map(|child| machine.names(self.file(&format!("{child}/{kind}"))))
            .collect()
    }

    /// Block devices on the device, also through NVMe multipath, with their partitions.
    pub fn block_devices(&self, machine: &Machine) -> Vec<String> {
        self.nodes_of(machine, "block")
    }

    /// Names of the nodes of a class that are on the device, also through NVMe multipath.
    fn nodes_of(&self, machine: &Machine, class: &str) -> Vec<String> {
        let class = format!("/sys/class/{class}");
        let mut roots: Vec<PathBuf> = Vec::new();
        roots.extend(machine.path(self.file("")).canonicalize());
        let controllers = machine.names(self.file("nvme"));
        for subsystem in machine.names("/sys/class/nvme-subsystem") {
            let dir = format!("/sys/class/nvme-subsystem/{subsystem}");
            let inside = machine.names(&dir);
            if inside.iter().any(|name| controllers.contains(name)) {
                roots.extend(machine.path(&dir).canonicalize());
            }
        }
        let on_it = |name: &String| {
            let device = machine.path(format!("{class}/{name}"));
            device
                .canonicalize()
                .is_ok_and(|device| roots.iter().any(|root| device.starts_with(root)))
        };
        let names = machine.names(&class);
        names.into_iter().filter(on_it).collect()
    }

    fn storage_in_use(&self, machine: &Machine) -> Option<String> {
        let blocks = self.block_devices(machine);
        let mounts = mounts::mounts_of_all(machine);
        let swaps = mounts::swaps(machine);
        blocks.iter().find_map(|name| {
            let number = machine.text(format!("/sys/class/block/{name}/dev"));
            let mount = mounts.iter().find(|mount| {
                Some(&mount.device) == number.as_ref()
                    || mount.source.strip_prefix("/dev/") == Some(name)
            });
            if let Some(mount) = mount {
                return Some(format!("{name} is mounted at {}", mount.directory));
            }
            if swaps.contains(name) {
                return Some(format!("{name} is swap space"));
            }
            let holders = machine.names(format!("/sys/class/block/{name}/holders"));
            if let Some(holder) = holders.first() {
                return Some(format!("{name} is part of {holder}"));
            }
            machine.is_here().then(|| claimed(name)).flatten()
        })
    }

    /// Whether a process has the device open through vfio: unbinding it would block until that process ends.
    fn opened(&self, machine: &Machine) -> Option<String> {
        if self.driver(machine)? != "vfio-pci" || !machine.is_here() {
            return None;
        }
        let group = self.group(machine)?;
        let path = ["", "noiommu-"]
            .map(|prefix| PathBuf::from(format!("/dev/vfio/{prefix}{group}")))
            .into_iter()
            .find(|path| path.exists())?;
        let path = path.display().to_string();
        match open_result(&path, OFlags::RDWR) {
            Ok(()) => None,
            Err(Errno::BUSY) => Some(format!("a process has {path} open")),
            Err(error) => Some(untold(&path, error)),
        }
    }
}

/// Returns who has a block device opened exclusively (a file system, volume manager, RAID or daemon). A device that this
/// process may not open, as in a container, counts as in use.
fn claimed(name: &str) -> Option<String> {
    match open_result(&format!("/dev/{name}"), OFlags::RDONLY | OFlags::EXCL) {
        Ok(()) | Err(Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM) => None,
        Err(Errno::BUSY) => Some(format!("{name} is claimed by the kernel or a process")),
        Err(error) => Some(untold(&format!("/dev/{name}"), error)),
    }
}

fn open_result(path: &str, flags: OFlags) -> Result<(), Errno> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map(drop)
}

fn untold(path: &str, error: Errno) -> String {
    format!("whether {path} is in use cannot be told: {error}")
}

fn class(machine: &Machine, address: &Address) -> Option<u64> {
    let text = machine.text(address.file("class"))?;
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Lists all devices.
pub fn devices(machine: &Machine) -> Vec<Address> {
    let names = machine.names(DEVICES);
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// Whether there is an IOMMU: without DMA translation a process cannot safely be given a device.
pub fn has_iommu(machine: &Machine) -> bool {
    !machine.names("/sys/kernel/iommu_groups").is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tree::Tree;

    #[test]
    fn an_address_is_domain_bus_device_and_function() {
        let parse = |text: &str| text.parse::<Address>();
        assert_eq!(parse("01:00.0").unwrap().to_string(), "0000:01:00.0");
        assert_eq!(parse("0000:AF:1f.7").unwrap().to_string(), "0000:af:1f.7");
        for bad in [
            "",
            "1:0.0",
            "0000:01:00.8",
            "0000:01:00",
            "0000:01:00.0/..",
            "../../etc.0",
        ] {
            assert!(parse(bad).unwrap_err().contains("PCI address"), "{bad}");
        }
    }

    /// A machine with one NVMe disk of one partition, optionally on multipath.
    fn with_disk(multipath: bool) -> (Tree, Address) {
        let tree = Tree::new();
        let device = "/sys/devices/pci0000:00/0000:01:00.0";
        tree.write(&format!("{device}/class"), "0x010802\n");
        tree.dir(&format!("{device}/nvme/nvme0"));
        tree.link("/sys/bus/pci/devices/0000:01:00.0", device);
        let disk = match multipath {
            false => format!("{device}/nvme/nvme0/nvme0n1"),
            true => {
                let subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0";
                tree.link("/sys/class/nvme-subsystem/nvme-subsys0", subsystem);
                tree.link(
                    &format!("{subsystem}/nvme0"),
                    &format!("{device}/nvme/nvme0"),
                );
                format!("{subsystem}/nvme0n1")
            }
        };
        tree.write(&format!("{disk}/dev"), "259:0\n");
        tree.dir(&format!("{disk}/holders"));
        tree.write(&format!("{disk}/nvme0n1p1/dev"), "259:1\n");
        tree.dir(&format!("{disk}/nvme0n1p1/holders"));
        tree.link("/sys/class/block/nvme0n1", &disk);
        tree.link("/sys/class/block/nvme0n1p1", &format!("{disk}/nvme0n1p1"));
        tree.link("/sys/class/block/sda", "/sys/devices/other");
        tree.write("/sys/devices/other/dev", "8:0\n");
        (tree, "01:00.0".parse().unwrap())
    }

    #[test]
    fn a_device_whose_disk_or_partition_is_mounted_held_or_swapped_to_is_in_use() {
        for multipath in [false, true] {
            let (tree, address) = with_disk(multipath);
            let machine = tree.machine();
            let blocks = address.block_devices(&machine);
            assert_eq!(blocks, ["nvme0n1", "nvme0n1p1"]);
            assert_eq!(address.in_use(&machine), None);
            let line = |device: &str, source: &str| {
                format!("20 1 {device} / /data rw - ext4 {source} rw\n")
            };
            tree.write("/proc/self/mountinfo", &line("8:0", "/dev/sda"));
            assert_eq!(address.in_use(&machine), None);
            tree.write("/proc/self/mountinfo", &line("259:1", "/dev/root"));
            let expected = "nvme0n1p1 is mounted at /data";
            assert_eq!(address.in_use(&machine).as_deref(), Some(expected));
            // btrfs has a device number of its own.
            tree.write("/proc/self/mountinfo", &line("0:40", "/dev/nvme0n1p1"));
            assert_eq!(address.in_use(&machine).as_deref(), Some(expected));
            // In a container the mounts of the machine are those of process 1.
            tree.write("/proc/self/mountinfo", "");
            tree.write("/proc/1/mountinfo", &line("259:1", "/dev/root"));
            assert_eq!(address.in_use(&machine).as_deref(), Some(expected));
            tree.write("/proc/1/mountinfo", "");
            tree.write(
                "/proc/swaps",
                "Filename Type\n/dev/nvme0n1p1 partition 1 0 -2\n",
            );
            let swap = address.in_use(&machine).unwrap();
            assert_eq!(swap, "nvme0n1p1 is swap space");
            tree.write("/proc/swaps", "");
            tree.write("/sys/class/block/nvme0n1/holders/dm-0", "");
            assert_eq!(address.in_use(&machine).unwrap(), "nvme0n1 is part of dm-0");
            tree.link("/sys/class/block/nvme0n1", "/sys/devices/other");
            tree.write("/sys/block/loop3/loop/backing_file", "/dev/nvme0n1p1");
            let loops = address.in_use(&machine).unwrap();
            assert!(
                loops.starts_with("nvme0n1p1 is the backing device of loop3"),
                "{loops}"
            );
        }
    }

    #[test]
    fn a_device_whose_node_a_process_has_open_is_in_use() {
        let (tree, address) = with_disk(false);
        let machine = tree.machine();
        let controller = "/sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0";
        tree.link("/sys/class/nvme/nvme0", controller);
        tree.dir("/proc/7/fd");
        std::os::unix::fs::symlink("/dev/null", tree.path("/proc/7/fd/3")).expect("a link");
        assert_eq!(address.in_use(&machine), None);
        // /dev/null stands for the controller's node.
        tree.write(&format!("{controller}/dev"), "1:3\n");
        let user = address.in_use(&machine).unwrap();
        assert_eq!(user, "process 7 () has nvme0 open");
    }

    #[test]
    fn an_interface_that_is_up_and_a_bridge_are_in_use() {
        let tree = Tree::new();
        let address: Address = "02:00.0".parse().unwrap();
        tree.write(&address.file("class"), "0x020000\n");
        tree.dir(&address.file("virtio1/net/eth0"));
        tree.write("/sys/class/net/eth0/flags", "0x1002\n");
        let machine = tree.machine();
        assert_eq!(address.in_use(&machine), None);
        tree.write("/sys/class/net/eth0/flags", "0x1003\n");
        let up = "its network interface eth0 is up";
        assert_eq!(address.in_use(&machine).as_deref(), Some(up));
        tree.write(&address.file("class"), "0x060400\n");
        assert_eq!(address.in_use(&machine).as_deref(), Some("it is a bridge"));
    }
}
