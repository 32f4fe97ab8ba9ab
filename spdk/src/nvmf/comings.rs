//! Hosts that connect and go, told by hooks as it happens.
//!
//! ```text
//! reactor: hook ─► bounded channel (fixed places, no allocation) ─► whoever asks, now and then
//!                       └ nearly full: counted, and the hosts have to be listed
//! ```

use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use spdk_sys as sys;

use super::Connected;
use super::notices::Notices;
use crate::cstr::read;

/// Comings and goings that wait to be read.
const CAPACITY: usize = 1024;
/// As long as `SPDK_NVMF_NQN_MAX_LEN`, with the terminator.
pub(super) const NQN: usize = sys::SPDK_NVMF_NQN_MAX_LEN as usize + 1;
/// As long as `address` of `struct opi_nvmf_queue`.
const ADDRESS: usize = 320;

/// What has happened.
#[derive(Debug)]
pub enum Coming {
    /// A host has connected; without its queues.
    Connected(Connected),
    /// The host of the controller of this number has gone.
    Gone(usize),
}

/// Comings and goings since the last look.
#[derive(Debug)]
pub struct Comings {
    /// In their order.
    pub all: Vec<Coming>,
    /// How many did not fit in.
    pub lost: u64,
}

impl Connected {
    /// Tells its controller from others that live at the same time.
    pub fn number(&self) -> usize {
        self.controller
    }
}

/// A text of C, terminated.
pub(super) type Text<const N: usize> = [c_char; N];

/// As it passes the channel.
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

/// Has the hooks tell from now on. Before the first transport.
pub(crate) fn open() {
    CHANNEL.get_or_init(|| Notices::new(CAPACITY));
}

/// What has happened since this was asked last; any thread.
pub fn comings() -> Comings {
    let (all, lost) = CHANNEL.get().map(Notices::take).unwrap_or_default();
    Comings { all, lost }
}

/// A host's admin queue has connected. On a reactor: copies, and neither allocates nor waits.
///
/// # Safety
/// On the thread of `queue`, whose texts are null or terminated.
pub(crate) unsafe fn connected(queue: &sys::opi_nvmf_queue) {
    send(Notice::Connected {
        controller: queue.ctrlr.addr(),
        controller_id: queue.cntlid,
        is_guest: queue.is_guest,
        // SAFETY: the caller's contract.
        subsystem: unsafe { copy(queue.subnqn) },
        // SAFETY: the same.
        host: unsafe { copy(queue.hostnqn) },
        address: queue.address,
    });
}

/// The host of this controller has gone. On a reactor.
pub(crate) fn gone(controller: usize) {
    send(Notice::Gone(controller));
}

fn send(notice: Notice) {
    if let Some(channel) = CHANNEL.get() {
        channel.send(notice);
    }
}

/// # Safety
/// `text` is null or a terminated string that stays during the call.
unsafe fn copy<const N: usize>(text: *const c_char) -> Text<N> {
    if text.is_null() {
        return [0; N];
    }
    // SAFETY: the caller's contract.
    self::text(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// As much of it as there is room for.
pub(super) fn text<const N: usize>(bytes: &[u8]) -> Text<N> {
    let mut copied = [0; N];
    // The last place stays zero.
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
        // SAFETY: a terminated string, and null.
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
