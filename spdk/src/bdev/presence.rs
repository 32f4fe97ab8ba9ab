//! Whether a bdev is still there: devices go by themselves.
//!
//! ```text
//! watch ─► open, there ─┬─ SPDK says that it goes ─► closed, gone
//!                       └─ dropped ─────────────────► closed
//! ```
//!
//! Who watches from another thread does it under a name of its own: see [`look_after`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spdk_sys as sys;

use crate::cstr::cstr;
use crate::error::{Error, check};
use crate::runtime::Spdk;

/// Watched bdevs that have gone.
static LOSSES: AtomicU64 = AtomicU64::new(0);

/// How many watched bdevs SPDK has begun to remove since the start. For any thread: as long as it stays as it was,
/// each [`Presence`] is what it was.
pub fn losses() -> u64 {
    LOSSES.load(Ordering::Acquire)
}

/// Whether the bdev that was watched is still there. For any thread; asking costs
/// the app thread nothing. Another bdev of the same name is another bdev.
#[derive(Debug, Clone)]
pub struct Presence(Arc<AtomicBool>);

impl Presence {
    /// `false` once SPDK has begun to remove the bdev.
    pub fn is_there(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What C sees: on the heap, kept by [`Watch`] while the descriptor is open.
struct Watched {
    /// Null once it has been closed.
    descriptor: Cell<*mut sys::spdk_bdev_desc>,
    there: Presence,
}

/// A bdev that is looked after, until it goes or this is dropped: it does not keep
/// the bdev. On the app thread.
pub(crate) struct Watch(Rc<Watched>);

/// Looks after a bdev. ENODEV if there is none of that name.
pub(crate) fn watch(_: Spdk, operation: &'static str, name: &str) -> Result<Watch, Error> {
    let c_name = cstr("bdev name", name)?;
    let watched = Rc::new(Watched {
        descriptor: Cell::new(std::ptr::null_mut()),
        there: Presence(Arc::new(AtomicBool::new(true))),
    });
    let mut descriptor = std::ptr::null_mut();
    // SAFETY: on the app thread; the name and the output outlive the call; `watched`
    // stays until `Watch` is dropped, which closes the descriptor first, and SPDK
    // calls nobody for a closed one.
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
    /// What is looked after for others, by their names.
    static WATCHES: RefCell<HashMap<String, Watch>> = RefCell::default();
}

/// Looks after a bdev for `watcher`, in place of one that it has been looked after for it until now.
/// ENODEV if there is none of that name.
pub fn look_after(spdk: Spdk, watcher: &str, name: &str) -> Result<Presence, Error> {
    let watch = watch(spdk, "look after bdev", name)?;
    let presence = watch.presence();
    WATCHES.with_borrow_mut(|watches| watches.insert(watcher.to_owned(), watch));
    Ok(presence)
}

/// Looks after nothing for `watcher` any more.
pub fn leave(_: Spdk, watcher: &str) {
    WATCHES.with_borrow_mut(|watches| watches.remove(watcher));
}

impl Watch {
    /// What other threads may know of it.
    pub(crate) fn presence(&self) -> Presence {
        self.0.there.clone()
    }
}

impl Watched {
    fn close(&self) {
        let descriptor = self.descriptor.replace(std::ptr::null_mut());
        if !descriptor.is_null() {
            // SAFETY: our own descriptor, opened on this thread (an `Rc` does not
            // leave it) and not closed before.
            unsafe { sys::spdk_bdev_close(descriptor) };
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A bdev that is being removed waits until all have closed it.
unsafe extern "C" fn on_event(
    event: sys::spdk_bdev_event_type,
    _: *mut sys::spdk_bdev,
    argument: *mut c_void,
) {
    if event != sys::spdk_bdev_event_type_SPDK_BDEV_EVENT_REMOVE {
        return;
    }
    // SAFETY: what `watch` passed, alive while the descriptor is open.
    let watched = unsafe { &*argument.cast::<Watched>() };
    watched.there.0.store(false, Ordering::Release);
    LOSSES.fetch_add(1, Ordering::Release);
    watched.close();
}
