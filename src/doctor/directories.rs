//! The directories of state and sockets.

use rustix::fs::{Access, access, statvfs};

use super::Level::{Error, Warning};
use super::Report;
use crate::config::Config;
use crate::machine::Machine;

/// Free space that is little, MiB.
const LITTLE: u64 = 64;

pub(super) fn examine(machine: &Machine, config: &Config, report: &mut Report) {
    for (setting, dir) in [
        ("state-dir", &config.state_dir),
        ("ctrlr-dir", &config.ctrlr_dir),
    ] {
        let path = machine.path(dir);
        // The part of it that is there tells whether the rest can be made.
        let Some(there) = path.ancestors().find(|dir| dir.exists()) else {
            continue;
        };
        if !there.is_dir() || access(there, Access::WRITE_OK | Access::EXEC_OK).is_err() {
            report.add(
                Error,
                setting,
                format!("{} cannot be written to", there.display()),
                "what must outlive the process, and sockets, are made there",
                format!(
                    "run as root, mount it writable, or name another directory with --{setting}"
                ),
            );
            continue;
        }
        let free = statvfs(there).map_or(u64::MAX, |stats| {
            stats.f_bavail.saturating_mul(stats.f_frsize) >> 20
        });
        match free < LITTLE {
            true => report.add(
                Warning,
                setting,
                format!("{} has {free} MiB free", there.display()),
                "a change that cannot be kept is refused",
                "free some space there",
            ),
            false => report.ok(setting, dir.display().to_string()),
        }
    }
}
