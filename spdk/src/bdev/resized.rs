//! Changes of the sizes of bdevs, from the events that SPDK keeps (`spdk/notify.h`).

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use spdk_sys as sys;

use super::lookup;
use crate::app_thread::Spdk;

/// The type of SPDK's event of a changed size; its context is the name of the bdev.
const RESIZE: &CStr = c"bdev_resize";

/// The type of its event of a new bdev.
const REGISTER: &CStr = c"bdev_register";

/// Events read at a time: as many as SPDK keeps.
const MOST: u64 = 1024;

/// Changed sizes since an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resized {
    /// The bdevs with their sizes of now, bytes; one that has gone since is left out.
    pub bdevs: Vec<(String, u64)>,
    /// The number of the event to go on from.
    pub next: u64,
}

/// Reads the events from number `next` on; of more than 1,024 the last ones. Those of a bdev that has gone are not of
/// one that has its name now.
pub fn resized(spdk: Spdk, next: u64) -> Resized {
    let mut found = Resized {
        bdevs: Vec::new(),
        next,
    };
    let context: *mut Resized = &raw mut found;
    // SAFETY: runs on the app thread; the callback is called before this returns, with the context that outlives it.
    unsafe { sys::spdk_notify_foreach_event(next, MOST, Some(on_event), context.cast()) };
    found.bdevs.sort();
    found.bdevs.dedup();
    found.bdevs.retain_mut(|(name, size)| {
        let Ok(Some(info)) = lookup(spdk, name) else {
            return false;
        };
        *size = info.num_blocks.saturating_mul(info.block_size.into());
        true
    });
    found
}

/// Notes one event.
///
/// # Safety
/// `event` is valid during the call, and `found` a [`Resized`] that nobody else uses.
unsafe extern "C" fn on_event(
    number: u64,
    event: *const sys::spdk_notify_event,
    found: *mut c_void,
) -> c_int {
    // SAFETY: by the caller's contract.
    let (event, found) = unsafe { (&*event, &mut *found.cast::<Resized>()) };
    found.next = number.saturating_add(1);
    found.note(&text(&event.type_), text(&event.ctx));
    0
}

impl Resized {
    fn note(&mut self, of: &CStr, bdev: CString) {
        let Ok(bdev) = bdev.into_string() else { return };
        if of == RESIZE {
            self.bdevs.push((bdev, 0));
        } else if of == REGISTER {
            self.bdevs.retain(|(name, _)| *name != bdev);
        }
    }
}

/// Returns the text of an array up to its NUL; empty if it has none.
fn text(array: &[c_char]) -> CString {
    let bytes: Vec<u8> = array.iter().map(|byte| byte.cast_unsigned()).collect();
    CStr::from_bytes_until_nul(&bytes)
        .unwrap_or_default()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_is_of_the_bdev_that_has_the_name_since() {
        let mut found = Resized::default();
        let events = [
            (RESIZE, "a"),
            (RESIZE, "b"),
            (REGISTER, "a"),
            (c"bdev_unregister", "b"),
        ];
        for (of, bdev) in events {
            found.note(of, CString::new(bdev).expect("no NUL"));
        }
        assert_eq!(found.bdevs, [("b".to_owned(), 0)]);
    }
}
