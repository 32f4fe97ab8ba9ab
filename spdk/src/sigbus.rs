//! Memory that others share with us and may take away: a file that is cut leaves its mapping in place,
//! and touching it raises SIGBUS, on whatever thread does.
//!
//! ```text
//! SIGBUS at an address ─┬─ of a watched mapping ─► its page is replaced by a private empty one,
//!                       │                          the watch is told, the instruction runs again
//!                       └─ else ─► the handler that was there before
//! ```

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use crate::error::Error;

/// Mappings that can be watched at a time.
const SLOTS: usize = 32_768;

struct Slot {
    /// 0 while it is free.
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

/// Slots up to here have been used.
static USED: AtomicUsize = AtomicUsize::new(0);
static CHANGES: Mutex<()> = Mutex::new(());
static INSTALL: Once = Once::new();
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());

/// Whether memory was lost, and which eventfd is then written to.
pub(crate) struct Lost {
    hit: AtomicBool,
    bell: RawFd,
}

impl Lost {
    /// Nothing lost yet. `bell` stays open at least as long as what is watched with this.
    pub(crate) fn new(bell: &impl AsRawFd) -> Arc<Self> {
        Arc::new(Self {
            hit: AtomicBool::new(false),
            bell: bell.as_raw_fd(),
        })
    }

    /// Whether a page was replaced.
    pub(crate) fn is_hit(&self) -> bool {
        self.hit.load(Ordering::Acquire)
    }
}

/// A mapping that is watched until this is dropped, which is before it is unmapped.
pub(crate) struct Watch {
    slot: usize,
    /// Kept for the handler.
    _lost: Arc<Lost>,
}

/// Watches a mapping of `length` bytes in pages of `page`. ENOSPC if too many are.
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
    // SAFETY: C structs for which all zero is valid; the handler does only what a handler may; the
    // previous action is kept for as long as the process lives.
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
    // SAFETY: the kernel passes the fault's description; errno is the interrupted code's.
    let (address, errno) = unsafe { ((*info).si_addr() as usize, *libc::__errno_location()) };
    let replaced = replace(address);
    // SAFETY: gives back what was there.
    unsafe { *libc::__errno_location() = errno };
    if replaced {
        return;
    }
    // SAFETY: stored by `install` and never freed.
    let previous = unsafe { PREVIOUS.load(Ordering::Acquire).as_ref() };
    match previous.map(|action| (action.sa_sigaction, action.sa_flags)) {
        Some((handler, flags)) if handler > libc::SIG_IGN && flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed as a handler of this form.
            unsafe {
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
        }
        // The fault comes again, and ends the process.
        // SAFETY: restores the default.
        _ => unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        },
    }
}

/// Puts an empty page in place of the one that is gone.
fn replace(address: usize) -> bool {
    for slot in &TABLE[..USED.load(Ordering::Acquire).min(SLOTS)] {
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Relaxed);
        if start == 0 || address < start || address >= end {
            continue;
        }
        let page = slot.page.load(Ordering::Relaxed).max(1);
        let at = (address - address % page).max(start);
        // SAFETY: the range is part of a mapping that is watched, so it is ours to replace; whoever has
        // pointers into it sees zeroes.
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
        // SAFETY: the watch keeps it; a mapping is touched by nobody when its watch goes.
        if let Some(lost) = unsafe { slot.lost.load(Ordering::Relaxed).as_ref() }
            && !lost.hit.swap(true, Ordering::AcqRel)
        {
            let one = 1_u64.to_ne_bytes();
            // SAFETY: writes 8 bytes of the stack to an eventfd that does not block.
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
        // SAFETY: plain calls whose results are checked; the fds are owned at once; the mapping is used
        // within its bounds and unmapped at the end.
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
