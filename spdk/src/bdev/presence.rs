//! Detects that a bdev has been removed: devices may disappear on their own.
//!
//! ```text
//! watch ─► open, present ─┬─ remove event ─► closed, absent
//!                         └─ dropped ──────► closed
//! ```
//!
//! Other threads hold a watch under a name that they choose: see [`look_after`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::cstr::cstr;
use crate::error::{Error, check};

/// Number of watched bdevs that were removed.
static LOSSES: AtomicU64 = AtomicU64::new(0);

/// Returns how many watched bdevs SPDK has begun to remove since the start. Any thread. While this number is
/// unchanged, no [`Presence`] has changed either.
pub fn losses() -> u64 {
    LOSSES.load(Ordering::Acquire)
}

/// Tells whether the watched bdev still exists. Any thread; does not involve the app thread. A later bdev of the
/// same name is a different bdev.
#[derive(Debug, Clone)]
pub struct Presence(Arc<AtomicBool>);

impl Presence {
    /// Returns `false` once SPDK has begun to remove the bdev.
    pub fn is_there(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The context of C's callback: on the heap, kept alive by [`Watch`] while the descriptor is open.
struct Watched {
    /// Null once closed.
    descriptor: Cell<*mut sys::spdk_bdev_desc>,
    there: Presence,
}

/// Watches a bdev until the bdev is removed or this is dropped. Does not delay the removal. App thread.
pub(crate) struct Watch(Rc<Watched>);

/// Starts to watch a bdev. ENODEV if there is no bdev of that name.
pub(crate) fn watch(_: Spdk, operation: &'static str, name: &str) -> Result<Watch, Error> {
    let c_name = cstr("bdev name", name)?;
    let watched = Rc::new(Watched {
        descriptor: Cell::new(std::ptr::null_mut()),
        there: Presence(Arc::new(AtomicBool::new(true))),
    });
    let mut descriptor = std::ptr::null_mut();
    // SAFETY: runs on the app thread; the name and the output outlive the call. `watched` lives until `Watch` is
    // dropped, which closes the descriptor first, and SPDK delivers no event to a closed descriptor.
    let rc = unsafe {
        sys::spdk_bdev_open_ext(
            c_name.as_ptr(),
            false,
            Some(on_event),
            Rc::as_ptr(&watched).cast_mut().cast(),
            &mut descriptor,
        )
    };
    check(operation, rc).map_err(|error| error.with_detail(format!("bdev {name:?}")))?;
    watched.descriptor.set(descriptor);
    Ok(Watch(watched))
}

thread_local! {
    /// The watches held for other threads, by watcher.
    static WATCHES: RefCell<HashMap<String, Watch>> = RefCell::default();
}

/// Watches a bdev on behalf of `watcher`, replacing its previous watch. ENODEV if there is no bdev of that name. App
/// thread.
pub fn look_after(spdk: Spdk, watcher: &str, name: &str) -> Result<Presence, Error> {
    let watch = watch(spdk, "look after bdev", name)?;
    let presence = watch.presence();
    WATCHES.with_borrow_mut(|watches| watches.insert(watcher.to_owned(), watch));
    Ok(presence)
}

/// Drops the watch of `watcher`, if there is one. App thread.
pub fn leave(_: Spdk, watcher: &str) {
    WATCHES.with_borrow_mut(|watches| watches.remove(watcher));
}

impl Watch {
    /// Returns the part that may cross threads.
    pub(crate) fn presence(&self) -> Presence {
        self.0.there.clone()
    }
}

impl Watched {
    fn close(&self) {
        let descriptor = self.descriptor.replace(std::ptr::null_mut());
        if !descriptor.is_null() {
            // SAFETY: this watch's own descriptor, opened on this thread (an `Rc` cannot move to another), and
            // closed only once: its pointer was taken out above.
            unsafe { sys::spdk_bdev_close(descriptor) };
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The removal of a bdev waits until every descriptor is closed.
unsafe extern "C" fn on_event(
    event: sys::spdk_bdev_event_type,
    _: *mut sys::spdk_bdev,
    argument: *mut c_void,
) {
    if event != sys::spdk_bdev_event_type_SPDK_BDEV_EVENT_REMOVE {
        return;
    }
    // SAFETY: `argument` is the pointer that `watch` passed, alive while the descriptor is open.
    let watched = unsafe { &*argument.cast::<Watched>() };
    watched.there.0.store(false, Ordering::Release);
    LOSSES.fetch_add(1, Ordering::Release);
    watched.close();
}
