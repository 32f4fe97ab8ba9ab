//! The hooks of SPDK's NVMe driver, which asks before it believes a peer
//! (`spdk/changes/include/initiator.h`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use spdk_gate::nvme_identify::{self as identify, IDENTIFY_LEN, List};
use spdk_gate::nvme_tcp_initiator::{self as gate, Digests, Refusal, Transfer};
use spdk_sys as sys;

use crate::cstr::read;

/// `struct opi_initiator_command`.
#[repr(C)]
pub struct Command {
    requested: u64,
    received: u64,
    size: u32,
    opcode: u8,
    transfer: u8,
    admin: bool,
    in_capsule: bool,
    r2t_waits: bool,
    ended: bool,
}

impl Command {
    fn for_gate(&self) -> gate::Command {
        gate::Command {
            admin: self.admin,
            opcode: self.opcode,
            transfer: Transfer::of(self.transfer),
            size: self.size,
            in_capsule: self.in_capsule,
            requested: self.requested,
            received: self.received,
            r2t_waits: self.r2t_waits,
            ended: self.ended,
        }
    }
}

/// NULL for a PDU that is taken, else the reason, with the TermReq's status in `fes`.
///
/// # Safety
/// `fes` can be written to.
unsafe fn verdict(verdict: Result<(), Refusal>, fes: *mut u8) -> *const c_char {
    match verdict {
        Ok(()) => ptr::null(),
        Err(Refusal { fatal, reason }) => {
            // SAFETY: the caller's contract.
            unsafe { *fes = fatal as u8 };
            reason.as_ptr()
        }
    }
}

fn reason(result: Result<(), &'static CStr>) -> *const c_char {
    match result {
        Ok(()) => ptr::null(),
        Err(reason) => reason.as_ptr(),
    }
}

/// Whether a PDU with this header may come.
///
/// # Safety
/// `fes` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_header(
    kind: u8,
    flags: u8,
    hlen: u8,
    pdo: u8,
    plen: u32,
    hdgst: bool,
    ddgst: bool,
    fes: *mut u8,
) -> *const c_char {
    let header = gate::Header {
        kind,
        flags,
        hlen,
        pdo,
        plen,
    };
    let digests = Digests {
        header: hdgst,
        data: ddgst,
    };
    // SAFETY: the caller's contract.
    unsafe { verdict(gate::header(header, digests), fes) }
}

/// Whether a connection may be opened so.
///
/// # Safety
/// `fes` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_ic_resp(
    pfv: u16,
    cpda: u8,
    maxh2cdata: u32,
    hdgst: bool,
    ddgst: bool,
    asked_hdgst: bool,
    asked_ddgst: bool,
    fes: *mut u8,
) -> *const c_char {
    let digests = |header, data| Digests { header, data };
    let answer = gate::IcResp {
        pfv,
        cpda,
        digests: digests(hdgst, ddgst),
        maxh2cdata,
    };
    // SAFETY: the caller's contract.
    unsafe {
        verdict(
            gate::ic_resp(answer, digests(asked_hdgst, asked_ddgst)),
            fes,
        )
    }
}

/// Whether the peer may ask for this part of a command's data.
///
/// # Safety
/// `command` can be read, `fes` written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_r2t(
    command: *const Command,
    offset: u32,
    length: u32,
    fes: *mut u8,
) -> *const c_char {
    // SAFETY: the caller's contract.
    unsafe { verdict(gate::r2t(&(*command).for_gate(), offset, length), fes) }
}

/// Whether the peer may send this part of a command's data.
///
/// # Safety
/// `command` can be read, `fes` written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_c2h_data(
    command: *const Command,
    offset: u32,
    length: u32,
    flags: u8,
    room: u32,
    fes: *mut u8,
) -> *const c_char {
    // SAFETY: the caller's contract.
    let command = unsafe { (*command).for_gate() };
    // SAFETY: the caller's contract.
    unsafe { verdict(gate::c2h_data(&command, offset, length, flags, room), fes) }
}

/// Whether a command may end now.
///
/// # Safety
/// `command` can be read, `fes` written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_response(
    command: *const Command,
    success: bool,
    fes: *mut u8,
) -> *const c_char {
    // SAFETY: the caller's contract.
    unsafe { verdict(gate::response(&(*command).for_gate(), success), fes) }
}

/// Makes a controller's identify data sane.
///
/// # Safety
/// `data` has 4096 bytes, which nobody else uses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_identify_ctrlr(
    data: *mut c_void,
    page_shift: u32,
    lists: bool,
) -> *const c_char {
    // SAFETY: the caller's contract.
    let data = unsafe { &mut *data.cast::<[u8; IDENTIFY_LEN]>() };
    reason(identify::controller(data, page_shift, lists))
}

/// Makes a namespace's identify data sane.
///
/// # Safety
/// `data` has 4096 bytes, which nobody else uses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_identify_ns(
    data: *mut c_void,
    max_transfer: u32,
) -> *const c_char {
    // SAFETY: the caller's contract.
    let data = unsafe { &mut *data.cast::<[u8; IDENTIFY_LEN]>() };
    reason(identify::namespace(data, max_transfer).map(|_| ()))
}

