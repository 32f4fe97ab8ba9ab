//! Hosts that are refused, told by hooks as it happens; and who waits for its turn because of it.
//!
//! ```text
//! reactor: hook ─► count by reason, bounded channel ─► whoever asks, now and then
//!            │                        └ nearly full: counted
//!            └ a proof of a key has failed: word of the stranger (atomic)
//! ```
//!
//! A stranger of DH-HMAC-CHAP is an address and the name that it gives: others behind the same address do not make a
//! host wait. One of TLS is an address, since a connection waits before it is read from. A name that is not admitted
//! takes no more time than any connection, so nobody waits because of it.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use spdk_gate::fabrics::{Stranger, Turn};

use super::comings::{NQN, Text, text};
use super::notices::Notices;
use crate::cstr::read;

/// Refusals that wait to be read.
const CAPACITY: usize = 512;
/// Words of strangers: those that share one wait together. A begin that none of them knows goes into the hash.
const WORDS: usize = 16_384;
/// In place of the name of a host: the connection speaks TLS, and has told none.
pub(crate) const TLS: &[u8] = b"";
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
    /// There is no subsystem of this name.
    UnknownSubsystem,
    /// The subsystem has no controller where the host came.
    OtherListener,
}

impl Reason {
    /// All of them: the values of `enum opi_refusal`, in their order.
    pub const ALL: [Self; 8] = [
        Self::NotAdmitted,
        Self::OtherKey,
        Self::TlsIdentity,
        Self::TlsKey,
        Self::Dhchap,
        Self::Controller,
        Self::UnknownSubsystem,
        Self::OtherListener,
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
            Self::UnknownSubsystem => "unknown_subsystem",
            Self::OtherListener => "other_listener",
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
static STRANGERS: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

/// Has the hooks tell from now on. Before the first transport.
pub(crate) fn open() {
    CHANNEL.get_or_init(|| Channel {
        notices: Notices::new(CAPACITY),
        hasher: RandomState::new(),
        begun: Instant::now(),
    });
}

impl Channel {
    /// Of the host of this name at an address, or of all who come there over TLS.
    fn word(&self, address: &[u8], host: &[u8]) -> Option<&'static AtomicU64> {
        let hash = self.hasher.hash_one((who(address), host)) % WORDS as u64;
        STRANGERS.get(usize::try_from(hash).ok()?)
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
    let word = match reason {
        Reason::Dhchap => channel.word(address, host),
        Reason::TlsKey => channel.word(address, TLS),
        _ => None,
    };
    if let Some(word) = word {
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

/// The host of this name at an address has proved who it is, or a host that is [`TLS`]. On a reactor.
pub(crate) fn known(address: &[u8], host: &[u8]) {
    let Some(channel) = CHANNEL.get() else { return };
    if let Some(word) = channel.word(address, host) {
        let now = channel.now();
        change(word, |it| (it.known(now), ()));
    }
}

/// When the host of this name at an address may try, or one that is [`TLS`]. On a reactor.
pub(crate) fn turn(address: &[u8], host: &[u8]) -> Turn {
    let Some(channel) = CHANNEL.get() else {
        return Turn::Now;
    };
    let now = channel.now();
    let word = channel.word(address, host);
    word.map_or(Turn::Now, |word| change(word, |it| it.comes(now)))
}

/// Changes a word. Another reactor may be first some times: in the end the change is left out rather than
/// waited for, and the result is as if it had been made.
fn change<T>(word: &AtomicU64, with: impl Fn(Stranger) -> (Stranger, T)) -> T {
    const ATTEMPTS: u32 = 16;
    let mut before = word.load(Ordering::Relaxed);
    let mut left = ATTEMPTS;
    loop {
        let (after, result) = with(Stranger::unpack(before));
        let after = after.pack();
        left -= 1;
        if after == before || left == 0 {
            return result;
        }
        match word.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return result,
            Err(now) => before = now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_and_told_and_who_fails_to_prove_a_key_waits_until_it_is_known() {
        open();
        let [stranger, other] = [b"192.0.2.1".as_slice(), b"2001:db8::1"];
        let name = b"nqn.host".as_slice();
        assert_eq!(turn(stranger, name), Turn::Now);
        let before: Vec<u64> = refused().map(|(_, count)| count).collect();
        for _ in 0..20 {
            tell(Reason::Dhchap, stranger, name, b"nqn.subsystem");
        }
        tell(Reason::Controller, other, name, b"");
        let after: Vec<u64> = refused().map(|(_, count)| count).collect();
        let more: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        assert_eq!(more, [0, 0, 0, 0, 20, 1, 0, 0]);
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

        assert_eq!(turn(other, name), Turn::Now);
        assert_eq!(turn(stranger, b"nqn.neighbour"), Turn::Now);
        assert_eq!(turn(stranger, TLS), Turn::Now);
        assert_ne!(turn(stranger, name), Turn::Now);
        known(stranger, TLS);
        assert_ne!(turn(stranger, name), Turn::Now);
        known(stranger, name);
        assert_eq!(turn(stranger, name), Turn::Now);
        for _ in 0..20 {
            tell(Reason::TlsKey, b"192.0.2.2", name, b"");
        }
        assert_eq!(turn(b"192.0.2.2", name), Turn::Now);
        assert_ne!(turn(b"192.0.2.2", TLS), Turn::Now);
        assert_eq!(refusals().all.len(), 20);

        // A flood is counted.
        for _ in 0..CAPACITY {
            tell(Reason::NotAdmitted, other, &[b'x'; 1000], b"");
        }
        let flood = refusals();
        assert_eq!(flood.all.len() as u64 + flood.lost, CAPACITY as u64);
        assert!(flood.lost > 0);
        assert_eq!(flood.all[0].host.len(), NQN - 1);
        assert_eq!(turn(other, &[b'x'; 1000]), Turn::Now, "of a name alone");
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
