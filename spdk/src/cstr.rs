//! Conversion of strings to and from C.

use std::ffi::{CStr, CString, c_char};

use crate::error::Error;

/// Converts `value` for C. EINVAL for a NUL byte in `value`; the error names `field` and its position.
pub(crate) fn cstr(field: &'static str, value: &str) -> Result<CString, Error> {
    CString::new(value).map_err(|error| {
        Error::new("pass a string to SPDK", libc::EINVAL).with_detail(format!(
            "{field} {value:?} has a NUL byte at {}",
            error.nul_position()
        ))
    })
}

/// Copies a C string; a null pointer gives the empty string.
///
/// # Safety
/// `text` is null, or points to a NUL-terminated string that stays valid and unchanged during the call.
pub(crate) unsafe fn string(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: `text` is not null, and by the caller's contract NUL-terminated and valid during this call.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

/// Copies `value` into a C array, NUL-terminated and padded with zeros. EINVAL if `value` is too long or contains a
/// NUL byte.
pub(crate) fn fill(field: &'static str, array: &mut [c_char], value: &str) -> Result<(), Error> {
    let bytes = value.as_bytes();
    if bytes.len() >= array.len() || bytes.contains(&0) {
        return Err(
            Error::new("pass a string to SPDK", libc::EINVAL).with_detail(format!(
                "{field} {value:?} must have at most {} bytes and no NUL byte",
                array.len().saturating_sub(1)
            )),
        );
    }
    array.fill(0);
    for (to, from) in array.iter_mut().zip(bytes) {
        *to = char_of(*from);
    }
    Ok(())
}

/// Converts a byte to C's char, which is signed on x86 and unsigned on ARM.
pub(crate) fn char_of(byte: u8) -> c_char {
    c_char::from_ne_bytes([byte])
}

/// Reads a C array up to its NUL terminator.
pub(crate) fn read(array: &[c_char]) -> String {
    let bytes: Vec<u8> = array
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| u8::from_ne_bytes(byte.to_ne_bytes()))
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_byte_is_refused_with_its_place() {
        let error = cstr("name", "a\0b").expect_err("a NUL byte");
        assert_eq!(error.errno.0, libc::EINVAL);
        assert!(
            error
                .to_string()
                .contains("name \"a\\0b\" has a NUL byte at 1")
        );
    }

    #[test]
    fn an_array_comes_back_as_it_was_filled() {
        let mut array: [c_char; 6] = [1; 6];
        fill("field", &mut array, "früh").expect("it fits, with its terminator");
        assert_eq!(read(&array), "früh");
        assert!(fill("field", &mut array, "früher").is_err());
    }
}
