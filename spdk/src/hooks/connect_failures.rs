//! Hooks through which SPDK's NVMe driver reports why a connection attempt failed
//! (`spdk/changes/include/initiator.h`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::time::{Duration, Instant};

use spdk_sys as sys;

use crate::cstr::{read, string};

/// Why a connection attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The socket could not be connected: errno.
    Unreachable(c_int),
    /// The peer refused Connect with this status (status code type, status code).
    Refused(u8, u8),
    /// The peer sent invalid data, for this reason.
    Nonsense(&'static CStr),
    /// DH-HMAC-CHAP failed on this side, for this reason.
    Unauthenticated(&'static CStr),
    /// The peer ended DH-HMAC-CHAP, for this reason if it gave one.
    Rejected(Option<&'static CStr>),
    /// Initialization of the controller timed out or a command of it failed, in this state of SPDK's driver.
    Stuck(&'static CStr),
    /// The connection was lost, or the peer did not answer on it.
    Ended,
}

/// Identifies a controller and its host: address, port, subsystem NQN and host NQN.
type Place = [String; 4];

/// Bound of the table: more than the paths that fail at once. When it is reached, all records are dropped.
const KEPT: usize = 1024;

/// One attempt may report several failures in quick succession, of which the first is the cause. A report later than
/// this after the previous one belongs to a new attempt.
const ONE_ATTEMPT: Duration = Duration::from_secs(1);

thread_local! {
    /// The last failure of each controller, and when it was last reported. Controllers are connected on the app thread;
    /// I/O queues of other threads record their failures in those threads' tables, which nobody reads.
    static FAILURES: RefCell<BTreeMap<Place, (Failure, Instant)>> =
        const { RefCell::new(BTreeMap::new()) };
}

fn place(id: &sys::spdk_nvme_transport_id, hostnqn: &str) -> Place {
    [
        read(&id.traddr),
        read(&id.trsvcid),
        read(&id.subnqn),
        hostnqn.to_owned(),
    ]
}

/// Records a failure; only the first failure of an attempt is kept.
fn note(place: Place, failure: Failure, now: Instant) {
    FAILURES.with_borrow_mut(|failures| {
        if failures.len() >= KEPT {
            failures.clear();
        }
        let (noted, when) = failures.entry(place).or_insert((failure, now));
        if now.saturating_duration_since(*when) > ONE_ATTEMPT {
            *noted = failure;
        }
        // Reports in quick succession belong to the same attempt.
        *when = now;
    });
}

/// Returns why the last connection attempt to this controller failed, if known.
pub(crate) fn failure(id: &sys::spdk_nvme_transport_id, hostnqn: &str) -> Option<Failure> {
    FAILURES.with_borrow(|failures| {
        let found = failures.get(&place(id, hostnqn));
        found.map(|(failure, _)| *failure)
    })
}

/// Returns what [`failure`] does and forgets it. Without a host NQN (SPDK generates it) any host's failure matches.
pub(crate) fn take_failure(
    id: &sys::spdk_nvme_transport_id,
    hostnqn: Option<&str>,
) -> Option<Failure> {
    let from = place(id, hostnqn.unwrap_or_default());
    FAILURES.with_borrow_mut(|failures| {
        let (found, _) = failures.range(from.clone()..).next()?;
        let is_it = match hostnqn {
            Some(_) => *found == from,
            None => found[..3] == from[..3],
        };
        let found = found.clone();
        let taken = if is_it { failures.remove(&found) } else { None };
        taken.map(|(failure, _)| failure)
    })
}

/// Records a failure from the arguments that SPDK passes to each hook.
///
/// # Safety
/// `id` is valid for reads, and `hostnqn` is a NUL-terminated string.
unsafe fn note_of(
    id: *const sys::spdk_nvme_transport_id,
    hostnqn: *const c_char,
    failure: Failure,
) {
    // SAFETY: by the caller's contract `id` is valid for reads and `hostnqn` is NUL-terminated, both during this call.
    let place = unsafe { place(&*id, &string(hostnqn)) };
    note(place, failure, Instant::now());
}

/// Records that a socket could not be connected.
///
/// # Safety
/// `id` is valid for reads, `hostnqn` is a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_unreachable(
    id: *const sys::spdk_nvme_transport_id,
    hostnqn: *const c_char,
    errno: c_int,
) {
    // SAFETY: passes on the caller's contract.
    unsafe { note_of(id, hostnqn, Failure::Unreachable(errno)) };
}

/// Records the status with which a peer refused Connect.
///
/// # Safety
/// `id` is valid for reads, `hostnqn` is a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_connect_refused(
    id: *const sys::spdk_nvme_transport_id,
    hostnqn: *const c_char,
    sct: u8,
    sc: u8,
) {
    // SAFETY: passes on the caller's contract.
    unsafe { note_of(id, hostnqn, Failure::Refused(sct, sc)) };
}

/// Records that a peer sent invalid data, and why it is invalid.
///
/// # Safety
/// `id` is valid for reads, `hostnqn` is a NUL-terminated string, `reason` one of the gate's static strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_connect_failed(
    id: *const sys::spdk_nvme_transport_id,
    hostnqn: *const c_char,
    reason: *const c_char,
) {
    // SAFETY: passes on the caller's contract; `reason` is a NUL-terminated string of static lifetime by it.
    unsafe { note_of(id, hostnqn, Failure::Nonsense(CStr::from_ptr(reason))) };
}

