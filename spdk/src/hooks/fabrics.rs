//! Hooks of NVMe over Fabrics above the transport: `spdk/changes/include/fabrics.h`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;

use spdk_gate::fabrics::{self, Command, Connect, Fault, Queue, Turn};
use spdk_sys as sys;

use crate::nvmf::{Reason, comings, refusals, view};

/// Values of `enum opi_connect_fault`.
const RIGHT: c_int = 0;
const LENGTH: c_int = 1;
const HOSTID: c_int = 2;
const SUBNQN: c_int = 3;
const HOSTNQN: c_int = 4;

/// `OPI_NO_TURN`.
const NO_TURN: u64 = u64::MAX;

/// Offset of dword 10 in a submission queue entry.
const CDW10: usize = 40;
const ENTRY: usize = 64;

/// Borrows `length` bytes of C; empty for null.
///
/// # Safety
/// `data` is null, or points to `length` initialized bytes that nobody modifies during `'a`.
unsafe fn bytes<'a>(data: *const c_void, length: usize) -> &'a [u8] {
    if data.is_null() || length > isize::MAX.unsigned_abs() {
        return &[];
    }
    // SAFETY: not null, `length` fits isize, and by the caller's contract the bytes are initialized and unmodified
    // for `'a`.
    unsafe { std::slice::from_raw_parts(data.cast(), length) }
}

/// # Safety
/// `data` is null or points to `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_gate_connect(data: *const c_void, length: usize) -> c_int {
    // SAFETY: by the caller's contract; SPDK owns the request's buffer until it completes the request, after this
    // call.
    match Connect::parse(unsafe { bytes(data, length) }) {
        Ok(_) => RIGHT,
        Err(Fault::Length) => LENGTH,
        Err(Fault::HostId) => HOSTID,
        Err(Fault::SubNqn) => SUBNQN,
        Err(Fault::HostNqn) => HOSTNQN,
    }
}

/// # Safety
/// `identity` is null or points to `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_gate_psk_identity(identity: *const c_void, length: usize) -> bool {
    // SAFETY: by the caller's contract; OpenSSL keeps the bytes valid during its callback.
    fabrics::is_well_formed(unsafe { bytes(identity, length) })
}

/// # Safety
/// Each of the three is null or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_gate_psk_names(
    identity: *const c_char,
    hostnqn: *const c_char,
    subnqn: *const c_char,
) -> bool {
    if identity.is_null() || hostnqn.is_null() || subnqn.is_null() {
        return false;
    }
    // SAFETY: not null, and by the caller's contract NUL-terminated strings that outlive this call.
    let [identity, hostnqn, subnqn] =
        [identity, hostnqn, subnqn].map(|text| unsafe { CStr::from_ptr(text) }.to_bytes());
    fabrics::names(identity, hostnqn, subnqn)
}

/// `struct opi_tls_binder`.
#[repr(C)]
pub struct Binder {
    covered: usize,
    at: usize,
    length: usize,
}

/// # Safety
/// `hello` is null or points to `length` bytes, `identity` is null or NUL-terminated, `binder` is valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_gate_tls_binder(
    hello: *const c_void,
    length: usize,
    identity: *const c_char,
    binder: *mut Binder,
) -> bool {
    // SAFETY: by the caller's contract; `hello` is this thread's own copy, so nobody modifies it.
    let (hello, identity) = unsafe { (bytes(hello, length), text(identity)) };
    let Some(found) = fabrics::binder_of(hello, identity) else {
        return false;
    };
    let found = Binder {
        covered: found.covered,
        at: found.at,
        length: found.length,
    };
    // SAFETY: by the caller's contract `binder` is valid for writes.
    unsafe { binder.write(found) };
    true
}

