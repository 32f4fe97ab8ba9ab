//! One change of the machine, shown as the equivalent command.

use std::fmt;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::machine::pci::Address;
use crate::machine::{Machine, hugepages, mounts, pci};

/// Timeout of one write to a kernel file: the kernel may wait for a driver or compact memory.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A change of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Writes a number to a kernel file.
    Set {
        /// The file.
        file: String,
        /// The number.
        value: u64,
    },
    /// Creates a directory.
    MakeDir(String),
    /// Removes an empty directory.
    RemoveDir(String),
    /// Mounts a hugetlbfs.
    Mount {
        /// The mount point.
        directory: String,
        /// Its page size.
        kib: u64,
    },
    /// Unmounts a directory.
    Unmount(String),
    /// Loads a kernel module.
    Load(String),
    /// Unbinds a device from its driver and binds it to another.
    Take {
        /// The device.
        address: Address,
        /// The new driver.
        driver: String,
    },
    /// Returns a device to the kernel, which probes for a driver.
    Give {
        /// The device.
        address: Address,
    },
    /// Nothing: the undo of a step that needs none.
    Nothing,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { file, value } => write!(f, "echo {value} > {file}"),
            Self::MakeDir(directory) => write!(f, "mkdir -p {directory}"),
            Self::RemoveDir(directory) => write!(f, "rmdir {directory}"),
            Self::Mount { directory, kib } => {
                let size = hugepages::size(*kib);
                write!(f, "mount -t hugetlbfs -o pagesize={size} nodev {directory}")
            }
            Self::Unmount(directory) => write!(f, "umount {directory}"),
            Self::Load(module) => write!(f, "modprobe {module}"),
            Self::Take { address, driver } => {
                let over = address.file("driver_override");
                let unbind = address.file("driver/unbind");
                write!(
                    f,
                    "echo {driver} > {over}; echo {address} > {unbind}; echo {address} > {PROBE}"
                )
            }
            Self::Give { address } => {
                let over = address.file("driver_override");
                let unbind = address.file("driver/unbind");
                write!(
                    f,
                    "echo > {over}; echo {address} > {unbind}; echo {address} > {PROBE}"
                )
            }
            Self::Nothing => f.write_str("true"),
        }
    }
}

/// Triggers the kernel's probe for a device's driver.
const PROBE: &str = "/sys/bus/pci/drivers_probe";

impl Step {
    /// Whether the machine is not yet in the step's state.
    pub fn is_needed(&self, machine: &Machine) -> bool {
        let is_mounted = |directory: &String| {
            let mounts = mounts::mounts(machine);
            mounts.iter().any(|mount| &mount.directory == directory)
        };
        match self {
            Self::Set { file, value } => machine.number(file) != Some(*value),
            Self::MakeDir(directory) => !machine.has(directory),
            Self::RemoveDir(directory) => {
                machine.has(directory) && machine.names(directory).is_empty()
            }
            Self::Mount { directory, .. } => !is_mounted(directory),
            Self::Unmount(directory) => is_mounted(directory),
            Self::Load(module) => !is_loaded(machine, module),
            Self::Take { address, driver } => address.driver(machine).as_ref() != Some(driver),
            // A device without a driver was left by an interruption between unbind and probe.
            Self::Give { address } => {
                is_kept(machine, address) || address.driver(machine).is_none()
            }
            Self::Nothing => false,
        }
    }

    /// Whether the kernel has yet to complete the step. A probe is complete when its write returns: a device that
    /// still has no driver will not get one.
    pub fn is_pending(&self, machine: &Machine) -> bool {
        match self {
            Self::Give { address } => is_kept(machine, address),
            _ => self.is_needed(machine),
        }
    }

    /// A remark to print once the step is done.
    pub fn remark(&self, machine: &Machine) -> Option<String> {
        match self {
            Self::Give { address } if address.driver(machine).is_none() => Some(format!(
                "{address} has no driver: the kernel has none loaded that takes it (for NVMe: modprobe nvme)"
            )),
            _ => None,
        }
    }

    /// The device that the step changes.
    pub fn device(&self) -> Option<&Address> {
        match self {
            Self::Take { address, .. } | Self::Give { address } => Some(address),
            _ => None,
        }
    }

