//! Hooks through which SPDK's NVMe driver reports why a connection attempt failed
//! (`spdk/changes/include/initiator.h`).

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{LazyLock, Mutex, PoisonError};
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

/// Identifies a controller and its host: address, port, subsystem NQN, source address (empty for any) and host NQN.
type Place = [String; 5];

/// What a hook reports of a controller: a failure, or `None` when it is ready, which makes earlier failures void.
type Report = (Place, Option<Failure>, Instant);

/// Bound of the table: more than the paths that fail at once. When it is reached, all records are dropped.
const KEPT: usize = 1024;

/// Bound of the reports that wait for the app thread: more than the queues that fail between two of its checks. Further
/// reports are dropped.
const WAITING: usize = 1024;

/// One attempt may report several failures in quick succession, of which the first is the cause. A report later than
/// this after the previous one belongs to a new attempt.
const ONE_ATTEMPT: Duration = Duration::from_secs(1);

/// The failures of all controllers. Hooks run on the thread of the queue that fails, and put their reports into a
/// bounded queue without waiting; readers, which run on the app thread, move them to the table.
struct Failures {
    reports: SyncSender<Box<Report>>,
    /// Locked by readers alone.
    table: Mutex<Table>,
}

struct Table {
    reports: Receiver<Box<Report>>,
    /// The last failure of each controller, and when it was last reported.
    last: BTreeMap<Place, (Failure, Instant)>,
}

impl Failures {
    fn new() -> Self {
        let (reports, received) = sync_channel(WAITING);
        let table = Mutex::new(Table {
            reports: received,
            last: BTreeMap::new(),
        });
        Self { reports, table }
    }

    /// Reports a failure, or that the controller is ready; callable on any thread, never waits for another one.
    fn report(&self, place: Place, failure: Option<Failure>, now: Instant) {
        // A full queue means that nobody has asked for a reason for a long time.
        let _ = self.reports.try_send(Box::new((place, failure, now)));
    }

    /// Calls `read` with the table, once it has all reports.
    fn with<T>(&self, read: impl FnOnce(&mut BTreeMap<Place, (Failure, Instant)>) -> T) -> T {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Table { reports, last } = &mut *table;
        for report in reports.try_iter() {
            match *report {
                (place, Some(failure), now) => note(last, place, failure, now),
                (place, None, _) => drop(last.remove(&place)),
            }
        }
        read(last)
    }

    /// See [`failure`].
    fn get(&self, place: &Place) -> Option<Failure> {
        self.with(|last| last.get(place).map(|(failure, _)| *failure))
    }

    /// See [`take_failure`].
    fn take(&self, mut place: Place, hostnqn: Option<&str>) -> Option<Failure> {
        if let Some(hostnqn) = hostnqn {
            hostnqn.clone_into(&mut place[HOST]);
        }
        self.with(|last| {
            let (found, _) = last.range(place.clone()..).next()?;
            let is_it = match hostnqn {
                Some(_) => *found == place,
                None => found[..HOST] == place[..HOST],
            };
            let found = found.clone();
            let taken = if is_it { last.remove(&found) } else { None };
            taken.map(|(failure, _)| failure)
        })
    }
}

/// Index of the host NQN in a [`Place`], its last part: a range begins with an empty one.
const HOST: usize = 4;

static FAILURES: LazyLock<Failures> = LazyLock::new(Failures::new);

fn place(id: &sys::spdk_nvme_transport_id, source: &CStr, hostnqn: &str) -> Place {
    [
        read(&id.traddr),
        read(&id.trsvcid),
        read(&id.subnqn),
        source.to_string_lossy().into_owned(),
        hostnqn.to_owned(),
    ]
}

/// Records a failure; only the first failure of an attempt is kept.
fn note(
    last: &mut BTreeMap<Place, (Failure, Instant)>,
    place: Place,
    failure: Failure,
    now: Instant,
) {
    if last.len() >= KEPT {
        last.clear();
    }
    let (noted, when) = last.entry(place).or_insert((failure, now));
    if now.saturating_duration_since(*when) > ONE_ATTEMPT {
        *noted = failure;
    }
    // Reports in quick succession belong to the same attempt.
    *when = now;
}

