//! Hooks for reservations that the program persists: `spdk/changes/include/fabrics.h`. SPDK calls them on the app
//! thread for commands that change reservations. Such commands are rare, so unlike hooks on an I/O path these
//! allocate.

use std::ffi::{CStr, c_char, c_int, c_void};

use spdk_sys as sys;

use crate::nvmf::reservation::{self, KEPT};

/// Returns the name under which the reservations are persisted.
///
/// # Safety
/// `name` is null, or a NUL-terminated string that stays valid for `'a`.
unsafe fn kept<'a>(name: *const c_char) -> Option<&'a str> {
    if name.is_null() {
        return None;
    }
    // SAFETY: not null, and by the caller's contract NUL-terminated and valid for `'a`.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_str().ok()?.strip_prefix(KEPT)
}

/// # Safety
/// Runs on the app thread; `name` is null or a NUL-terminated string, `bdev` is null or a UUID, and `info` is null,
/// or all zero and accessed by nobody else.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_reservation_load(
    name: *const c_char,
    bdev: *const sys::spdk_uuid,
    info: *mut sys::spdk_nvmf_reservation_info,
) -> c_int {
    // SAFETY: by the caller's contract each is null or valid, and `info` exclusively accessed here.
    let (name, bdev, info) = unsafe { (kept(name), bdev.as_ref(), info.as_mut()) };
    let (Some(name), Some(bdev), Some(info)) = (name, bdev, info) else {
        return -libc::EINVAL;
    };
    // SAFETY: all members of the union are views of the same 16 initialized bytes.
    let bdev = hyphenated(unsafe { &bdev.u.raw });
    reservation::load(name, &bdev, info);
    0
}

/// # Safety
/// Runs on the app thread; `name` is null or a NUL-terminated string, `info` is null or valid for reads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_reservation_save(
    name: *const c_char,
    info: *const sys::spdk_nvmf_reservation_info,
) -> c_int {
    // SAFETY: by the caller's contract each is null or valid for reads during this call.
    match unsafe { (kept(name), info.as_ref()) } {
        (Some(name), Some(info)) => reservation::save(name, info),
        _ => -libc::EINVAL,
    }
}

/// # Safety
/// Runs on the app thread; `name` is null or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_reservation_is_unsaved(name: *const c_char) -> bool {
    // SAFETY: by the caller's contract `name` is null or NUL-terminated.
    unsafe { kept(name) }.is_some_and(reservation::is_unsaved)
}

/// # Safety
/// Runs on the app thread; `name` is null or a NUL-terminated string. `saved` may be called with `argument` once,
/// later, on the same thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_reservation_wait(
    name: *const c_char,
    saved: Option<unsafe extern "C" fn(*mut c_void, c_int)>,
    argument: *mut c_void,
) -> bool {
    // SAFETY: by the caller's contract `name` is null or NUL-terminated.
    match (unsafe { kept(name) }, saved) {
        (Some(name), Some(saved)) => reservation::wait(name, saved, argument),
        _ => false,
    }
}

/// Formats a UUID as SPDK does, hyphenated and in lower case.
fn hyphenated(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_header_s_beginning() {
        let header = include_str!("../../changes/include/fabrics.h");
        assert!(header.contains(&format!("#define OPI_RESERVATION_KEPT \"{KEPT}\"")));
        // SAFETY: NUL-terminated strings, and null.
        unsafe {
            assert_eq!(kept(c"opi:a".as_ptr()), Some("a"));
            assert_eq!(kept(c"/a".as_ptr()), None);
            assert_eq!(kept(std::ptr::null()), None);
        }
    }

    #[test]
    fn a_uuid_is_written_as_spdk_writes_it() {
        let bytes = std::array::from_fn(|at| u8::try_from(at).unwrap_or_default() | 0xa0);
        assert_eq!(hyphenated(&bytes), "a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf");
    }
}
