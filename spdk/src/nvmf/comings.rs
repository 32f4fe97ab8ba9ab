//! Connects and disconnects of hosts, reported by hooks as they happen.
//!
//! ```text
//! reactor: hook ─► bounded channel (preallocated) ─► comings(), polled from any thread
//!                       └ nearly full: dropped and counted; the hosts must be listed again
//! ```

use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use spdk_sys as sys;

use super::Connected;
use super::notices::Notices;
use crate::cstr::read;

/// Capacity of the channel, in notices.
const CAPACITY: usize = 1024;
/// Size of an NQN with its terminator, from `SPDK_NVMF_NQN_MAX_LEN`.
pub(super) const NQN: usize = sys::SPDK_NVMF_NQN_MAX_LEN as usize + 1;
/// Must match the size of `address` in `struct opi_nvmf_queue`.
const ADDRESS: usize = 320;

/// An event.
#[derive(Debug)]
pub enum Coming {
    /// A host has connected; `queues` is empty.
    Connected(Connected),
    /// The host with the controller of this number has disconnected.
    Gone(usize),
}

/// The events since the last call.
#[derive(Debug)]
pub struct Comings {
    /// Events in order.
    pub all: Vec<Coming>,
    /// Number of events dropped because the channel was full.
    pub lost: u64,
}

impl Connected {
    /// Identifies the host's controller among those that exist at the same time.
    pub fn number(&self) -> usize {
        self.controller
    }
}

/// A NUL-terminated C string in a fixed array.
pub(super) type Text<const N: usize> = [c_char; N];

/// The form in which an event passes the channel.
#[expect(
    clippy::large_enum_variant,
    reason = "a hook does not allocate, and the channel's places are made once"
)]
enum Notice {
    Connected {
        controller: usize,
        controller_id: u16,
        is_guest: bool,
        subsystem: Text<NQN>,
        host: Text<NQN>,
        address: Text<ADDRESS>,
    },
    Gone(usize),
}

impl From<Notice> for Coming {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::Gone(controller) => Self::Gone(controller),
            Notice::Connected {
                controller,
                controller_id,
                is_guest,
                subsystem,
                host,
                address,
            } => Self::Connected(Connected {
                subsystem: read(&subsystem),
                host: read(&host),
                controller_id,
                address: read(&address),
                is_guest,
                queues: Vec::new(),
                controller,
            }),
        }
    }
}

static CHANNEL: OnceLock<Notices<Notice>> = OnceLock::new();

/// Enables the hooks. Must be called before the first transport is created.
pub(crate) fn open() {
    CHANNEL.get_or_init(|| Notices::new(CAPACITY));
}

/// Takes the events since the last call. Any thread.
pub fn comings() -> Comings {
    let (all, lost) = CHANNEL.get().map(Notices::take).unwrap_or_default();
    Comings { all, lost }
}

/// Reports that a host's admin queue has connected. Runs on a reactor: neither allocates nor blocks.
///
/// # Safety
/// Runs on the thread of `queue`, whose strings are null or NUL-terminated.
pub(crate) unsafe fn connected(queue: &sys::opi_nvmf_queue) {
    send(Notice::Connected {
        controller: queue.ctrlr.addr(),
        controller_id: queue.cntlid,
        is_guest: queue.is_guest,
        // SAFETY: by the caller's contract null or NUL-terminated during this call.
        subsystem: unsafe { copy(queue.subnqn) },
        // SAFETY: as above.
        host: unsafe { copy(queue.hostnqn) },
        address: queue.address,
    });
}

/// Reports that the host of this controller has disconnected. Runs on a reactor.
pub(crate) fn gone(controller: usize) {
    send(Notice::Gone(controller));
}

fn send(notice: Notice) {
    if let Some(channel) = CHANNEL.get() {
        channel.send(notice);
    }
}

/// # Safety
/// `text` is null, or a NUL-terminated string that stays valid during the call.
unsafe fn copy<const N: usize>(text: *const c_char) -> Text<N> {
    if text.is_null() {
        return [0; N];
    }
    // SAFETY: not null, and by the caller's contract NUL-terminated and valid during the call.
    self::text(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// Copies as many bytes as fit.
pub(super) fn text<const N: usize>(bytes: &[u8]) -> Text<N> {
    let mut copied = [0; N];
    // The last element stays zero: the terminator.
    for (to, from) in copied.iter_mut().take(N - 1).zip(bytes) {
        *to = crate::cstr::char_of(*from);
    }
    copied
}

#[cfg(test)]
mod tests {
    use super::super::notices::SPARE;
    use super::*;

    #[test]
    fn a_text_is_copied_as_far_as_there_is_room() {
        // SAFETY: a NUL-terminated string, and null.
        let (short, long, none) = unsafe {
            (
                copy::<8>(c"nqn".as_ptr()),
                copy::<4>(c"nqn.long".as_ptr()),
                copy::<4>(std::ptr::null()),
            )
        };
        let told = [read(&short), read(&long), read(&none)];
        assert_eq!(told, ["nqn", "nqn", ""]);
    }

    #[test]
    fn what_does_not_fit_in_is_counted_and_the_rest_keeps_its_order() {
        open();
        let kept = CAPACITY - SPARE;
        for number in 0..kept + 3 {
            gone(number);
        }
        let Comings { all, lost } = comings();
        assert_eq!((all.len(), lost), (kept, 3));
        let numbers = all.iter().map(|one| match one {
            Coming::Gone(number) => *number,
            Coming::Connected(_) => usize::MAX,
        });
        assert!(numbers.eq(0..kept));
        assert_eq!(comings().lost, 0, "told once");
    }
}
