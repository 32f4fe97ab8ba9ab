//! Hosts that are refused, told by hooks as it happens; and which addresses wait for their turn because of it.
//!
//! ```text
//! reactor: hook ─► word of the address (atomic), count by reason, bounded channel ─► whoever asks, now and then
//!                                                 └ nearly full: counted
//! ```

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use spdk_gate::fabrics::Address;

use super::comings::{NQN, Text, text};
use super::notices::Notices;
use crate::cstr::read;

/// Refusals that wait to be read.
const CAPACITY: usize = 512;
/// Words of addresses: those that share one wait together. A begin that no stranger knows goes into the hash.
const WORDS: usize = 16_384;
/// As long as an address in text, with the terminator.
const ADDRESS: usize = 64;

/// Why a host was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// The subsystem does not admit a host of this name.
    NotAdmitted,
    /// The host has another pre-shared key than the connection, or has one and came in the clear.
    OtherKey,
    /// No pre-shared key has the identity.
    TlsIdentity,
    /// The handshake showed that the peer does not have the identity's pre-shared key.
    TlsKey,
    /// DH-HMAC-CHAP has failed, or took too long.
    Dhchap,
    /// The host says that the subsystem has not proved who it is.
    Controller,
}

impl Reason {
    /// All of them: the values of `enum opi_refusal`, in their order.
    pub const ALL: [Self; 6] = [
        Self::NotAdmitted,
        Self::OtherKey,
        Self::TlsIdentity,
        Self::TlsKey,
        Self::Dhchap,
        Self::Controller,
    ];

    /// Its name in metrics and the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAdmitted => "not_admitted",
            Self::OtherKey => "other_key",
            Self::TlsIdentity => "tls_identity",
            Self::TlsKey => "tls_key",
            Self::Dhchap => "dhchap",
            Self::Controller => "controller",
        }
    }
}

/// A host that was refused.
#[derive(Debug)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Where it came from, without a port.
    pub address: String,
    /// The NQN that it says it has, if that is known.
    pub host: String,
    /// The NQN of the subsystem, if that is known.
    pub subsystem: String,
}

/// Refusals since the last look.
#[derive(Debug)]
pub struct Refusals {
    /// In their order.
    pub all: Vec<Refusal>,
    /// How many did not fit in.
    pub lost: u64,
}

struct Notice {
    reason: Reason,
    address: Text<ADDRESS>,
    host: Text<NQN>,
    subsystem: Text<NQN>,
}

struct Channel {
    notices: Notices<Notice>,
    hasher: RandomState,
    begun: Instant,
}

static CHANNEL: OnceLock<Channel> = OnceLock::new();
static COUNTS: [AtomicU64; Reason::ALL.len()] = [const { AtomicU64::new(0) }; Reason::ALL.len()];
static ADDRESSES: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

/// Has the hooks tell from now on. Before the first transport.
pub(crate) fn open() {
    CHANNEL.get_or_init(|| Channel {
        notices: Notices::new(CAPACITY),
        hasher: RandomState::new(),
        begun: Instant::now(),
    });
}

