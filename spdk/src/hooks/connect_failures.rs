//! The hooks by which SPDK's NVMe driver tells why a controller could not be connected
//! (`spdk/changes/include/initiator.h`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::time::{Duration, Instant};

use spdk_sys as sys;

use crate::cstr::{read, string};

/// Why a controller could not be connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The socket could not be connected: errno.
    Unreachable(c_int),
    /// Its peer answered Connect with this status (status code type, status code).
    Refused(u8, u8),
    /// What the peer sent that cannot be.
    Nonsense(&'static CStr),
    /// DH-HMAC-CHAP has failed for this reason.
    Unauthenticated(&'static CStr),
    /// Its peer has ended DH-HMAC-CHAP, and for this reason, if it is one that there is.
    Rejected(Option<&'static CStr>),
    /// In which state of SPDK's it was when its time was up, or a command had failed.
    Stuck(&'static CStr),
    /// Its connection ended before, or the peer did not answer on it.
    Ended,
}

/// Where a controller is, and for whom: address, port, subsystem and the host's NQN.
type Place = [String; 4];

/// Controllers whose failures are kept: more than there are paths that fail at once. Beyond it all begin anew.
const KEPT: usize = 1024;

/// An attempt fails in several places at once, of which the first is the cause; the next attempt is later.
const ONE_ATTEMPT: Duration = Duration::from_secs(1);

thread_local! {
    /// Why each controller could not be connected, and when. On the app thread, where controllers are connected:
    /// what other threads note of their I/O queues is read by nobody.
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

/// Notes a failure. The first of an attempt counts, and the last attempt.
fn note(place: Place, failure: Failure, now: Instant) {
    FAILURES.with_borrow_mut(|failures| {
        if failures.len() >= KEPT {
            failures.clear();
        }
        let (noted, when) = failures.entry(place).or_insert((failure, now));
        if now.saturating_duration_since(*when) > ONE_ATTEMPT {
            *noted = failure;
        }
        // Attempts that follow one another closely are one.
        *when = now;
    });
}

/// Why connecting this controller has failed last, as far as is known.
pub(crate) fn failure(id: &sys::spdk_nvme_transport_id, hostnqn: &str) -> Option<Failure> {
    FAILURES.with_borrow(|failures| {
        let found = failures.get(&place(id, hostnqn));
        found.map(|(failure, _)| *failure)
    })
}

/// The same, and forgets it. Without a host's NQN: of whichever host, where SPDK chooses the name.
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

/// What SPDK passes to each of the hooks.
///
/// # Safety
/// `id` can be read, and `hostnqn` is a terminated string.
unsafe fn note_of(
    id: *const sys::spdk_nvme_transport_id,
    hostnqn: *const c_char,
    failure: Failure,
) {
    // SAFETY: the caller's contract.
    let place = unsafe { place(&*id, &string(hostnqn)) };
    note(place, failure, Instant::now());
}

/// Notes that a socket could not be connected.
///
/// # Safety
/// `id` can be read, `hostnqn` is a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_unreachable(
    id: *const sys::spdk_nvme_transport_id,
    hostnqn: *const c_char,
    errno: c_int,
) {
    // SAFETY: the caller's contract.
    unsafe { note_of(id, hostnqn, Failure::Unreachable(errno)) };
}

/// Notes with which status a peer refused Connect.
///
/// # Safety
/// `id` can be read, `hostnqn` is a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_connect_refused(
    id: *const sys::spdk_nvme_transport_id,
    hostnqn: *const c_char,
    sct: u8,
    sc: u8,
) {
    // SAFETY: the caller's contract.
    unsafe { note_of(id, hostnqn, Failure::Refused(sct, sc)) };
}

/// Notes what a peer sent that cannot be.
///
/// # Safety
/// `id` can be read, `hostnqn` is a terminated string, `reason` a static one of a gate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_connect_failed(
    id: *const sys::spdk_nvme_transport_id,
    hostnqn: *const c_char,
    reason: *const c_char,
) {
    // SAFETY: the caller's contract.
    unsafe { note_of(id, hostnqn, Failure::Nonsense(CStr::from_ptr(reason))) };
}

/// Notes why DH-HMAC-CHAP has failed: for a reason of the peer's, or for one of SPDK's.
///
/// # Safety
/// `id` can be read, `hostnqn` is a terminated string, `reason` a static one of SPDK's, or NULL where it is the peer's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_auth_failed(
    id: *const sys::spdk_nvme_transport_id,
    hostnqn: *const c_char,
    by_peer: bool,
    reason: *const c_char,
) {
    // SAFETY: the caller's contract.
    let reason = (!reason.is_null()).then(|| unsafe { CStr::from_ptr(reason) });
    let failure = if by_peer {
        Failure::Rejected(reason)
    } else {
        Failure::Unauthenticated(reason.unwrap_or_default())
    };
    // SAFETY: the caller's contract.
    unsafe { note_of(id, hostnqn, failure) };
}

/// Notes in which state a controller was when it was given up; NULL where its connection has ended.
///
/// # Safety
/// `id` can be read, `hostnqn` is a terminated string, `state` a static one of SPDK's or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_stuck(
    id: *const sys::spdk_nvme_transport_id,
    hostnqn: *const c_char,
    state: *const c_char,
) {
    let failure = if state.is_null() {
        Failure::Ended
    } else {
        // SAFETY: the caller's contract.
        Failure::Stuck(unsafe { CStr::from_ptr(state) })
    };
    // SAFETY: the caller's contract.
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
        // SAFETY: ids of this function, and static strings.
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
