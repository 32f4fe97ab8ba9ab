//! Checks a machine for opi-spdk with given settings: what is wrong, why it matters, and the command that fixes it.
//! Read-only; needs neither SPDK nor privileges, though some checks see less without them.

mod cores;
mod devices;
mod directories;
mod files;
mod limits;
mod memory;
mod ports;
mod running;
mod socket_access;
mod sockets;
mod system;

use serde::Serialize;

use crate::config::Config;
use crate::machine::Machine;
use running::Running;

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but worse than it could.
    Warning,
    /// opi-spdk does not start, or a requested feature cannot work.
    Error,
}

impl Level {
    /// The word shown for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Short name of the check.
    pub check: &'static str,
    /// The severity.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: Option<&'static str>,
    /// The command that fixes it.
    pub fix: Option<String>,
}

/// The findings collected so far.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Finding>);

impl Report {
    fn ok(&mut self, check: &'static str, what: impl Into<String>) {
        self.0.push(Finding {
            check,
            level: Level::Ok,
            what: what.into(),
            why: None,
            fix: None,
        });
    }

    fn add(
        &mut self,
        level: Level,
        check: &'static str,
        what: impl Into<String>,
        why: &'static str,
        fix: impl Into<String>,
    ) {
        self.0.push(Finding {
            check,
            level,
            what: what.into(),
            why: Some(why),
            fix: Some(fix.into()),
        });
    }
}

/// Runs all checks.
pub fn examine(machine: &Machine, config: &Config) -> Vec<Finding> {
    let mut report = Report::default();
    let running = running::examine(machine, config, &mut report);
    let running = running.as_ref();
    memory::examine(machine, config, running, &mut report);
    cores::examine(machine, config, running, &mut report);
    limits::examine(machine, config, &mut report);
    devices::examine(machine, config, &mut report);
    files::examine(machine, config, &mut report);
    directories::examine(machine, config, &mut report);
    socket_access::examine(machine, config, &mut report);
    ports::examine(machine, config, running, &mut report);
    sockets::examine(machine, config, running, &mut report);
    system::examine(machine, &mut report);
    report.0
}

#[cfg(test)]
mod tests;
