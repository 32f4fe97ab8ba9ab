//! Reservations of namespaces that the program keeps: `spdk/changes/include/fabrics.h`. They are called for
//! commands that change reservations, which are rare, on the app thread: unlike other hooks they allocate.

use std::ffi::{CStr, c_char, c_int, c_void};

use spdk_sys as sys;

use crate::nvmf::reservation::{self, KEPT};

/// The name under which they are kept.
///
/// # Safety
/// `name` is null or a terminated string that stays for `'a`.
unsafe fn kept<'a>(name: *const c_char) -> Option<&'a str> {
    if name.is_null() {
        return None;
    }
    // SAFETY: the caller's contract.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_str().ok()?.strip_prefix(KEPT)
}

/// # Safety
/// On the app thread; `name` is a terminated string, `bdev` a UUID, and `info` all zero and nobody else's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_reservation_load(
    name: *const c_char,
    bdev: *const sys::spdk_uuid,
    info: *mut sys::spdk_nvmf_reservation_info,
) -> c_int {
    // SAFETY: the caller's contract.
    let (name, bdev, info) = unsafe { (kept(name), bdev.as_ref(), info.as_mut()) };
    let (Some(name), Some(bdev), Some(info)) = (name, bdev, info) else {
        return -libc::EINVAL;
    };
    // SAFETY: all views of a UUID are the same bytes.
    let bdev = hyphenated(unsafe { &bdev.u.raw });
    reservation::load(name, &bdev, info);
    0
}

/// # Safety
/// On the app thread; `name` is a terminated string and `info` points to what SPDK has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_reservation_save(
    name: *const c_char,
    info: *const sys::spdk_nvmf_reservation_info,
) -> c_int {
    // SAFETY: the caller's contract.
    match unsafe { (kept(name), info.as_ref()) } {
        (Some(name), Some(info)) => reservation::save(name, info),
        _ => -libc::EINVAL,
    }
}

/// # Safety
/// On the app thread; `name` is a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_reservation_is_unsaved(name: *const c_char) -> bool {
    // SAFETY: the caller's contract.
    unsafe { kept(name) }.is_some_and(reservation::is_unsaved)
}

/// # Safety
/// On the app thread; `name` is a terminated string, and `saved` may be called once with `argument`, later and on
/// the same thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_reservation_wait(
    name: *const c_char,
    saved: Option<unsafe extern "C" fn(*mut c_void, c_int)>,
    argument: *mut c_void,
) -> bool {
    // SAFETY: the caller's contract.
    match (unsafe { kept(name) }, saved) {
        (Some(name), Some(saved)) => reservation::wait(name, saved, argument),
        _ => false,
    }
}

/// A UUID as SPDK writes it.
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
        // SAFETY: terminated strings, and null.
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