impl Channel {
    fn word(&self, address: &[u8]) -> Option<&'static AtomicU64> {
        let hash = self.hasher.hash_one(who(address)) % WORDS as u64;
        ADDRESSES.get(usize::try_from(hash).ok()?)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Whom an address stands for: of IPv6 its first 64 bits, since whoever has one of these networks has all of it.
fn who(address: &[u8]) -> u128 {
    let address = str::from_utf8(address).ok();
    match address.and_then(|address| address.parse().ok()) {
        Some(IpAddr::V4(address)) => u128::from(u32::from(address)),
        Some(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
            Some(address) => u128::from(u32::from(address)),
            None => u128::from(address) >> 64 << 64,
        },
        None => 0,
    }
}

/// What has happened since this was asked last; any thread.
pub fn refusals() -> Refusals {
    let taken = CHANNEL.get().map(|channel| channel.notices.take());
    let (all, lost) = taken.unwrap_or_default();
    Refusals { all, lost }
}

/// How many there were since start; any thread.
pub fn refused() -> impl Iterator<Item = (Reason, u64)> {
    let counts = COUNTS.iter().map(|count| count.load(Ordering::Relaxed));
    Reason::ALL.into_iter().zip(counts)
}

impl From<Notice> for Refusal {
    fn from(notice: Notice) -> Self {
        Self {
            reason: notice.reason,
            address: read(&notice.address),
            host: read(&notice.host),
            subsystem: read(&notice.subsystem),
        }
    }
}

/// A host was refused. On a reactor: copies, and neither allocates nor waits.
pub(crate) fn tell(reason: Reason, address: &[u8], host: &[u8], subsystem: &[u8]) {
    if let Some(count) = COUNTS.get(reason as usize) {
        count.fetch_add(1, Ordering::Relaxed);
    }
    let Some(channel) = CHANNEL.get() else { return };
    // Who refuses the subsystem has done nothing wrong.
    if reason != Reason::Controller
        && let Some(word) = channel.word(address)
    {
        let now = channel.now();
        change(word, |it| (it.refused(now), ()));
    }
    channel.notices.send(Notice {
        reason,
        address: text(address),
        host: text(host),
        subsystem: text(subsystem),
    });
}

/// A host at this address has proved who it is. On a reactor.
pub(crate) fn known(address: &[u8]) {
    if let Some(word) = CHANNEL.get().and_then(|channel| channel.word(address)) {
        change(word, |it| (it.known(), ()));
    }
}

/// How long a connection from this address waits for its turn, ms. On a reactor.
pub(crate) fn wait(address: &[u8]) -> u64 {
    let Some(channel) = CHANNEL.get() else {
        return 0;
    };
    let now = channel.now();
    let word = channel.word(address);
    word.map_or(0, |word| change(word, |it| it.comes(now)))
}

/// Changes a word. Another reactor may be first some times: in the end the change is left out rather than
/// waited for.
fn change<T: Default>(word: &AtomicU64, with: impl Fn(Address) -> (Address, T)) -> T {
    const ATTEMPTS: u32 = 16;
    let mut before = word.load(Ordering::Relaxed);
    for _ in 0..ATTEMPTS {
        let (after, result) = with(Address::unpack(before));
        let after = after.pack();
        if after == before {
            return result;
        }
        match word.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return result,
            Err(now) => before = now,
        }
    }
    T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_told_and_make_their_address_wait_until_it_is_known() {
        open();
        let [stranger, other] = [b"192.0.2.1".as_slice(), b"2001:db8::1"];
        assert_eq!(wait(stranger), 0);
        let before: Vec<u64> = refused().map(|(_, count)| count).collect();
        for _ in 0..20 {
            tell(Reason::Dhchap, stranger, b"nqn.host", b"nqn.subsystem");
        }
        tell(Reason::Controller, other, b"nqn.host", b"");
        let after: Vec<u64> = refused().map(|(_, count)| count).collect();
        let more: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        assert_eq!(more, [0, 0, 0, 0, 20, 1]);
        let told = refusals();
        assert_eq!((told.all.len(), told.lost), (21, 0));
        let Refusal {
            reason,
            address,
            host,
            subsystem,
        } = &told.all[0];
        assert_eq!(*reason, Reason::Dhchap);
        assert_eq!(
            [address, host, subsystem],
            ["192.0.2.1", "nqn.host", "nqn.subsystem"]
        );

        assert_eq!(wait(other), 0);
        assert!(wait(stranger) > 0);
        known(stranger);
        assert_eq!(wait(stranger), 0);

        // A flood is counted.
        for _ in 0..CAPACITY {
            tell(Reason::NotAdmitted, other, &[b'x'; 1000], b"");
        }
        let flood = refusals();
        assert_eq!(flood.all.len() as u64 + flood.lost, CAPACITY as u64);
        assert!(flood.lost > 0);
        assert_eq!(flood.all[0].host.len(), NQN - 1);
    }

    #[test]
    fn the_header_has_the_reasons_in_their_order() {
        let header = include_str!("../../changes/include/fabrics.h");
        let body = header.split("enum opi_refusal {").nth(1).expect("an enum");
        let body = body.split('}').next().expect("its end");
        let names = body
            .split(',')
            .map(|line| line.trim().trim_end_matches(" = 0"));
        let names: Vec<_> = names.filter(|name| !name.is_empty()).collect();
        let wanted =
            Reason::ALL.map(|reason| format!("OPI_REFUSED_{}", reason.name().to_uppercase()));
        assert_eq!(names, wanted);
    }
}
