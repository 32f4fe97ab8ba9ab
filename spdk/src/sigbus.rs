//! Survives truncation of memory shared by others. When a mapped file is truncated, its mapping stays in place, and
//! an access raises SIGBUS on the accessing thread.
//!
//! ```text
//! SIGBUS at an address ─┬─ of a watched mapping ─► its page is replaced by a private zero page,
//!                       │                          the watch is signalled, the instruction restarts
//!                       └─ else ─► the previous handler
//! ```

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use crate::error::Error;

/// Maximum number of watched mappings.
const SLOTS: usize = 32_768;

struct Slot {
    /// Start address; 0 if the slot is free.
    start: AtomicUsize,
    end: AtomicUsize,
    page: AtomicUsize,
    lost: AtomicPtr<Lost>,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        lost: AtomicPtr::new(std::ptr::null_mut()),
    }
}; SLOTS];

/// One past the highest slot ever used: bounds the search of the handler.
static USED: AtomicUsize = AtomicUsize::new(0);
static CHANGES: Mutex<()> = Mutex::new(());
static INSTALL: Once = Once::new();
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());

/// Records that memory was lost, and the eventfd to signal then.
pub(crate) struct Lost {
    hit: AtomicBool,
    bell: RawFd,
}

impl Lost {
    /// Creates an unset record. `bell` must stay open at least as long as any watch with this record.
    pub(crate) fn new(bell: &impl AsRawFd) -> Arc<Self> {
        Arc::new(Self {
            hit: AtomicBool::new(false),
            bell: bell.as_raw_fd(),
        })
    }

    /// Returns whether a page was replaced.
    pub(crate) fn is_hit(&self) -> bool {
        self.hit.load(Ordering::Acquire)
    }
}

/// Watches a mapping for its lifetime. Must be dropped before the memory is unmapped.
pub(crate) struct Watch {
    slot: usize,
    /// Keeps the record alive for the signal handler.
    _lost: Arc<Lost>,
}

/// Watches a mapping of `length` bytes with pages of `page` bytes. ENOSPC if all slots are used.
pub(crate) fn watch(
    start: usize,
    length: usize,
    page: usize,
    lost: &Arc<Lost>,
) -> Result<Watch, Error> {
    INSTALL.call_once(install);
    let _one = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
    let free = TABLE
        .iter()
        .position(|slot| slot.start.load(Ordering::Relaxed) == 0);
    let Some(slot) = free else {
        return Err(Error::new("watch shared memory", libc::ENOSPC)
            .with_detail(format!("{SLOTS} mappings are watched already")));
    };
    let entry = &TABLE[slot];
    entry.end.store(start + length, Ordering::Relaxed);
    entry.page.store(page, Ordering::Relaxed);
    let shared = Arc::as_ptr(lost).cast_mut();
    entry.lost.store(shared, Ordering::Relaxed);
    entry.start.store(start, Ordering::Release);
    USED.fetch_max(slot + 1, Ordering::Release);
    Ok(Watch {
        slot,
        _lost: lost.clone(),
    })
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _one = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        TABLE[self.slot].start.store(0, Ordering::Release);
    }
}

fn install() {
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
    // SAFETY: C structs of integers and function pointers, for which all zero is valid. The handler is
    // async-signal-safe, and the previous action is never freed.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        let previous = Box::into_raw(Box::new(std::mem::zeroed::<libc::sigaction>()));
        libc::sigaction(libc::SIGBUS, std::ptr::null(), previous);
        PREVIOUS.store(previous, Ordering::Release);
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo_t to an SA_SIGINFO handler; errno belongs to the interrupted code,
    // on this thread.
    let (address, errno) = unsafe { ((*info).si_addr() as usize, *libc::__errno_location()) };
    let replaced = replace(address);
    // SAFETY: restores errno of this thread.
    unsafe { *libc::__errno_location() = errno };
    if replaced {
        return;
    }
    // SAFETY: null, or a pointer from Box::into_raw stored by `install`, which is never freed or written again.
    let previous = unsafe { PREVIOUS.load(Ordering::Acquire).as_ref() };
    match previous.map(|action| (action.sa_sigaction, action.sa_flags)) {
        Some((handler, flags)) if handler > libc::SIG_IGN && flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the previous action has SA_SIGINFO, so its handler has this signature.
            unsafe {
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
        }
        // With the default action restored, the instruction faults again and ends the process.
        // SAFETY: signal is async-signal-safe; SIG_DFL is a valid action.
        _ => unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        },
    }
}

/// Replaces the lost page at `address` by a private zero page. Async-signal-safe.
fn replace(address: usize) -> bool {
    for slot in &TABLE[..USED.load(Ordering::Acquire).min(SLOTS)] {
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Relaxed);
        if start == 0 || address < start || address >= end {
            continue;
        }
        let page = slot.page.load(Ordering::Relaxed).max(1);
        let at = (address - address % page).max(start);
        // SAFETY: the range lies within a mapping that is still watched, hence still mapped and owned by this
        // process; pointers into it stay valid and read zeros.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::with_exposed_provenance_mut(at),
                page.min(end - at),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        // SAFETY: the watch holds a reference to the record. Nobody accesses a mapping once its watch is dropped,
        // so the handler cannot run for it.
        if let Some(lost) = unsafe { slot.lost.load(Ordering::Relaxed).as_ref() }
            && !lost.hit.swap(true, Ordering::AcqRel)
        {
            let one = 1_u64.to_ne_bytes();
            // SAFETY: write is async-signal-safe; reads 8 bytes of the stack. The record's creator keeps the
            // non-blocking eventfd open.
            unsafe { libc::write(lost.bell, one.as_ptr().cast(), one.len()) };
        }
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{FromRawFd, OwnedFd};

    #[test]
    fn a_page_that_is_cut_off_reads_as_zeroes_and_the_watch_is_told() {
        const PAGE: usize = 4096;
        // SAFETY: plain system calls whose results are checked; the descriptors are new and owned at once; the
        // mapping is accessed within its bounds and unmapped at the end.
        unsafe {
            let file = OwnedFd::from_raw_fd(libc::memfd_create(c"cut".as_ptr(), libc::MFD_CLOEXEC));
            let bell = OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK));
            assert_eq!(libc::ftruncate(file.as_raw_fd(), 2 * PAGE as i64), 0);
            let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            let null = std::ptr::null_mut();
            let map = libc::mmap(null, 2 * PAGE, read_write, shared, file.as_raw_fd(), 0);
            assert_ne!(map, libc::MAP_FAILED);
            let bytes = map.cast::<u8>();
            bytes.write(7);
            bytes.add(PAGE).write(8);
            let lost = Lost::new(&bell);
            let watched = watch(map as usize, 2 * PAGE, PAGE, &lost).expect("there is room");
            assert_eq!(libc::ftruncate(file.as_raw_fd(), PAGE as i64), 0);
            assert_eq!(bytes.read_volatile(), 7);
            assert!(!lost.is_hit());
            assert_eq!(bytes.add(PAGE + 9).read_volatile(), 0);
            assert!(lost.is_hit());
            bytes.add(PAGE).write_volatile(9);
            assert_eq!(bytes.add(PAGE).read_volatile(), 9);
            let mut count = 0_u64;
            let read = libc::read(bell.as_raw_fd(), (&raw mut count).cast(), 8);
            assert_eq!((read, count), (8, 1));
            drop(watched);
            libc::munmap(map, 2 * PAGE);
        }
    }
}
