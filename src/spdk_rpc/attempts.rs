//! Protection against guessing the password: each wrong password is answered with a delay, the number of delayed
//! answers per peer and in total is limited, and attempts are logged.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::sleep;

use crate::server::{Peer, RateLimit};

/// Delay of the refusal of a wrong password.
const DELAY: Duration = Duration::from_millis(500);

/// Delayed refusals in progress, per peer and in total. At the limit, no further password is checked.
const OF_PEER: usize = 4;
const IN_ALL: usize = 32;

/// Delayed refusals in progress.
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
    /// Whether this peer is at the limit, so that its password may not be checked now.
    pub fn are_exhausted(&self, peer: IpAddr) -> bool {
        let held = self.held.lock();
        let of_peer = held.by_peer.get(&Peer::from(peer));
        held.total >= IN_ALL || of_peer.is_some_and(|of_peer| *of_peer >= OF_PEER)
    }

    /// Counts a wrong password and waits for the delay. The count is held for the full delay even if the client
    /// disconnects, so that disconnecting early gains no further attempt.
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
        // The task does not panic.
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
