//! Wrong passwords: each is answered late, few of one peer are looked at in that time, and the log tells
//! of them. So a password cannot be found by trying, and trying does not go unseen.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::sleep;

use crate::server::{Peer, RateLimit};

/// How long the refusal of a wrong password is held back.
const DELAY: Duration = Duration::from_millis(500);

/// Refusals of one peer that may be held back at a time, and of all. Until one has gone out no further
/// password is looked at.
const OF_PEER: usize = 4;
const IN_ALL: usize = 32;

/// Refusals that are held back.
#[derive(Default)]
pub struct Attempts {
    held: Mutex<Refusals>,
    log: RateLimit,
}

#[derive(Default)]
struct Refusals {
    total: usize,
    by_peer: HashMap<Peer, usize>,
}

impl Attempts {
    /// Whether a password of this peer may not be looked at now.
    pub fn are_exhausted(&self, peer: IpAddr) -> bool {
        let held = self.held.lock();
        let of_peer = held.by_peer.get(&Peer::from(peer));
        held.total >= IN_ALL || of_peer.is_some_and(|of_peer| *of_peer >= OF_PEER)
    }

    /// A password was wrong: returns when that may be said. A client that does not wait for it counts
    /// all the same.
    pub async fn fail(&self, address: IpAddr) {
        if let Some(more) = self.log.allow() {
            tracing::warn!(peer = %address, more, "wrong user or password at spdk-rpc-http");
        }
        let _refusal = self.hold(address.into());
        sleep(DELAY).await;
    }

    fn hold(&self, peer: Peer) -> impl Drop + use<'_> {
        struct Held<'a>(&'a Attempts, Peer);
        impl Drop for Held<'_> {
            fn drop(&mut self) {
                let mut held = self.0.held.lock();
                held.total -= 1;
                if let Some(of_peer) = held.by_peer.get_mut(&self.1) {
                    *of_peer -= 1;
                    if *of_peer == 0 {
                        held.by_peer.remove(&self.1);
                    }
                }
            }
        }
        let mut held = self.held.lock();
        held.total += 1;
        *held.by_peer.entry(peer).or_default() += 1;
        Held(self, peer)
    }
}
