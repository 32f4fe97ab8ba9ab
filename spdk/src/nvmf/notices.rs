//! A bounded channel of notices from hooks on reactors to whoever polls for them.
//!
//! Slots are preallocated. When the channel is nearly full, notices are dropped and counted: in a full one a sender
//! could spin until its reader is scheduled.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender};

/// Slots that stay free: more than the number of reactors that can pass the check concurrently.
pub(super) const SPARE: usize = 256;

/// A channel of notices.
pub(super) struct Notices<T> {
    sender: Sender<T>,
    receiver: Receiver<T>,
    capacity: usize,
    lost: AtomicU64,
}

impl<T> Notices<T> {
    /// Creates a channel of `capacity` slots, of which [`SPARE`] stay unused.
    pub(super) fn new(capacity: usize) -> Self {
        let (sender, receiver) = crossbeam_channel::bounded(capacity);
        Self {
            sender,
            receiver,
            capacity,
            lost: AtomicU64::new(0),
        }
    }

    /// Sends a notice. Runs on a reactor: neither allocates nor blocks.
    pub(super) fn send(&self, notice: T) {
        let has_room = self.sender.len() < self.capacity.saturating_sub(SPARE);
        if !has_room || self.sender.try_send(notice).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes the notices since the last call, in order, and the number dropped. Any thread. Bounded to the capacity,
    /// so that a steady stream of notices cannot keep the caller here.
    pub(super) fn take<U: From<T>>(&self) -> (Vec<U>, u64) {
        let all = self.receiver.try_iter().take(self.capacity);
        (
            all.map(U::from).collect(),
            self.lost.swap(0, Ordering::Relaxed),
        )
    }
}
