//! Admission of connections: limits in total and per peer address. A new connection is never kept out by idle ones.
//!
//! ```text
//!                      ┌─ a certificate or an answered request ─► known: idle or busy
//! accepted ─► stranger ┤
//!                      └─ displaced by a newer one, from the address with the most strangers
//! ```
//!
//! At a limit, a connection is displaced by the new one: the oldest stranger, else the known connection that has been
//! idle longest. The new connection waits a moment if all strangers are fresh, so that their requests can arrive, and
//! longer only if all are busy.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::limits::{
    FRESH, PEER_SHARE, RECENTLY_USED, STRANGER_PEER_SHARE, STRANGER_SHARE, WAIT_FOR_PLACE, WAITING,
};

/// Interval at which a waiting connection retries: a busy one may have become idle.
const RETRY: Duration = Duration::from_millis(200);

/// A peer for the per-peer limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An IPv4 address, or an IPv6 /64 network, since one machine may use any address in it.
    Network(IpAddr),
    /// A user of this machine that may use the API.
    User(u32),
    /// All other users of this machine together, since one person can have many user IDs (user namespaces).
    OtherUsers,
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = u128::from(v6) & !u128::from(u64::MAX);
                Self::Network(IpAddr::V6(Ipv6Addr::from(network)))
            }
            v4 => Self::Network(v4),
        }
    }
}

/// The places for connections, shared by all ports.
pub struct Admission {
    total: usize,
    begun: Instant,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    entries: HashMap<u64, Arc<Entry>>,
    /// Counters over `entries`, so that an accept need not count.
    counts: Counts,
    by_peer: HashMap<Peer, Counts>,
    waiting: usize,
}

/// Number of connections, and of strangers among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    all: usize,
    strangers: usize,
}

/// The connections that a limit counts.
#[derive(Debug, Clone, Copy)]
struct Counted {
    /// Only those of this peer.
    of: Option<Peer>,
    strangers_only: bool,
}

impl Counted {
    fn includes(self, entry: &Entry) -> bool {
        self.of.is_none_or(|peer| entry.peer == peer) && !(self.strangers_only && entry.is_known())
    }

    fn number(self, counts: Counts) -> usize {
        if self.strangers_only {
            counts.strangers
        } else {
            counts.all
        }
    }
}

struct Entry {
    peer: Peer,
    known: AtomicBool,
    calls: AtomicU32,
    /// End of the last call, or admission: milliseconds since [`Admission::begun`].
    used: AtomicU64,
    displaced: Notify,
}

impl Entry {
    fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }
}

/// A connection's place, released on drop.
pub struct Place {
    admission: Arc<Admission>,
    id: u64,
    entry: Arc<Entry>,
}

