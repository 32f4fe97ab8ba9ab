//! What hooks tell on reactors, on its way to whoever asks now and then.
//!
//! A place is fixed and needs no allocation. When the channel is nearly full a notice is counted and dropped: in a
//! full one a sender could spin until its reader is scheduled.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender};

/// Places that stay free: more than there are reactors that can look at once.
pub(super) const SPARE: usize = 256;

/// Notices that wait to be read.
pub(super) struct Notices<T> {
    sender: Sender<T>,
    receiver: Receiver<T>,
    capacity: usize,
    lost: AtomicU64,
}

impl<T> Notices<T> {
    /// With so many places, [`SPARE`] of them unused.
    pub(super) fn new(capacity: usize) -> Self {
        let (sender, receiver) = crossbeam_channel::bounded(capacity);
        Self {
            sender,
            receiver,
            capacity,
            lost: AtomicU64::new(0),
        }
    }

    /// On a reactor: neither allocates nor waits.
    pub(super) fn send(&self, notice: T) {
        let has_room = self.sender.len() < self.capacity.saturating_sub(SPARE);
        if !has_room || self.sender.try_send(notice).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Those since this was asked last, in their order, and how many did not fit in; any thread. What comes meanwhile
    /// without end is for the next time.
    pub(super) fn take<U: From<T>>(&self) -> (Vec<U>, u64) {
        let all = self.receiver.try_iter().take(self.capacity);
        (
            all.map(U::from).collect(),
            self.lost.swap(0, Ordering::Relaxed),
        )
    }
}
