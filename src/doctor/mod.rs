//! What is wrong with a machine for opi-spdk with these settings, why it matters, and the command that
//! mends it. Looks only; needs neither SPDK nor privileges, though without some a few things stay unseen.

mod cores;
mod devices;
mod directories;
mod limits;
mod memory;
mod ports;
mod running;
mod sockets;
mod system;

use serde::Serialize;

use crate::config::Config;
use crate::machine::Machine;
use running::Running;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, less well than it could.
    Warning,
    /// opi-spdk does not start, or something that is asked of it cannot work.
    Error,
}

impl Level {
    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: Option<&'static str>,
    /// The command that mends it.
    pub fix: Option<String>,
}

/// The findings so far.
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

/// Looks at everything.
pub fn examine(machine: &Machine, config: &Config) -> Vec<Finding> {
    let mut report = Report::default();
    let running = running::examine(machine, config, &mut report);
    let running = running.as_ref();
    memory::examine(machine, config, running, &mut report);
    cores::examine(machine, config, running, &mut report);
    limits::examine(machine, config, &mut report);
    devices::examine(machine, config, &mut report);
    directories::examine(machine, config, &mut report);
    ports::examine(machine, config, running, &mut report);
    sockets::examine(machine, config, running, &mut report);
    system::examine(machine, &mut report);
    report.0
}

#[cfg(test)]
mod tests;