impl Admission {
    /// Creates places for `total` connections.
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self {
            total: total.max(1),
            begun: Instant::now(),
            state: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Takes a place, displacing an idle connection if necessary, and waits while all are busy. `None` after the
    /// timeout or if too many connections already wait.
    pub async fn enter(self: &Arc<Self>, peer: Peer) -> Option<Place> {
        let waiting = self.wait_in_line();
        if waiting.is_some() {
            let gentle = self.retry(FRESH / 5, || self.enter_gently(peer));
            if let Ok(place) = timeout(FRESH, gentle).await {
                return Some(place);
            }
        }
        if let Some(place) = self.try_enter(peer) {
            return Some(place);
        }
        let _waiting = waiting?;
        let free = self.retry(RETRY, || self.try_enter(peer));
        timeout(WAIT_FOR_PLACE, free).await.ok()
    }

    /// Tries to enter whenever a place has become free, and after each `period`: the place may be of use to another
    /// peer alone.
    async fn retry(&self, period: Duration, enter: impl Fn() -> Option<Place>) -> Place {
        loop {
            let freed = self.freed.notified();
            if let Some(place) = enter() {
                return place;
            }
            let _ = timeout(period, freed).await;
        }
    }

    fn wait_in_line(&self) -> Option<impl Drop + use<'_>> {
        struct Waiting<'a>(&'a Admission);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.state.lock().waiting -= 1;
            }
        }
        let mut state = self.state.lock();
        if state.waiting >= WAITING {
            return None;
        }
        state.waiting += 1;
        Some(Waiting(self))
    }

    /// Takes a place, displacing an idle connection if necessary. `None` while all are busy.
    pub fn try_enter(self: &Arc<Self>, peer: Peer) -> Option<Place> {
        self.place(peer, Duration::ZERO)
    }

    /// The same, but displaces no stranger that is fresh ([`FRESH`]). `None` if there is no other.
    pub fn enter_gently(self: &Arc<Self>, peer: Peer) -> Option<Place> {
        self.place(peer, FRESH)
    }

    fn place(self: &Arc<Self>, peer: Peer, fresh: Duration) -> Option<Place> {
        let share = |of: usize, part: usize| (of / part).max(1);
        let strangers = share(self.total, STRANGER_SHARE);
        let now = self.now();
        let mut state = self.state.lock();
        for (bound, of, strangers_only) in [
            (share(self.total, PEER_SHARE), Some(peer), false),
            (share(strangers, STRANGER_PEER_SHARE), Some(peer), true),
            (strangers, None, true),
            (self.total, None, false),
        ] {
            let counted = Counted { of, strangers_only };
            state.make_room(bound, now, counted, fresh)?;
        }
        let entry = Arc::new(Entry {
            peer,
            known: AtomicBool::new(false),
            calls: AtomicU32::new(0),
            used: AtomicU64::new(now),
            displaced: Notify::new(),
        });
        let id = state.next;
        state.next += 1;
        state.insert(id, Arc::clone(&entry));
        Some(Place {
            admission: Arc::clone(self),
            id,
            entry,
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl State {
    fn insert(&mut self, id: u64, entry: Arc<Entry>) {
        for counts in [
            &mut self.counts,
            self.by_peer.entry(entry.peer).or_default(),
        ] {
            counts.all += 1;
            counts.strangers += usize::from(!entry.is_known());
        }
        self.entries.insert(id, entry);
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Entry>> {
        let entry = self.entries.remove(&id)?;
        let stranger = usize::from(!entry.is_known());
        self.counts.all -= 1;
        self.counts.strangers -= stranger;
        if let Some(counts) = self.by_peer.get_mut(&entry.peer) {
            counts.all -= 1;
            counts.strangers -= stranger;
            if counts.all == 0 {
                self.by_peer.remove(&entry.peer);
            }
        }
        Some(entry)
    }

    /// Marks a stranger as known. Invariant: nothing else does, so that the counters match.
    fn become_known(&mut self, id: u64, entry: &Entry) {
        if entry.known.swap(true, Ordering::Relaxed) || !self.entries.contains_key(&id) {
            return;
        }
        self.counts.strangers -= 1;
        if let Some(counts) = self.by_peer.get_mut(&entry.peer) {
            counts.strangers -= 1;
        }
    }

    /// Displaces one of the `counted` connections if there are `bound` or more. `None` if all of them are busy, or
    /// strangers that came less than `fresh` ago.
    fn make_room(
        &mut self,
        bound: usize,
        now: u64,
        counted: Counted,
        fresh: Duration,
    ) -> Option<()> {
        let of_peer = |peer| self.by_peer.get(&peer).copied().unwrap_or_default();
        let counts = counted.of.map_or(self.counts, of_peer);
        if counted.number(counts) < bound {
            return Some(());
        }
        let is_idle = |entry: &Entry| {
            let kept = if entry.is_known() {
                RECENTLY_USED
            } else {
                fresh
            };
            let unused = now.saturating_sub(entry.used.load(Ordering::Relaxed));
            entry.calls.load(Ordering::Relaxed) == 0 && u128::from(unused) >= kept.as_millis()
        };
        // Strangers first, then the peer with the most connections, then the one unused for longest.
        let victim = self
            .entries
            .iter()
            .filter(|(_, entry)| counted.includes(entry) && is_idle(entry))
            .min_by_key(|(id, entry)| {
                let of_peer = counted.number(of_peer(entry.peer));
                let used = entry.used.load(Ordering::Relaxed);
                (entry.is_known(), std::cmp::Reverse(of_peer), used, **id)
            });
        let id = *victim?.0;
        let entry = self.remove(id)?;
        entry.displaced.notify_one();
        Some(())
    }
}

impl Place {
    /// Marks the connection as known: its client has proved itself by a certificate or by a request that was answered.
    pub fn mark_known(&self) {
        if !self.is_known() {
            let mut state = self.admission.state.lock();
            state.become_known(self.id, &self.entry);
            drop(state);
            // A stranger's place is free.
            self.admission.freed.notify_one();
        }
    }

    /// Whether the connection is known.
    pub fn is_known(&self) -> bool {
        self.entry.is_known()
    }

    /// Waits until the connection is displaced by another.
    pub async fn displaced(&self) {
        self.entry.displaced.notified().await;
    }

    /// Counts the start of a call.
    pub fn call_begins(&self) {
        self.entry.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the end of a call.
    pub fn call_ends(&self) {
        let now = self.admission.now();
        self.entry.used.store(now, Ordering::Relaxed);
        self.entry.calls.fetch_sub(1, Ordering::Relaxed);
    }

    /// Time since the last call; `None` during a call.
    pub fn idle(&self) -> Option<Duration> {
        let used = self.entry.used.load(Ordering::Relaxed);
        let idle = Duration::from_millis(self.admission.now().saturating_sub(used));
        (self.entry.calls.load(Ordering::Relaxed) == 0).then_some(idle)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.state.lock().remove(self.id);
        self.admission.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> Peer {
        IpAddr::from([10, 0, 0, last]).into()
    }

    fn is_displaced(place: &Place) -> bool {
        !place.admission.state.lock().entries.contains_key(&place.id)
    }

    #[test]
    fn a_newcomer_displaces_the_oldest_stranger_of_the_peer_with_the_most() {
        let admission = Admission::new(64);
        let own = admission.try_enter(peer(1)).expect("a place");
        let first: Vec<Place> = (0..4)
            .map(|_| admission.try_enter(peer(2)).expect("a place"))
            .collect();
        // Strangers have 16 of 64 places, and one address has 4 of those.
        let next = admission.try_enter(peer(2)).expect("a place");
        assert!(is_displaced(&first[0]) && !is_displaced(&first[1]));
        assert!(!is_displaced(&own) && !is_displaced(&next));
        let others: Vec<Place> = (3..15)
            .map(|n| admission.try_enter(peer(n)).expect("a place"))
            .collect();
        assert!(is_displaced(&first[1]), "of the peer with the most");
        assert!(!is_displaced(&own) && others.iter().all(|place| !is_displaced(place)));
    }

    #[test]
    fn known_clients_keep_their_places_while_strangers_come() {
        let admission = Admission::new(16);
        let known: Vec<Place> = (0..4)
            .map(|_| {
                let place = admission.try_enter(peer(1)).expect("a place");
                place.mark_known();
                place
            })
            .collect();
        for n in 0..200 {
            drop(admission.try_enter(peer(n)));
        }
        let held: Vec<_> = (2..200).map(|n| admission.try_enter(peer(n))).collect();
        assert!(held.iter().all(Option::is_some), "a newcomer was kept out");
        assert!(known.iter().all(|place| !is_displaced(place)));
        assert!(admission.state.lock().entries.len() <= 4 + 4);
    }

    #[test]
    fn a_busy_connection_is_never_displaced() {
        // Far in the past, so that "used at 0" is not recent.
        let begun = Instant::now() - 2 * RECENTLY_USED;
        let mut admission = Admission::new(4);
        Arc::get_mut(&mut admission).expect("not shared").begun = begun;
        let place = admission.try_enter(peer(1)).expect("a place");
        place.mark_known();
        place.call_begins();
        assert!(admission.try_enter(peer(1)).is_none(), "1 of 4 a peer");
        place.call_ends();
        assert!(admission.try_enter(peer(1)).is_none(), "used just now");
        place.entry.used.store(0, Ordering::Relaxed);
        assert!(admission.try_enter(peer(1)).is_some());
        assert!(is_displaced(&place));
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_behind_one_address_waits_for_the_requests_of_those_before() {
        let admission = Admission::new(64);
        let first: Vec<Place> = (0..4)
            .map(|_| admission.enter_gently(peer(1)).expect("a place"))
            .collect();
        assert!(
            admission.enter_gently(peer(1)).is_none(),
            "4 of 64 an address"
        );
        let next = {
            let admission = Arc::clone(&admission);
            tokio::spawn(async move { admission.enter(peer(1)).await })
        };
        tokio::task::yield_now().await;
        // An answered request makes room: nobody was displaced for it.
        first[0].mark_known();
        let next = next.await.expect("no panic").expect("a place");
        assert!(first.iter().all(|place| !is_displaced(place)));
        // Those that stay silent keep nobody out for longer than that.
        assert!(admission.enter(peer(1)).await.is_some());
        assert!(is_displaced(&first[1]) && !is_displaced(&next));
    }

    #[test]
    fn the_counters_are_what_counting_gives() {
        let admission = Admission::new(32);
        let mut places = Vec::new();
        let mut random = 7_u32;
        for _ in 0..2000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = usize::try_from(random >> 8).expect("it fits");
            match number % 4 {
                0 if !places.is_empty() => drop(places.swap_remove(number % places.len())),
                1 if !places.is_empty() => {
                    let place: &Place = &places[number % places.len()];
                    place.mark_known();
                }
                _ => {
                    let last = u8::try_from(number % 5).expect("it fits");
                    places.extend(admission.try_enter(peer(last)));
                }
            }
            let state = admission.state.lock();
            let count = |of: Option<Peer>| {
                let of = |only| Counted {
                    of,
                    strangers_only: only,
                };
                let entries = state.entries.values();
                let strangers = entries.clone().filter(|e| of(true).includes(e)).count();
                let all = entries.filter(|e| of(false).includes(e)).count();
                Counts { all, strangers }
            };
            assert_eq!(state.counts, count(None));
            for (peer, counts) in &state.by_peer {
                assert_eq!(*counts, count(Some(*peer)));
                assert!(counts.all > 0);
            }
        }
        drop(places);
        let state = admission.state.lock();
        assert_eq!(state.counts, Counts::default());
        assert!(state.by_peer.is_empty() && state.entries.is_empty());
    }

    #[test]
    fn addresses_of_one_network_are_one_peer() {
        let of = |text: &str| Peer::from(text.parse::<IpAddr>().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
