//! Sockets in the file system for clients of this machine, and what is in their way.

use super::Level::Error;
use super::{Report, Running};
use crate::config::Config;
use crate::local_socket;
use crate::machine::Machine;
use crate::setting_files;

pub(super) fn examine(
    machine: &Machine,
    config: &Config,
    running: Option<&Running>,
    report: &mut Report,
) {
    // The sockets of the process that runs are in use by right.
    if running.is_some() {
        return;
    }
    for (setting, path) in setting_files::named_sockets(config) {
        if setting_files::will_be_created(config, path) {
            report.ok("sockets", format!("{setting} {} is free", path.display()));
            continue;
        }
        let path = machine.path(path);
        match local_socket::is_stale(&path) {
            Ok(_) => report.ok("sockets", format!("{setting} {} is free", path.display())),
            Err(reason) => report.add(
                Error,
                "sockets",
                format!("{setting} {reason}"),
                "opi-spdk does not start without its sockets",
                format!("take it away, or choose another path with --{setting}"),
            ),
        }
    }
}
