//! Finds an opi-spdk that runs with the same state directory: the resources it holds are no fault.

use std::os::unix::fs::MetadataExt;

use super::{Level, Report};
use crate::config::Config;
use crate::machine::Machine;

/// The process that holds the lock of the state directory.
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
    // The kernel's mark for a replaced or removed program file.
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

/// Looks the lock up in the kernel's table: trying to take it could race with a starting opi-spdk. The device number
/// in the table can differ from that of stat(2), so the inode and the PID in the file are compared.
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
