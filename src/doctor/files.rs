//! Checks the files that settings name.

use super::Level::Error;
use super::Report;
use crate::config::Config;
use crate::machine::Machine;
use crate::setting_files;

pub(super) fn examine(machine: &Machine, config: &Config, report: &mut Report) {
    if !machine.is_here() {
        return;
    }
    for fault in setting_files::check_files(config) {
        report.add(
            Error,
            "files",
            fault,
            "opi-spdk does not start without what its settings name",
            "mend the file, with the user that is to run opi-spdk in mind, or name another one",
        );
    }
}
