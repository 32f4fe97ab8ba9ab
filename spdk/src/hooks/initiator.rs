//! Hooks through which SPDK's NVMe driver validates what a peer sends (`spdk/changes/include/initiator.h`).

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use spdk_gate::nvme_identify::{self as identify, IDENTIFY_LEN, List};
use spdk_gate::nvme_tcp_initiator::{self as gate, Digests, Refusal, Transfer};

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

/// Returns NULL for an accepted PDU, else the reason, with the TermReq's status in `fes`.
///
/// # Safety
/// `fes` is valid for writes.
unsafe fn verdict(verdict: Result<(), Refusal>, fes: *mut u8) -> *const c_char {
    match verdict {
        Ok(()) => ptr::null(),
        Err(Refusal { fatal, reason }) => {
            // SAFETY: by the caller's contract `fes` is valid for writes.
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

/// Validates the common header of a PDU.
///
/// # Safety
/// `fes` is valid for writes.
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
    // SAFETY: passes on the caller's contract for `fes`.
    unsafe { verdict(gate::header(header, digests), fes) }
}

/// Validates an ICResp.
///
/// # Safety
/// `fes` is valid for writes.
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
    // SAFETY: passes on the caller's contract for `fes`.
    unsafe {
        verdict(
            gate::ic_resp(answer, digests(asked_hdgst, asked_ddgst)),
            fes,
        )
    }
}

/// Validates an R2T for this part of a command's data.
///
/// # Safety
/// `command` is valid for reads, `fes` for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_r2t(
    command: *const Command,
    offset: u32,
    length: u32,
    fes: *mut u8,
) -> *const c_char {
    // SAFETY: by the caller's contract `command` is valid for reads and `fes` for writes.
    unsafe { verdict(gate::r2t(&(*command).for_gate(), offset, length), fes) }
}

/// Validates a C2HData with this part of a command's data.
///
/// # Safety
/// `command` is valid for reads, `fes` for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_c2h_data(
    command: *const Command,
    offset: u32,
    length: u32,
    flags: u8,
    room: u32,
    fes: *mut u8,
) -> *const c_char {
    // SAFETY: by the caller's contract `command` is valid for reads.
    let command = unsafe { (*command).for_gate() };
    // SAFETY: passes on the caller's contract for `fes`.
    unsafe { verdict(gate::c2h_data(&command, offset, length, flags, room), fes) }
}

/// Validates the response of a command.
///
/// # Safety
/// `command` is valid for reads, `fes` for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_response(
    command: *const Command,
    success: bool,
    fes: *mut u8,
) -> *const c_char {
    // SAFETY: by the caller's contract `command` is valid for reads and `fes` for writes.
    unsafe { verdict(gate::response(&(*command).for_gate(), success), fes) }
}

/// Sanitizes Identify Controller data.
///
/// # Safety
/// `data` points to 4096 initialized bytes, which nobody else accesses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_identify_ctrlr(
    data: *mut c_void,
    page_shift: u32,
    lists: bool,
) -> *const c_char {
    // SAFETY: by the caller's contract 4096 initialized bytes with exclusive access.
    let data = unsafe { &mut *data.cast::<[u8; IDENTIFY_LEN]>() };
    reason(identify::controller(data, page_shift, lists))
}

/// Sanitizes Identify Namespace data.
///
/// # Safety
/// `data` points to 4096 initialized bytes, which nobody else accesses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_identify_ns(
    data: *mut c_void,
    max_transfer: u32,
) -> *const c_char {
    // SAFETY: by the caller's contract 4096 initialized bytes with exclusive access.
    let data = unsafe { &mut *data.cast::<[u8; IDENTIFY_LEN]>() };
    reason(identify::namespace(data, max_transfer).map(|_| ()))
}

/// Validates the pages read so far of a list of active namespaces.
///
/// # Safety
/// `list` has `entries` initialized entries, `next` is valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_initiator_active_list(
    list: *const u32,
    entries: u32,
    highest: u32,
    next: *mut u32,
) -> *const c_char {
    // SAFETY: by the caller's contract `list` has `entries` initialized entries.
    let pages = unsafe { std::slice::from_raw_parts(list, entries as usize) };
    match identify::active_list(pages, highest) {
        Ok(list) => {
            let last = match list {
                List::Ends(_) => 0,
                List::GoesOn(last) => last,
            };
            // SAFETY: by the caller's contract `next` is valid for writes.
            unsafe { *next = last };
            ptr::null()
        }
        Err(reason) => reason.as_ptr(),
    }
}

/// Checks a controller's smallest page (CAP.MPSMIN).
#[unsafe(no_mangle)]
pub extern "C" fn opi_initiator_smallest_page(mpsmin: u32) -> *const c_char {
    reason(identify::smallest_page(mpsmin))
}

/// Returns the keep alive timeout to use, in milliseconds.
#[unsafe(no_mangle)]
pub extern "C" fn opi_initiator_keep_alive(answered_ms: u32, wanted_ms: u32) -> u32 {
    identify::keep_alive(answered_ms, wanted_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        // SAFETY: all pointers are to locals of this function.
        unsafe {
            assert!(opi_initiator_r2t(&write, 512, 512, &mut fes).is_null());
            let refused = opi_initiator_r2t(&write, 512, 0xffff_fe00, &mut fes);
            assert!(!refused.is_null());
        }
        assert_eq!(fes, 4);
    }
}