/// Reads what has come of a list of active namespaces.
///
/// # Safety
/// `list` has so many entries, `next` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_active_list(
    list: *const u32,
    entries: u32,
    highest: u32,
    next: *mut u32,
) -> *const c_char {
    // SAFETY: the caller's contract.
    let pages = unsafe { std::slice::from_raw_parts(list, entries as usize) };
    match identify::active_list(pages, highest) {
        Ok(list) => {
            let last = match list {
                List::Ends(_) => 0,
                List::GoesOn(last) => last,
            };
            // SAFETY: the caller's contract.
            unsafe { *next = last };
            ptr::null()
        }
        Err(reason) => reason.as_ptr(),
    }
}

/// Whether a controller may have such a smallest page.
#[unsafe(no_mangle)]
pub extern "C" fn opi_initiator_smallest_page(mpsmin: u32) -> *const c_char {
    reason(identify::smallest_page(mpsmin))
}

/// The keep alive time that is used, in milliseconds.
#[unsafe(no_mangle)]
pub extern "C" fn opi_initiator_keep_alive(answered_ms: u32, wanted_ms: u32) -> u32 {
    identify::keep_alive(answered_ms, wanted_ms)
}

/// Why a controller could not be connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The socket could not be connected: errno.
    Unreachable(c_int),
    /// Its peer answered Connect with this status (status code type, status code).
    Refused(u8, u8),
    /// What the peer sent that cannot be.
    Nonsense(&'static CStr),
}

/// Where a controller is: address, port, subsystem.
type Place = [String; 3];

/// Controllers whose failures are kept: more than there are paths that fail at once. Beyond it all begin anew.
const KEPT: usize = 1024;

thread_local! {
    /// Why each controller could not be connected. On the app thread, where all are connected.
    static FAILURES: RefCell<BTreeMap<Place, Failure>> = const { RefCell::new(BTreeMap::new()) };
}

fn place(id: &sys::spdk_nvme_transport_id) -> Place {
    [read(&id.traddr), read(&id.trsvcid), read(&id.subnqn)]
}

/// Notes a failure; the first since [`take_failure`] is the one that counts.
fn note(id: *const sys::spdk_nvme_transport_id, failure: Failure) {
    // SAFETY: SPDK passes the id of the controller that it connects, which stays during the call.
    let place = place(unsafe { &*id });
    FAILURES.with_borrow_mut(|failures| {
        if failures.len() >= KEPT {
            failures.clear();
        }
        failures.entry(place).or_insert(failure);
    });
}

/// Why connecting this controller has failed since [`take_failure`], as far as is known.
pub(crate) fn failure(id: &sys::spdk_nvme_transport_id) -> Option<Failure> {
    FAILURES.with_borrow(|failures| failures.get(&place(id)).copied())
}

/// The same, and forgets it.
pub(crate) fn take_failure(id: &sys::spdk_nvme_transport_id) -> Option<Failure> {
    FAILURES.with_borrow_mut(|failures| failures.remove(&place(id)))
}

/// Notes that a socket could not be connected.
///
/// # Safety
/// `id` can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_unreachable(
    id: *const sys::spdk_nvme_transport_id,
    errno: c_int,
) {
    note(id, Failure::Unreachable(errno));
}

/// Notes with which status a peer refused Connect.
///
/// # Safety
/// `id` can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_connect_refused(
    id: *const sys::spdk_nvme_transport_id,
    sct: u8,
    sc: u8,
) {
    note(id, Failure::Refused(sct, sc));
}

/// Notes what a peer sent that cannot be.
///
/// # Safety
/// `id` can be read, `reason` is a static string of a gate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_connect_failed(
    id: *const sys::spdk_nvme_transport_id,
    reason: *const c_char,
) {
    // SAFETY: the caller's contract.
    note(id, Failure::Nonsense(unsafe { CStr::from_ptr(reason) }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport_id::{Kind, ip};

    #[test]
    fn the_first_failure_of_a_controller_is_told_once() {
        let id = |port| ip(Kind::Tcp, [127, 0, 0, 1].into(), port).expect("an id");
        let (one, other) = (id(4420), id(4421));
        // SAFETY: ids of this function, and static strings.
        unsafe {
            opi_initiator_connect_refused(&one, 1, 0x84);
            opi_initiator_connect_failed(&one, c"nonsense".as_ptr());
            opi_initiator_unreachable(&other, libc::ECONNREFUSED);
        }
        let refused = Some(Failure::Unreachable(libc::ECONNREFUSED));
        assert_eq!(failure(&other), refused);
        assert_eq!(take_failure(&other), refused);
        assert_eq!(failure(&other), None);
        assert_eq!(take_failure(&one), Some(Failure::Refused(1, 0x84)));
        assert_eq!(take_failure(&one), None);
        // SAFETY: as above.
        unsafe { opi_initiator_connect_failed(&other, c"nonsense".as_ptr()) };
        assert_eq!(take_failure(&other), Some(Failure::Nonsense(c"nonsense")));
    }

    #[test]
    fn a_refusal_has_a_reason_and_a_status_for_the_peer() {
        let write = Command {
            requested: 512,
            received: 0,
            size: 1024,
            opcode: 1,
            transfer: 1,
            admin: false,
            in_capsule: false,
            r2t_waits: false,
            ended: false,
        };
        let mut fes = 0;
        // SAFETY: what is passed is of this function.
        unsafe {
            assert!(opi_initiator_r2t(&write, 512, 512, &mut fes).is_null());
            let refused = opi_initiator_r2t(&write, 512, 0xffff_fe00, &mut fes);
            assert!(!refused.is_null());
        }
        assert_eq!(fes, 4);
    }
}
