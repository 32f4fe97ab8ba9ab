//! Checks the directories for state and sockets.

use std::path::Path;

use rustix::fs::{Access, access, statvfs};

use super::Level::{Error, Warning};
use super::Report;
use crate::config::Config;
use crate::machine::Machine;

/// Low free space, in MiB.
const LOW_SPACE: u64 = 64;

/// Where SPDK keeps its core locks.
const CORE_LOCKS: &str = "/var/tmp";

pub(super) fn examine(machine: &Machine, config: &Config, report: &mut Report) {
    let locks = machine.path(CORE_LOCKS);
    match is_writable(&locks) {
        true => report.ok("core locks", CORE_LOCKS),
        false => report.add(
            Error,
            "core locks",
            format!("{} cannot be written to", locks.display()),
            "SPDK locks each reactor's core by a file there, and does not start without",
            format!("run as root, or mount it writable: mkdir -p {CORE_LOCKS} && mount -t tmpfs -o mode=1777 tmpfs {CORE_LOCKS}"),
        ),
    }
    for (setting, dir) in [
        ("state-dir", &config.state_dir),
        ("ctrlr-dir", &config.ctrlr_dir),
    ] {
        let path = machine.path(dir);
        // The existing ancestor tells whether the rest can be created.
        let Some(there) = path.ancestors().find(|dir| dir.exists()) else {
            continue;
        };
        if !is_writable(there) {
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
        match free < LOW_SPACE {
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

fn is_writable(dir: &Path) -> bool {
    dir.is_dir() && access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}
