//! Memory accounting of a connection: parts of incomplete requests, and parts of answers that the client has not read.
//!
//! Unread answers delay the connection's next calls (backpressure), and their age closes the connection. hyper's
//! HTTP/2 buffers cannot be inspected, so each part carries a token that is dropped when the part has been written or
//! discarded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::limits::{HELD, UNFINISHED_UNDER_PRESSURE, UNREAD, UNREAD_UNDER_PRESSURE};

/// Bytes held by all connections together.
#[derive(Default)]
pub struct Total(AtomicUsize);

impl Total {
    fn is_high(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= HELD
    }
}

/// Bytes held by one connection.
pub struct Held {
    total: Arc<Total>,
    unfinished: AtomicUsize,
    unread: Mutex<Unread>,
}

#[derive(Default)]
struct Unread {
    bytes: usize,
    next: u64,
    parts: BTreeMap<u64, Instant>,
    /// Calls that wait for the client to read.
    waiting: Vec<Waker>,
}

impl Held {
    /// Creates an account without bytes.
    pub fn new(total: &Arc<Total>) -> Arc<Self> {
        Arc::new(Self {
            total: Arc::clone(total),
            unfinished: AtomicUsize::new(0),
            unread: Mutex::default(),
        })
    }

    /// Ready once the client has read enough of earlier answers for another call to proceed.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = if self.total.is_high() {
            UNREAD_UNDER_PRESSURE
        } else {
            UNREAD
        };
        let mut unread = self.unread.lock();
        if unread.bytes < limit {
            return Poll::Ready(());
        }
        if !unread.waiting.iter().any(|w| w.will_wake(cx.waker())) {
            unread.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Wraps a part of an answer; `with` is dropped together with it.
    pub fn part<T: Send + Sync + 'static>(self: &Arc<Self>, bytes: Bytes, with: T) -> Bytes {
        if bytes.is_empty() {
            return bytes;
        }
        let id = {
            let mut unread = self.unread.lock();
            unread.bytes += bytes.len();
            let id = unread.next;
            unread.next += 1;
            unread.parts.insert(id, Instant::now());
            id
        };
        self.total.0.fetch_add(bytes.len(), Ordering::Relaxed);
        Bytes::from_owner(Part {
            bytes,
            id,
            held: Arc::clone(self),
            _with: with,
        })
    }

    fn written(&self, id: u64, length: usize) {
        self.total.0.fetch_sub(length, Ordering::Relaxed);
        let waiting = {
            let mut unread = self.unread.lock();
            unread.bytes -= length;
            unread.parts.remove(&id);
            std::mem::take(&mut unread.waiting)
        };
        // Wakers run outside of the lock, since a waker may run or drop a task.
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Age of the oldest unread part.
    pub fn oldest_unread(&self) -> Option<Duration> {
        let unread = self.unread.lock();
        Some(unread.parts.first_key_value()?.1.elapsed())
    }

    /// Counts bytes of an incomplete request. `false` if the limit is exceeded.
    pub fn receive(&self, bytes: usize) -> bool {
        let own = self.unfinished.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.total.0.fetch_add(bytes, Ordering::Relaxed);
        own <= UNFINISHED_UNDER_PRESSURE || !self.total.is_high()
    }

    /// Stops counting the bytes of a request that is complete or abandoned.
    pub fn received(&self, bytes: usize) {
        self.unfinished.fetch_sub(bytes, Ordering::Relaxed);
        self.total.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A part of an answer that is being written.
struct Part<T> {
    bytes: Bytes,
    id: u64,
    held: Arc<Held>,
    _with: T,
}

impl<T> AsRef<[u8]> for Part<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T> Drop for Part<T> {
    fn drop(&mut self) {
        self.held.written(self.id, self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_room(held: &Held) -> bool {
        held.poll_room(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn unread_answers_hold_up_the_next_call_until_they_are_written() {
        let total = Arc::new(Total::default());
        let held = Held::new(&total);
        let answer = || held.part(Bytes::from(vec![7; UNREAD]), ());
        let part = answer();
        assert_eq!(part.len(), UNREAD);
        assert!(!has_room(&held));
        // HTTP/2 splits a part into frames: the part counts until the last one is written.
        let mut rest = part;
        let frame = rest.split_to(10);
        drop(rest);
        assert!(!has_room(&held) && held.oldest_unread().is_some());
        drop(frame);
        assert!(has_room(&held) && held.oldest_unread().is_none());
        assert_eq!(total.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_connection_with_little_goes_on_when_others_hold_much() {
        let total = Arc::new(Total::default());
        let (greedy, modest) = (Held::new(&total), Held::new(&total));
        assert!(greedy.receive(HELD - 1));
        assert!(!greedy.receive(2));
        assert!(modest.receive(UNFINISHED_UNDER_PRESSURE));
        assert!(!modest.receive(1));
        let part = modest.part(Bytes::from(vec![0; UNREAD_UNDER_PRESSURE]), ());
        assert!(!has_room(&modest));
        greedy.received(HELD + 1);
        assert!(has_room(&modest));
        drop(part);
    }
}
