//! Refused hosts, reported by hooks as it happens, and the rate limiting of authentication that follows from it.
//!
//! ```text
//! reactor: hook ─► count by reason, bounded channel ─► refusals(), polled from any thread
//!            │                        └ nearly full: dropped and counted
//!            └ authentication failed: history of the source (one atomic word)
//! ```
//!
//! For DH-HMAC-CHAP the limit applies to a pair of address and host NQN, so that others behind the same address do
//! not delay a host. For TLS it applies to the address alone, since a connection is delayed before anything is read
//! from it. A refusal of a host that is not admitted costs no more than any connection, so it causes no delay.

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

/// Capacity of the channel, in notices.
const CAPACITY: usize = 512;
/// Number of buckets of history words, and of words in each. A source is found by a tag in its word, so that it is
/// delayed for no other one, and a new source takes the word in its bucket that is worth least. The hash has a random
/// seed, so that collisions cannot be provoked.
const BUCKETS: usize = 4_096;
const WAYS: usize = 4;
/// Used in place of a host NQN for TLS, where the host is not known yet.
pub(crate) const TLS: &[u8] = b"";
/// Size of an address as text, with its terminator.
const ADDRESS: usize = 64;

/// Why a host was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// The subsystem does not admit a host of this name.
    NotAdmitted,
    /// The connection was established with a different PSK than this host's, or without TLS although the host has a
    /// PSK.
    OtherKey,
    /// No PSK has the identity.
    TlsIdentity,
    /// The TLS handshake showed that the peer does not hold the PSK of its identity.
    TlsKey,
    /// DH-HMAC-CHAP failed or timed out.
    Dhchap,
    /// The host reports that the controller failed to authenticate itself.
    Controller,
    /// There is no subsystem with this NQN.
    UnknownSubsystem,
    /// The subsystem does not listen at the address that the host connected to.
    OtherListener,
    /// The host has so many queues that another one would leave too few for other hosts.
    TooManyQueues,
}

impl Reason {
    /// All reasons, in the order of the values of `enum opi_refusal`.
    pub const ALL: [Self; 9] = [
        Self::NotAdmitted,
        Self::OtherKey,
        Self::TlsIdentity,
        Self::TlsKey,
        Self::Dhchap,
        Self::Controller,
        Self::UnknownSubsystem,
        Self::OtherListener,
        Self::TooManyQueues,
    ];

    /// Returns the reason's name in metrics and logs.
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
            Self::TooManyQueues => "too_many_queues",
        }
    }
}

/// A refused host.
#[derive(Debug)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// The host's address, without port.
    pub address: String,
    /// The NQN that the host claims, if known.
    pub host: String,
    /// The subsystem's NQN, if known.
    pub subsystem: String,
}

/// The refusals since the last call.
#[derive(Debug)]
pub struct Refusals {
    /// Refusals in order.
    pub all: Vec<Refusal>,
    /// Number of refusals dropped because the channel was full.
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
static STRANGERS: [[AtomicU64; WAYS]; BUCKETS] =
    [const { [const { AtomicU64::new(0) }; WAYS] }; BUCKETS];

/// Enables the hooks. Must be called before the first transport is created.
pub(crate) fn open() {
    CHANNEL.get_or_init(|| Channel {
        notices: Notices::new(CAPACITY),
        hasher: RandomState::new(),
        begun: Instant::now(),
    });
}

impl Channel {
    /// Returns where the history is of a host NQN at an address, or of all TLS connections from there.
    fn source(&self, address: &[u8], host: &[u8]) -> Option<Source> {
        let hash = self.hasher.hash_one((who(address), host));
        let bucket = STRANGERS.get(usize::try_from(hash % BUCKETS as u64).ok()?)?;
        let tag = u16::try_from(hash >> 48).ok()?;
        Some(Source { bucket, tag })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Where the history of a source is.
struct Source {
    bucket: &'static [AtomicU64; WAYS],
    tag: u16,
}

impl Source {
    fn words(&self) -> [u64; WAYS] {
        self.bucket
            .each_ref()
            .map(|word| word.load(Ordering::Relaxed))
    }

    /// Updates the history, which takes a word if it has none yet.
    fn record(&self, now: u64, with: impl Fn(Stranger) -> Stranger) {
        let words = self.words();
        let place = Stranger::find(&words, self.tag).or_else(|| Stranger::least(&words, now));
        if let Some(word) = place.and_then(|place| self.bucket.get(place)) {
            change(word, self.tag, |it| (with(it), ()));
        }
    }

    /// Schedules a connection.
    fn comes(&self, now: u64) -> Turn {
        let place = Stranger::find(&self.words(), self.tag);
        let word = place.and_then(|place| self.bucket.get(place));
        word.map_or(Turn::Now, |word| change(word, self.tag, |it| it.comes(now)))
    }
}

/// Maps an address to a source: an IPv6 address to its /64 prefix, since whoever has one address of it has all.
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

/// Takes the refusals since the last call. Any thread.
pub fn refusals() -> Refusals {
    let taken = CHANNEL.get().map(|channel| channel.notices.take());
    let (all, lost) = taken.unwrap_or_default();
    Refusals { all, lost }
}

/// Returns the refusals since the start, by reason. Any thread.
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

/// Reports a refused host. Runs on a reactor: neither allocates nor blocks.
pub(crate) fn tell(reason: Reason, address: &[u8], host: &[u8], subsystem: &[u8]) {
    if let Some(count) = COUNTS.get(reason as usize) {
        count.fetch_add(1, Ordering::Relaxed);
    }
    let Some(channel) = CHANNEL.get() else { return };
    let source = match reason {
        Reason::Dhchap => channel.source(address, host),
        Reason::TlsKey => channel.source(address, TLS),
        _ => None,
    };
    if let Some(source) = source {
        let now = channel.now();
        source.record(now, |it| it.refused(now));
    }
    channel.notices.send(Notice {
        reason,
        address: text(address),
        host: text(host),
        subsystem: text(subsystem),
    });
}

/// Records that a host at an address, or [`TLS`], has authenticated successfully. Runs on a reactor.
pub(crate) fn known(address: &[u8], host: &[u8]) {
    let Some(channel) = CHANNEL.get() else { return };
    if let Some(source) = channel.source(address, host) {
        let now = channel.now();
        source.record(now, |it| it.known(now));
    }
}

/// Returns when a host at an address, or [`TLS`], may authenticate. Runs on a reactor.
pub(crate) fn turn(address: &[u8], host: &[u8]) -> Turn {
    let Some(channel) = CHANNEL.get() else {
        return Turn::Now;
    };
    let source = channel.source(address, host);
    source.map_or(Turn::Now, |source| source.comes(channel.now()))
}

/// Updates a history by compare-and-swap, with bounded retries so that it never waits for another reactor. If the
/// retries are exhausted the update is skipped, and the result is returned as if it had been made.
fn change<T>(word: &AtomicU64, tag: u16, with: impl Fn(Stranger) -> (Stranger, T)) -> T {
    const ATTEMPTS: u32 = 16;
    let mut before = word.load(Ordering::Relaxed);
    let mut left = ATTEMPTS;
    loop {
        let (after, result) = with(Stranger::of(before, tag));
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
        assert_eq!(more, [0, 0, 0, 0, 20, 1, 0, 0, 0]);
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

        // A flood of refusals is counted, not queued.
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
