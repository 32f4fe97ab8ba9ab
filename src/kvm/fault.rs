//! What can go wrong between this process and QEMU, and what that means for a caller of the API.

use std::io;
use std::path::PathBuf;

use super::protocol::Version;
use crate::error::Error;

/// Why an operation on the machine failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Nobody listens at the monitor's address: QEMU does not run, and what was plugged into it is
    /// gone with it.
    #[error("QEMU does not run: its monitor at {address} takes no connections ({source})")]
    Absent {
        /// The monitor's.
        address: String,
        /// What connect(2) said.
        source: io::Error,
    },
    /// The connection ended, or what came over it is not QMP. QEMU may run or not.
    #[error("{0}")]
    Broken(String),
    /// The time was up first.
    #[error("{0} in time")]
    Late(String),
    /// QEMU answered with an error.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// What was asked for.
        command: &'static str,
        /// QEMU's class of the error, such as `DeviceNotFound`.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// The guest will not give the device up.
    #[error(
        "the guest refuses to give the device up: see its log, and stop what uses the device there"
    )]
    Kept,
    /// The removal of a vfio-user device is known to end this QEMU, and its guest with it.
    #[error(
        "QEMU {0} aborts when a vfio-user device is removed, and its guest with it: shut the guest down \
         first, or set kvm-force-unplug"
    )]
    WouldEnd(Version),
    /// QEMU has taken the device and does not list it.
    #[error("the device is gone right after it was plugged: see QEMU's log")]
    Vanished,
    /// A path that cannot be written in JSON.
    #[error("QEMU takes paths in UTF-8 only, and {} is not: use another ctrlr-dir", .0.display())]
    Path(PathBuf),
    /// An answer that no QEMU gives.
    #[error("QEMU's answer to {command}: {problem}")]
    Answer {
        /// What was asked for.
        command: &'static str,
        /// What it lacks.
        problem: String,
    },
}

impl Fault {
    /// Whether `device_del` was refused since the guest has been asked before and may still answer.
    /// QEMU has no class for it.
    pub(super) fn is_unplug_under_way(&self) -> bool {
        matches!(self, Self::Refused { description, .. } if description.contains("in the process of unplug"))
    }

    /// The fault as a domain error; `action` is what was being done, such as `plug the device x`.
    pub(super) fn during(self, action: &str, device: &str) -> Error {
        let message = format!("cannot {action}: {self}");
        match self {
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