/// Records why DH-HMAC-CHAP failed: on the peer's side (`by_peer`) or on this side.
///
/// # Safety
/// `id` is valid for reads, `hostnqn` is a NUL-terminated string, `reason` one of SPDK's static strings or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_auth_failed(
    id: *const sys::spdk_nvme_transport_id,
    hostnqn: *const c_char,
    by_peer: bool,
    reason: *const c_char,
) {
    // SAFETY: not null, and by the caller's contract a static NUL-terminated string.
    let reason = (!reason.is_null()).then(|| unsafe { CStr::from_ptr(reason) });
    let failure = if by_peer {
        Failure::Rejected(reason)
    } else {
        Failure::Unauthenticated(reason.unwrap_or_default())
    };
    // SAFETY: passes on the caller's contract.
    unsafe { note_of(id, hostnqn, failure) };
}

/// Records the initialization state in which a controller was given up; NULL if its connection was lost.
///
/// # Safety
/// `id` is valid for reads, `hostnqn` is a NUL-terminated string, `state` one of SPDK's static strings or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_stuck(
    id: *const sys::spdk_nvme_transport_id,
    hostnqn: *const c_char,
    state: *const c_char,
) {
    let failure = if state.is_null() {
        Failure::Ended
    } else {
        // SAFETY: not null, and by the caller's contract a static NUL-terminated string.
        Failure::Stuck(unsafe { CStr::from_ptr(state) })
    };
    // SAFETY: passes on the caller's contract.
    unsafe { note_of(id, hostnqn, failure) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport_id::{Kind, ip};

    const HOST: &CStr = c"nqn.2022-09.io.spdk:host";

    #[test]
    fn the_first_failure_of_an_attempt_is_told_once_and_of_each_host_its_own() {
        let id = |port| ip(Kind::Tcp, [127, 0, 0, 1].into(), port).expect("an id");
        let host = HOST.to_str().expect("UTF-8");
        let (one, other) = (id(4420), id(4421));
        // SAFETY: the IDs are locals of this function, and the strings are static.
        unsafe {
            opi_initiator_connect_refused(&one, HOST.as_ptr(), 1, 0x84);
            opi_initiator_connect_failed(&one, HOST.as_ptr(), c"nonsense".as_ptr());
            opi_initiator_stuck(&one, HOST.as_ptr(), std::ptr::null());
            opi_initiator_unreachable(&other, HOST.as_ptr(), libc::ECONNREFUSED);
        }
        let refused = Some(Failure::Unreachable(libc::ECONNREFUSED));
        assert_eq!(failure(&other, host), refused);
        assert_eq!(failure(&other, "nqn.another"), None);
        assert_eq!(take_failure(&other, Some(host)), refused);
        assert_eq!(failure(&other, host), None);
        assert_eq!(
            take_failure(&one, Some(host)),
            Some(Failure::Refused(1, 0x84))
        );
        assert_eq!(take_failure(&one, Some(host)), None);
        // SAFETY: as above.
        unsafe { opi_initiator_stuck(&other, HOST.as_ptr(), c"enable".as_ptr()) };
        assert_eq!(
            take_failure(&other, Some(host)),
            Some(Failure::Stuck(c"enable"))
        );
    }

    #[test]
    fn a_later_attempt_takes_the_place_of_an_earlier_one() {
        let id = ip(Kind::Tcp, [127, 0, 0, 1].into(), 4422).expect("an id");
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let of = |failure, now| note(place(&id, "h"), failure, now);
        of(Failure::Unreachable(libc::ECONNREFUSED), at(0));
        of(Failure::Ended, at(10));
        let refused = Failure::Unreachable(libc::ECONNREFUSED);
        assert_eq!(failure(&id, "h"), Some(refused));
        of(Failure::Refused(1, 0x84), at(2000));
        of(Failure::Ended, at(2010));
        assert_eq!(take_failure(&id, None), Some(Failure::Refused(1, 0x84)));
    }
}
