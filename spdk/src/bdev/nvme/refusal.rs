//! Why connecting a peer failed, as far as known: its Connect status, invalid data, a failed authentication or a
//! timeout.

use std::ffi::CStr;

use spdk_sys as sys;

use crate::error::{Errno, Error};
use crate::hooks::connect_failures::{Failure, failure, take_failure};

/// Status code types and codes (NVMe over Fabrics 1.1, figure 19; base specification 2.0, 4.5).
const GENERIC: u8 = 0;
const COMMAND_SPECIFIC: u8 = 1;
const INCOMPATIBLE_FORMAT: u8 = 0x80;
const CONTROLLER_BUSY: u8 = 0x81;
const INVALID_PARAMETERS: u8 = 0x82;
const INVALID_HOST: u8 = 0x84;
const AUTHENTICATION_REQUIRED: u8 = 0x91;

/// Forgets the recorded failure of the controller from this source address (empty for any) for this host, or with None
/// for any host.
pub(super) fn forget(id: &sys::spdk_nvme_transport_id, source: &CStr, hostnqn: Option<&str>) {
    take_failure(id, source, hostnqn);
}

/// Returns why connecting the controller has failed since the last [`forget`], if known.
pub(super) fn reason(
    id: &sys::spdk_nvme_transport_id,
    source: &CStr,
    hostnqn: &str,
) -> Option<String> {
    failure(id, source, hostnqn).map(text)
}

/// Takes the recorded failure as an error: EPERM if the peer refused or broke the protocol, else EHOSTUNREACH.
pub(super) fn error(
    operation: &'static str,
    id: &sys::spdk_nvme_transport_id,
    source: &CStr,
    hostnqn: Option<&str>,
    at: &str,
) -> Error {
    let failure = take_failure(id, source, hostnqn);
    let errno = failure.map_or(libc::EHOSTUNREACH, errno);
    let unknown = || "it could not be connected: SPDK's log at level debug says more".to_owned();
    let what = failure.map_or_else(unknown, text);
    Error::new(operation, errno).with_detail(format!("{at}: {what}"))
}

/// As [`error`] for this host, without forgetting the failure; `None` if none is recorded.
pub(super) fn noted(
    operation: &'static str,
    id: &sys::spdk_nvme_transport_id,
    source: &CStr,
    hostnqn: &str,
) -> Option<Error> {
    let failure = failure(id, source, hostnqn)?;
    Some(Error::new(operation, errno(failure)).with_detail(text(failure)))
}

fn errno(failure: Failure) -> i32 {
    match failure {
        Failure::Unreachable(_)
        | Failure::Stuck(_)
        | Failure::Ended
        | Failure::Refused(COMMAND_SPECIFIC, CONTROLLER_BUSY) => libc::EHOSTUNREACH,
        Failure::Refused(..)
        | Failure::Nonsense(_)
        | Failure::Unauthenticated(_)
        | Failure::Rejected(_) => libc::EPERM,
    }
}

fn text(failure: Failure) -> String {
    match failure {
        Failure::Unreachable(errno) => {
            format!("the peer cannot be connected: {}", Errno(errno).meaning())
        }
        Failure::Refused(COMMAND_SPECIFIC, CONTROLLER_BUSY) => {
            "the peer is busy (sct 0x1, sc 0x81)".to_owned()
        }
        Failure::Refused(sct, sc) => {
            let meaning = meaning(sct, sc);
            format!("the peer refuses Connect: {meaning} (sct {sct:#x}, sc {sc:#x})")
        }
        Failure::Stuck(state) => format!(
            "it was not ready in time, or a command of its failed: SPDK's state is {:?}",
            state.to_string_lossy()
        ),
        Failure::Ended => {
            "its connection ended, or was not answered, before it was ready".to_owned()
        }
        Failure::Unauthenticated(reason) => {
            format!("DH-HMAC-CHAP has failed: {}", reason.to_string_lossy())
        }
        Failure::Rejected(reason) => {
            let reason = reason.map(CStr::to_string_lossy);
            let reason = reason
                .as_deref()
                .unwrap_or("for a reason that there is not");
            format!("DH-HMAC-CHAP has failed: the peer refuses this host, {reason}")
        }
        Failure::Nonsense(reason) => {
            format!("the peer makes no sense: {}", reason.to_string_lossy())
        }
    }
}

fn meaning(sct: u8, sc: u8) -> &'static str {
    match (sct, sc) {
        (COMMAND_SPECIFIC, INCOMPATIBLE_FORMAT) => "it speaks another version",
        (COMMAND_SPECIFIC, INVALID_PARAMETERS) => "it has no subsystem of this NQN",
        (COMMAND_SPECIFIC, INVALID_HOST) => "it does not admit this host NQN",
        (COMMAND_SPECIFIC, AUTHENTICATION_REQUIRED) => "it demands authentication",
        (GENERIC, _) => "a generic error",
        _ => "a status that has no meaning here",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_of_connect_have_meanings() {
        assert!(meaning(1, 0x82).contains("no subsystem"));
        assert!(meaning(1, 0x84).contains("admit"));
        assert!(meaning(0, 2).contains("generic"));
        assert!(meaning(3, 0).contains("no meaning"));
    }
}
