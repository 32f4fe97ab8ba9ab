//! One change of the machine. It is shown as the command that would do the same.

use std::fmt;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::machine::pci::Address;
use crate::machine::{Machine, hugepages, mounts, pci};

/// How long the kernel may take for one write: it waits for a driver, or looks for free memory.
const PATIENCE: Duration = Duration::from_secs(60);

/// A change of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A number in a file of the kernel's.
    Set {
        /// The file.
        file: String,
        /// What is to be in it.
        value: u64,
    },
    /// A directory.
    MakeDir(String),
    /// Away with it, if it is empty.
    RemoveDir(String),
    /// A hugetlbfs.
    Mount {
        /// Where.
        directory: String,
        /// Size of its pages.
        kib: u64,
    },
    /// Away with it.
    Unmount(String),
    /// A module of the kernel.
    Load(String),
    /// A device to a driver, away from the one that has it.
    Take {
        /// The device.
        address: Address,
        /// Its driver then.
        driver: String,
    },
    /// A device back to whatever driver the kernel finds for it.
    Give {
        /// The device.
        address: Address,
    },
    /// Nothing: of what needs no way back.
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

/// Makes the kernel look for a device's driver.
const PROBE: &str = "/sys/bus/pci/drivers_probe";

impl Step {
    /// Whether the machine is not yet as the step makes it.
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
            // Without a driver: what was cut off between the unbind and the probe.
            Self::Give { address } => {
                is_kept(machine, address) || address.driver(machine).is_none()
            }
            Self::Nothing => false,
        }
    }

    /// Whether the kernel has yet to do what was written to it. A probe has ended when its write has: a
    /// device without a driver then stays so.
    pub fn is_pending(&self, machine: &Machine) -> bool {
        match self {
            Self::Give { address } => is_kept(machine, address),
            _ => self.is_needed(machine),
        }
    }

    /// What has to be said of it once it is done.
    pub fn remark(&self, machine: &Machine) -> Option<String> {
        match self {
            Self::Give { address } if address.driver(machine).is_none() => Some(format!(
                "{address} has no driver: the kernel has none loaded that takes it (for NVMe: modprobe nvme)"
            )),
            _ => None,
        }
    }

    /// The device that it changes.
    pub fn device(&self) -> Option<&Address> {
        match self {
            Self::Take { address, .. } | Self::Give { address } => Some(address),
            _ => None,
        }
    }

    /// What brings back how it is now.
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
            // A module that stays harms nobody, and others may use it by then.
            Self::Load(_) | Self::RemoveDir(_) | Self::Unmount(_) | Self::Nothing => Self::Nothing,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// What the kernel or the command says.
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

    /// What is said of a step after which the machine is not as it should be.
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

/// A driver that is built in has no module, but is there.
pub fn is_loaded(machine: &Machine, module: &str) -> bool {
    let folder = module.replace('-', "_");
    machine.has(format!("/sys/module/{folder}"))
        || machine.has(format!("/sys/bus/pci/drivers/{module}"))
}

/// Whether a device is kept from the drivers of the kernel.
fn is_kept(machine: &Machine, address: &Address) -> bool {
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

/// Writes a line to a file of the kernel's, which may take its time; a thread that never comes back is left.
fn write(machine: &Machine, file: &str, value: &str) -> Result<(), String> {
    let path = machine.path(file);
    let line = format!("{value}\n");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(std::fs::write(path, line)));
    match receiver.recv_timeout(PATIENCE) {
        Ok(written) => written.map_err(|error| format!("{file}: {error}")),
        Err(_) => Err(format!(
            "{file}: the kernel does not answer within {PATIENCE:?}"
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