/// Returns why the last attempt to connect this controller from this source address (empty for any) failed, if known.
/// App thread.
pub(crate) fn failure(
    id: &sys::spdk_nvme_transport_id,
    source: &CStr,
    hostnqn: &str,
) -> Option<Failure> {
    FAILURES.get(&place(id, source, hostnqn))
}

/// Returns what [`failure`] does and forgets it. Without a host NQN (SPDK generates it) any host's failure matches.
/// App thread.
pub(crate) fn take_failure(
    id: &sys::spdk_nvme_transport_id,
    source: &CStr,
    hostnqn: Option<&str>,
) -> Option<Failure> {
    FAILURES.take(place(id, source, ""), hostnqn)
}

/// Records a failure, or that the controller is ready, from the arguments that SPDK passes to each hook.
///
/// # Safety
/// `id` is valid for reads, and `source` and `hostnqn` are NUL-terminated strings.
unsafe fn report(
    id: *const sys::spdk_nvme_transport_id,
    source: *const c_char,
    hostnqn: *const c_char,
    failure: impl Into<Option<Failure>>,
) {
    // SAFETY: by the caller's contract `id` is valid for reads and the strings are NUL-terminated, all during this
    // call.
    let place = unsafe { place(&*id, CStr::from_ptr(source), &string(hostnqn)) };
    FAILURES.report(place, failure.into(), Instant::now());
}

/// Records that a socket could not be connected.
///
/// # Safety
/// `id` is valid for reads, `source` and `hostnqn` are NUL-terminated strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_unreachable(
    id: *const sys::spdk_nvme_transport_id,
    source: *const c_char,
    hostnqn: *const c_char,
    errno: c_int,
) {
    // SAFETY: passes on the caller's contract.
    unsafe { report(id, source, hostnqn, Failure::Unreachable(errno)) };
}

/// Records the status with which a peer refused Connect.
///
/// # Safety
/// `id` is valid for reads, `source` and `hostnqn` are NUL-terminated strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_connect_refused(
    id: *const sys::spdk_nvme_transport_id,
    source: *const c_char,
    hostnqn: *const c_char,
    sct: u8,
    sc: u8,
) {
    // SAFETY: passes on the caller's contract.
    unsafe { report(id, source, hostnqn, Failure::Refused(sct, sc)) };
}

/// Records that a peer sent invalid data, and why it is invalid.
///
/// # Safety
/// `id` is valid for reads, `source` and `hostnqn` are NUL-terminated strings, `reason` one of the gate's static strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_connect_failed(
    id: *const sys::spdk_nvme_transport_id,
    source: *const c_char,
    hostnqn: *const c_char,
    reason: *const c_char,
) {
    // SAFETY: passes on the caller's contract; `reason` is a NUL-terminated string of static lifetime by it.
    unsafe {
        report(
            id,
            source,
            hostnqn,
            Failure::Nonsense(CStr::from_ptr(reason)),
        )
    };
}

/// Records why DH-HMAC-CHAP failed: on the peer's side (`by_peer`) or on this side.
///
/// # Safety
/// `id` is valid for reads, `source` and `hostnqn` are NUL-terminated strings, `reason` one of SPDK's static strings or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_auth_failed(
    id: *const sys::spdk_nvme_transport_id,
    source: *const c_char,
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
    unsafe { report(id, source, hostnqn, failure) };
}

/// Records the initialization state in which a controller was given up; NULL if its connection was lost.
///
/// # Safety
/// `id` is valid for reads, `source` and `hostnqn` are NUL-terminated strings, `state` one of SPDK's static strings or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_stuck(
    id: *const sys::spdk_nvme_transport_id,
    source: *const c_char,
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
    unsafe { report(id, source, hostnqn, failure) };
}

