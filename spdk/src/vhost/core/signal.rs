//! Signals eventfds shared with another process, without ever blocking.
//!
//! `O_NONBLOCK` belongs to the open file description: whoever sent the fd can clear the flag, fill the counter, and
//! thus make a `write` block forever. The kernel's own signal never blocks: Linux AIO sends it when a request
//! completes (io_submit(2), `IOCB_FLAG_RESFD`), here a request that reads nothing.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

/// Size of an AIO context, in requests. Each request completes during its submission.
const EVENTS: libc::c_long = 8;

const PREAD: u16 = 0;
const RESFD: u32 = 1;

/// The kernel's mark of a context whose completions can be consumed without a system call.
const MAGIC: u32 = 0xa10a_10a1;

/// `struct iocb` of linux/aio_abi.h, on a little-endian machine.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// The header of the kernel's completion ring, mapped at the address that is the context's ID.
#[repr(C)]
struct Head {
    id: u32,
    count: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
}

/// The AIO context of one reactor.
pub(super) struct Signaller {
    context: usize,
    null: File,
}

thread_local! {
    /// The context of this reactor's thread.
    static OURS: RefCell<Option<Signaller>> = const { RefCell::new(None) };
}

impl Signaller {
    /// Creates a context; `None` if the kernel provides none.
    pub(super) fn new() -> Option<Self> {
        let null = File::open("/dev/null").ok()?;
        let mut context = 0_usize;
        // SAFETY: the kernel writes the context's ID to a local.
        let rc = unsafe { libc::syscall(libc::SYS_io_setup, EVENTS, &raw mut context) };
        if rc != 0 {
            return None;
        }
        let ours = Self { context, null };
        (ours.head().magic == MAGIC).then_some(ours)
    }

    fn head(&self) -> &Head {
        // SAFETY: the kernel maps the ring at this address for the lifetime of the context, which is that of the
        // process: it is never destroyed, since destroying it blocks.
        unsafe { &*std::ptr::with_exposed_provenance(self.context) }
    }

    /// Signals an eventfd; returns whether that worked.
    fn signal(&self, eventfd: RawFd) -> bool {
        let mut nothing = 0_u8;
        let request = Iocb {
            opcode: PREAD,
            file: self.null.as_raw_fd().cast_unsigned(),
            buffer: (&raw mut nothing).expose_provenance() as u64,
            bytes: 1,
            flags: RESFD,
            resfd: eventfd.cast_unsigned(),
            ..Iocb::default()
        };
        let list = [&raw const request];
        // SAFETY: submits one request, which completes before the call returns, since reading /dev/null never
        // waits; so its locals outlive it.
        let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_ptr()) };
        // Completions are discarded: this thread is their only consumer.
        let head = self.head();
        head.head
            .store(head.tail.load(Ordering::Acquire), Ordering::Release);
        taken == 1
    }
}

/// Makes this thread signal through the context.
pub(super) fn adopt(signaller: Option<Signaller>) {
    OURS.set(signaller);
}

/// Signals an eventfd. Without AIO, falls back to a write, which blocks only if the client has cleared `O_NONBLOCK`.
pub(super) fn signal(eventfd: RawFd) {
    let done = OURS.with_borrow(|ours| ours.as_ref().is_some_and(|ours| ours.signal(eventfd)));
    if !done {
        write(eventfd);
    }
}

/// Adds one to an eventfd.
pub(super) fn write(eventfd: RawFd) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: writes 8 bytes of a local to an open fd. The result is ignored: with a full counter the reader has
    // been woken already.
    unsafe { libc::write(eventfd, one.as_ptr().cast(), one.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{FromRawFd, OwnedFd};

    /// The largest value of an eventfd, at which a blocking `write` waits.
    const FULL: u64 = u64::MAX - 1;

    fn eventfd() -> OwnedFd {
        // SAFETY: takes plain values; the descriptor is new and owned at once. It is a blocking one.
        unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) }
    }

    fn count(fd: &OwnedFd) -> u64 {
        let mut count = 0_u64;
        // SAFETY: reads 8 bytes into a local.
        let read = unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
        assert_eq!(read, 8);
        count
    }

    #[test]
    fn an_eventfd_that_would_block_does_not() {
        adopt(Signaller::new());
        assert!(OURS.with_borrow(Option::is_some), "the kernel has AIO");
        let fd = eventfd();
        for _ in 0..1000 {
            signal(fd.as_raw_fd());
        }
        assert_eq!(count(&fd), 1000);
        let full = FULL.to_ne_bytes();
        // SAFETY: writes 8 bytes of a local.
        let written = unsafe { libc::write(fd.as_raw_fd(), full.as_ptr().cast(), 8) };
        assert_eq!(written, 8);
        for _ in 0..1000 {
            signal(fd.as_raw_fd());
        }
        assert!(count(&fd) >= FULL);
    }

    #[test]
    fn without_aio_an_eventfd_is_written_to() {
        adopt(None);
        let fd = eventfd();
        signal(fd.as_raw_fd());
        assert_eq!(count(&fd), 1);
    }
}
