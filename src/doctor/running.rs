//! The opi-spdk that runs with the same state directory, if one does: what it has is no fault.

use std::os::unix::fs::MetadataExt;

use super::{Level, Report};
use crate::config::Config;
use crate::machine::Machine;

/// A process that has the lock of the state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Running {
    pub pid: i32,
}

pub(super) fn examine(machine: &Machine, config: &Config, report: &mut Report) -> Option<Running> {
    let running = find(machine, config)?;
    report.ok(
        "process",
        format!(
            "opi-spdk (process {}) runs with this state-dir: its cores, ports and hugepages are not counted",
            running.pid
        ),
    );
    // The kernel's word for a program file that has gone since.
    let file = machine.link_name(format!("/proc/{}/exe", running.pid));
    if file.is_some_and(|name| name.ends_with(" (deleted)")) {
        report.add(
            Level::Warning,
            "program",
            format!(
                "the program file of process {} has been replaced since it started",
                running.pid
            ),
            "an upgrade takes effect at the next start",
            "systemctl restart opi-spdk",
        );
    }
    Some(running)
}

/// By the kernel's table of locks: to try the lock would be in the way of a start. The file system's number
/// there is not always that of the file's status, and the process in the file is as good.
fn find(machine: &Machine, config: &Config) -> Option<Running> {
    let lock = config.state_dir.join("lock");
    let inode = std::fs::metadata(machine.path(&lock)).ok()?.ino();
    let pid: i32 = machine.text(&lock)?.parse().ok()?;
    let table = machine.text("/proc/locks")?;
    let held = table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some("FLOCK")
            && fields.nth(2).and_then(|text| text.parse().ok()) == Some(pid)
            && fields
                .next()
                .and_then(|file| file.rsplit(':').next()?.parse().ok())
                == Some(inode)
    });
    held.then_some(Running { pid })
}