/// Forgets the failures of a controller that is ready now.
///
/// # Safety
/// `id` is valid for reads, `source` and `hostnqn` are NUL-terminated strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_ready(
    id: *const sys::spdk_nvme_transport_id,
    source: *const c_char,
    hostnqn: *const c_char,
) {
    // SAFETY: passes on the caller's contract.
    unsafe { report(id, source, hostnqn, None) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport_id::{Kind, ip};

    const NQN: &CStr = c"nqn.2022-09.io.spdk:host";
    const REFUSED: Failure = Failure::Unreachable(libc::ECONNREFUSED);

    #[test]
    fn the_first_failure_of_an_attempt_is_told_until_it_is_ready_and_of_each_host_its_own() {
        let id = |port| ip(Kind::Tcp, [127, 0, 0, 1].into(), port).expect("an id");
        let host = NQN.to_str().expect("UTF-8");
        let (one, other) = (id(4420), id(4421));
        let (any, nqn) = (c"".as_ptr(), NQN.as_ptr());
        // SAFETY: the IDs are locals of this function, and the strings are static.
        unsafe {
            opi_initiator_connect_refused(&one, any, nqn, 1, 0x84);
            opi_initiator_connect_failed(&one, any, nqn, c"nonsense".as_ptr());
            opi_initiator_stuck(&one, any, nqn, std::ptr::null());
            opi_initiator_unreachable(&other, any, nqn, libc::ECONNREFUSED);
        }
        assert_eq!(failure(&other, c"", host), Some(REFUSED));
        assert_eq!(failure(&other, c"", "nqn.another"), None);
        assert_eq!(take_failure(&other, c"", Some(host)), Some(REFUSED));
        assert_eq!(failure(&other, c"", host), None);
        let refused = Some(Failure::Refused(1, 0x84));
        assert_eq!(take_failure(&one, c"", Some(host)), refused);
        assert_eq!(take_failure(&one, c"", Some(host)), None);
        // SAFETY: as above.
        unsafe {
            opi_initiator_unreachable(&other, any, nqn, libc::ECONNREFUSED);
            opi_initiator_ready(&other, any, nqn);
        }
        assert_eq!(failure(&other, c"", host), None);
        // SAFETY: as above.
        unsafe { opi_initiator_stuck(&other, any, nqn, c"enable".as_ptr()) };
        let stuck = Some(Failure::Stuck(c"enable"));
        assert_eq!(take_failure(&other, c"", Some(host)), stuck);
    }

    #[test]
    fn a_queue_of_another_thread_reports_for_its_own_source_address() {
        let id = ip(Kind::Tcp, [127, 0, 0, 1].into(), 4423).expect("an id");
        let host = NQN.to_str().expect("UTF-8");
        let (from, reason) = (c"127.0.0.2", c"authentication failed");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (from, nqn) = (from.as_ptr(), NQN.as_ptr());
                // SAFETY: the ID outlives the scope, and the strings are static.
                unsafe { opi_initiator_auth_failed(&id, from, nqn, true, reason.as_ptr()) };
            });
        });
        assert_eq!(failure(&id, c"", host), None);
        assert_eq!(take_failure(&id, c"127.0.0.3", None), None);
        let rejected = Some(Failure::Rejected(Some(reason)));
        assert_eq!(failure(&id, from, host), rejected);
        assert_eq!(take_failure(&id, from, None), rejected);
    }

    #[test]
    fn a_later_attempt_takes_the_place_of_an_earlier_one() {
        let id = ip(Kind::Tcp, [127, 0, 0, 1].into(), 4422).expect("an id");
        let failures = Failures::new();
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let of = |failure, now| failures.report(place(&id, c"", "h"), Some(failure), now);
        let taken = || failures.take(place(&id, c"", ""), None);
        of(REFUSED, at(0));
        of(Failure::Ended, at(10));
        assert_eq!(failures.get(&place(&id, c"", "h")), Some(REFUSED));
        of(Failure::Refused(1, 0x84), at(2000));
        of(Failure::Ended, at(2010));
        assert_eq!(taken(), Some(Failure::Refused(1, 0x84)));
        assert_eq!(taken(), None);
    }

    #[test]
    fn what_nobody_asks_for_is_bounded() {
        let id = ip(Kind::Tcp, [127, 0, 0, 1].into(), 4424).expect("an id");
        let failures = Failures::new();
        let of = |host: usize| place(&id, c"", &host.to_string());
        for host in 0..WAITING + 10 {
            failures.report(of(host), Some(Failure::Ended), Instant::now());
        }
        assert_eq!(failures.get(&of(0)), Some(Failure::Ended));
        assert_eq!(failures.get(&of(WAITING)), None);
        failures.report(of(WAITING), Some(Failure::Ended), Instant::now());
        assert_eq!(failures.get(&of(WAITING)), Some(Failure::Ended));
        assert_eq!(failures.get(&of(0)), None);
    }
}