/// # Safety
/// `cmd` is null or points to a submission queue entry of 64 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_gate_data_length(
    cmd: *const c_void,
    admin: bool,
    block_size: u32,
    length: u32,
) -> bool {
    // SAFETY: by the caller's contract; the entry is the request's own copy, which the host cannot modify.
    let entry = unsafe { bytes(cmd, ENTRY) };
    let dword = |n: usize| {
        let at = CDW10 + n * 4;
        let bytes = entry.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let (Some(opcode), Some(cdw10), Some(cdw11), Some(cdw12)) =
        (entry.first(), dword(0), dword(1), dword(2))
    else {
        return false;
    };
    let queue = if admin {
        Queue::Admin
    } else {
        Queue::Io { block_size }
    };
    let command = Command {
        opcode: *opcode,
        cdw10,
        cdw11,
        cdw12,
    };
    command.moves(queue, length)
}

/// # Safety
/// Runs on the thread of `qpair`, which has a controller.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_host_connected(_: *mut c_void, qpair: *mut sys::spdk_nvmf_qpair) {
    let mut queue = MaybeUninit::<sys::opi_nvmf_queue>::uninit();
    // SAFETY: by the caller's contract `qpair` has a controller and belongs to this thread; C initializes the whole
    // struct, and its strings live as long as the controller.
    unsafe {
        sys::opi_nvmf_describe_queue(qpair, queue.as_mut_ptr());
        comings::connected(queue.assume_init_ref());
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn opi_host_disconnected(controller: *mut c_void) {
    comings::gone(controller.addr());
}

/// # Safety
/// `text` is null, or a NUL-terminated string that stays valid for `'a`.
unsafe fn text<'a>(text: *const c_char) -> &'a [u8] {
    if text.is_null() {
        return &[];
    }
    // SAFETY: not null, and by the caller's contract NUL-terminated and valid for `'a`.
    unsafe { CStr::from_ptr(text) }.to_bytes()
}

/// # Safety
/// Each string is null or NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_host_refused(
    why: c_int,
    address: *const c_char,
    hostnqn: *const c_char,
    subnqn: *const c_char,
) {
    if let Some(reason) = reason(why) {
        // SAFETY: by the caller's contract; no reference outlives this call.
        let [address, hostnqn, subnqn] = [address, hostnqn, subnqn].map(|it| unsafe { text(it) });
        refusals::tell(reason, address, hostnqn, subnqn);
    }
}

/// # Safety
/// Both strings are null or NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_tls_refused(
    why: c_int,
    address: *const c_char,
    identity: *const c_char,
) {
    if let Some(reason) = reason(why) {
        // SAFETY: by the caller's contract; no reference outlives this call.
        let [address, identity] = [address, identity].map(|it| unsafe { text(it) });
        let (hostnqn, subnqn) = fabrics::nqns(identity);
        refusals::tell(reason, address, hostnqn, subnqn);
    }
}

fn reason(why: c_int) -> Option<Reason> {
    Reason::ALL.get(usize::try_from(why).ok()?).copied()
}

/// # Safety
/// Both strings are null or NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_host_known(address: *const c_char, hostnqn: *const c_char) {
    // SAFETY: by the caller's contract; no reference outlives this call.
    let [address, hostnqn] = [address, hostnqn].map(|it| unsafe { text(it) });
    refusals::known(address, hostnqn);
}

/// # Safety
/// Both strings are null or NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_host_wait(address: *const c_char, hostnqn: *const c_char) -> u64 {
    // SAFETY: by the caller's contract; no reference outlives this call.
    let [address, hostnqn] = [address, hostnqn].map(|it| unsafe { text(it) });
    match refusals::turn(address, hostnqn) {
        Turn::Now => 0,
        Turn::In(wait) => wait,
        Turn::Never => NO_TURN,
    }
}

/// # Safety
/// The string is null or NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_host_still_sees(hostnqn: *const c_char) -> bool {
    // SAFETY: by the caller's contract; no reference outlives this call.
    view::still_sees(unsafe { text(hostnqn) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_from_a_null_pointer() {
        // SAFETY: the contract allows null pointers.
        unsafe {
            assert_eq!(opi_gate_connect(std::ptr::null(), 1024), LENGTH);
            assert!(!opi_gate_psk_identity(std::ptr::null(), 16));
            assert!(!opi_gate_data_length(std::ptr::null(), false, 512, 512));
            let null = std::ptr::null();
            assert!(!opi_gate_psk_names(null, null, null));
        }
    }

    #[test]
    fn a_command_is_read_as_it_is_on_the_wire() {
        let mut read = [0_u8; ENTRY];
        read[0] = 2;
        read[48..52].copy_from_slice(&7_u32.to_le_bytes());
        // SAFETY: points to an entry of 64 bytes.
        let moves =
            |length| unsafe { opi_gate_data_length(read.as_ptr().cast(), false, 512, length) };
        assert!(moves(4096));
        assert!(!moves(8192));
    }

    #[test]
    fn the_header_has_the_gate_s_bounds() {
        let header = include_str!("../../changes/include/fabrics.h");
        let line = format!("#define OPI_PSK_IDENTITY_MAX {}", fabrics::PSK_IDENTITY_MAX);
        assert!(header.contains(&line), "{line}");
    }
}
