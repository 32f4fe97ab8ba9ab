//! Faults between this process and QEMU, and their API errors.

use std::io;
use std::path::PathBuf;

use super::protocol::Version;
use crate::error::Error;

/// Why an operation on QEMU failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Nothing listens at the monitor's address: QEMU does not run, so no device is plugged.
    #[error("QEMU does not run: its monitor at {address} takes no connections ({source})")]
    Absent {
        /// Address of the monitor.
        address: String,
        /// The error of connect(2).
        source: io::Error,
    },
    /// The connection broke or carried something else than QMP. Whether QEMU runs is unknown.
    #[error("{0}")]
    Broken(String),
    /// The deadline passed.
    #[error("{0} in time")]
    Late(String),
    /// QEMU answered with an error.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's error class, such as `DeviceNotFound`.
        class: String,
        /// QEMU's description.
        description: String,
    },
    /// The guest refuses to release the device.
    #[error(
        "the guest refuses to give the device up: see its log, and stop what uses the device there"
    )]
    Kept,
    /// Unplugging a vfio-user device is known to crash this QEMU, and with it the guest.
    #[error(
        "QEMU {0} aborts when a vfio-user device is removed, and its guest with it: shut the guest down \
         first, or set kvm-force-unplug"
    )]
    WouldEnd(Version),
    /// QEMU accepted the device but does not list it.
    #[error("the device is gone right after it was plugged: see QEMU's log")]
    Vanished,
    /// A plug failed, and so did its undo.
    #[error("{0}, and QEMU may still have the device")]
    Left(Box<Self>),
    /// A path that is not UTF-8, as JSON requires.
    #[error("QEMU takes paths in UTF-8 only, and {} is not: use another ctrlr-dir", .0.display())]
    Path(PathBuf),
    /// An unexpected answer of QEMU.
    #[error("QEMU's answer to {command}: {problem}")]
    Answer {
        /// The command.
        command: &'static str,
        /// What is wrong with the answer.
        problem: String,
    },
}

impl Fault {
    /// Whether `device_del` was refused because an earlier request to the guest is still pending. QEMU has no error
    /// class for it.
    pub(super) fn is_unplug_under_way(&self) -> bool {
        matches!(self, Self::Refused { description, .. } if description.contains("in the process of unplug"))
    }

    /// Converts the fault into an API error; `action` is the failed operation, such as `plug the device x`.
    pub(super) fn during(self, action: &str, device: &str) -> Error {
        let message = format!("cannot {action}: {self}");
        match self {
            Self::Left(fault) => fault.during(action, device).unsettled(),
            Self::Absent { .. } | Self::Broken(_) => Error::Unavailable(message),
            Self::Late(_) => Error::DeadlineExceeded(message),
            Self::Refused { .. }
            | Self::Kept
            | Self::WouldEnd(_)
            | Self::Vanished
            | Self::Path(_) => Error::failed_precondition(device, message),
            Self::Answer { .. } => Error::internal(action, self),
        }
    }
}
