//! Checks whether the group of controllers' sockets can be set, and can reach them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Level::Error;
use super::Report;
use crate::config::Config;
use crate::machine::Machine;

/// CAP_CHOWN, which permits any group.
const CHOWN: u32 = 0;

const STATUS: &str = "/proc/self/status";

pub(super) fn examine(machine: &Machine, config: &Config, report: &mut Report) {
    let access = &config.socket_access;
    if let Some(group) = access.group()
        && !may_give_to(machine, group)
    {
        report.add(
            Error,
            "socket-group",
            format!("this process may not give its sockets to group {group}"),
            "a process without CAP_CHOWN gives its files only to groups that its user is in",
            "run as root with CAP_CHOWN (--cap-add CHOWN of the container), or as a user of the group",
        );
        return;
    }
    let Some(closed) = closed_parent(machine, config) else {
        return;
    };
    let what = match machine.has(closed) {
        true => format!(
            "{} cannot be passed by those who are to use sockets",
            closed.display()
        ),
        false => format!(
            "{} will be made for its owner alone, above ctrlr-dir",
            closed.display()
        ),
    };
    report.add(
        Error,
        "socket-group",
        what,
        "a socket is reached only through all of the directories that it is in",
        format!(
            "install -d -m 0755 {0}, or another --ctrlr-dir",
            closed.display()
        ),
    );
}

/// Whether the process may change the group of its files to this one. Unknown counts as permitted.
fn may_give_to(machine: &Machine, group: u32) -> bool {
    let capabilities = machine.field(STATUS, "CapEff");
    let capabilities = capabilities.and_then(|text| u64::from_str_radix(&text, 16).ok());
    if capabilities.is_none_or(|bits| bits >> CHOWN & 1 == 1) {
        return true;
    }
    // Of Gid: the second number is the effective one.
    let own = machine.field(STATUS, "Gid").unwrap_or_default();
    let others = machine.field(STATUS, "Groups").unwrap_or_default();
    own.split_whitespace()
        .skip(1)
        .take(1)
        .chain(others.split_whitespace())
        .any(|number| number.parse() == Ok(group))
}

/// The topmost directory above ctrlr-dir that those whom the mode of sockets admits cannot traverse. ctrlr-dir itself is
/// opened to them at the start.
fn closed_parent<'a>(machine: &Machine, config: &'a Config) -> Option<&'a Path> {
    let access = &config.socket_access;
    let mode = access.mode().filter(|mode| mode & 0o077 != 0)?;
    let parents = config.ctrlr_dir.ancestors().skip(1);
    let mut parents: Vec<_> = parents.filter(|dir| dir.parent().is_some()).collect();
    parents.reverse();
    parents.into_iter().find(|dir| {
        let Ok(metadata) = machine.path(dir).metadata() else {
            return true;
        };
        let by_group = access.group() == Some(metadata.gid()) && metadata.mode() & 0o010 != 0;
        let by_all = metadata.mode() & 0o001 != 0;
        match mode & 0o007 {
            0 => !by_group && !by_all,
            _ => !by_all,
        }
    })
}