    /// The step that restores the current state.
    pub fn undo(&self, machine: &Machine) -> Self {
        match self {
            Self::Set { file, .. } => match machine.number(file) {
                Some(value) => Self::Set {
                    file: file.clone(),
                    value,
                },
                None => Self::Nothing,
            },
            Self::MakeDir(directory) => Self::RemoveDir(directory.clone()),
            Self::Mount { directory, .. } => Self::Unmount(directory.clone()),
            Self::Take { address, .. } => match address.driver_override(machine) {
                Some(driver) => Self::Take {
                    address: address.clone(),
                    driver,
                },
                None => Self::Give {
                    address: address.clone(),
                },
            },
            Self::Give { address } => match address.driver(machine) {
                Some(driver) => Self::Take {
                    address: address.clone(),
                    driver,
                },
                None => Self::Nothing,
            },
            // A loaded module is harmless, and others may use it by the time of the undo.
            Self::Load(_) | Self::RemoveDir(_) | Self::Unmount(_) | Self::Nothing => Self::Nothing,
        }
    }

    /// Runs the step.
    ///
    /// # Errors
    /// The error of the kernel or the command.
    pub fn run(&self, machine: &Machine) -> Result<(), String> {
        let path = |file: &String| machine.path(file).display().to_string();
        match self {
            Self::Set { file, value } => write(machine, file, &value.to_string()),
            Self::MakeDir(directory) => {
                std::fs::create_dir_all(machine.path(directory)).map_err(|e| e.to_string())
            }
            Self::RemoveDir(directory) => {
                std::fs::remove_dir(machine.path(directory)).map_err(|e| e.to_string())
            }
            Self::Mount { directory, kib } => {
                let option = format!("pagesize={}", hugepages::size(*kib));
                let directory = path(directory);
                command(
                    "mount",
                    &["-t", "hugetlbfs", "-o", &option, "nodev", &directory],
                )
            }
            Self::Unmount(directory) => command("umount", &[&path(directory)]),
            Self::Load(module) => command("modprobe", &[module]),
            Self::Take { address, driver } => rebind(machine, address, driver),
            Self::Give { address } => rebind(machine, address, ""),
            Self::Nothing => Ok(()),
        }
    }

    /// The error of a step that did not bring the machine into its state.
    pub fn unfinished(&self, machine: &Machine) -> String {
        match self {
            Self::Set { file, value } if file.ends_with("nr_hugepages") => format!(
                "only {} of {value} pages could be had, as memory is in pieces: end programs, or reserve them \
                 at boot (hugepages={value} on the kernel's command line)",
                machine.number(file).unwrap_or(0)
            ),
            Self::Set { file, .. } => format!(
                "the kernel left {} there",
                machine.text(file).unwrap_or_default()
            ),
            Self::Take { address, driver } => format!(
                "{address} has {}, not {driver}: the kernel's log (dmesg) tells why",
                address.driver(machine).unwrap_or("no driver".to_owned())
            ),
            _ => "it had no effect".to_owned(),
        }
    }
}

/// Whether a module is loaded. A built-in driver has no module, but is present.
pub fn is_loaded(machine: &Machine, module: &str) -> bool {
    let folder = module.replace('-', "_");
    machine.has(format!("/sys/module/{folder}"))
        || machine.has(format!("/sys/bus/pci/drivers/{module}"))
}

/// Whether a device is withheld from the kernel's drivers.
pub(super) fn is_kept(machine: &Machine, address: &Address) -> bool {
    let driver = address.driver(machine);
    driver.is_some_and(|driver| pci::USER_DRIVERS.contains(&driver.as_str()))
        || address.driver_override(machine).is_some()
}

fn rebind(machine: &Machine, address: &Address, driver: &str) -> Result<(), String> {
    write(machine, &address.file("driver_override"), driver)?;
    if address.driver(machine).is_some() {
        write(
            machine,
            &address.file("driver/unbind"),
            &address.to_string(),
        )?;
    }
    write(machine, PROBE, &address.to_string())
}

/// Writes a line to a kernel file, with a timeout. A thread whose write never returns is abandoned.
fn write(machine: &Machine, file: &str, value: &str) -> Result<(), String> {
    let path = machine.path(file);
    let line = format!("{value}\n");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(std::fs::write(path, line)));
    match receiver.recv_timeout(TIMEOUT) {
        Ok(written) => written.map_err(|error| format!("{file}: {error}")),
        Err(_) => Err(format!(
            "{file}: the kernel does not answer within {TIMEOUT:?}"
        )),
    }
}

fn command(program: &str, args: &[&str]) -> Result<(), String> {
    let out = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    match out.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&out.stderr)
            .trim()
            .replace('\n', "; ")),
    }
}
