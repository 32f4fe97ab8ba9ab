//! Wrong passwords: each is answered late, few of one peer are looked at in that time, and the log tells
//! of them. So a password cannot be found by trying, and trying does not go unseen.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
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
    held: Arc<Mutex<Refusals>>,
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

    /// A password was wrong: returns when that may be said. It counts until then, also if the client
    /// does not wait: else who leaves early could try the next at once.
    pub async fn fail(&self, address: IpAddr) {
        if let Some(more) = self.log.allow() {
            tracing::warn!(peer = %address, more, "wrong user or password at spdk-rpc-http");
        }
        let (held, peer) = (Arc::clone(&self.held), Peer::from(address));
        held.lock().begin(peer);
        let over = tokio::spawn(async move {
            sleep(DELAY).await;
            held.lock().end(peer);
        });
        // It does not panic.
        let _ = over.await;
    }
}

impl Refusals {
    fn begin(&mut self, peer: Peer) {
        self.total += 1;
        *self.by_peer.entry(peer).or_default() += 1;
    }

    fn end(&mut self, peer: Peer) {
        self.total -= 1;
        if let Some(of_peer) = self.by_peer.get_mut(&peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                self.by_peer.remove(&peer);
            }
        }
    }
}
