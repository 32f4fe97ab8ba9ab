//! State shared by the app thread and a device's control thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::call::Bell;
use crate::error::Error;

/// No client is connected.
const IDLE: u8 = 0;
/// A client is connected.
const CONNECTED: u8 = 1;
/// The device is being removed.
const CLOSING: u8 = 2;

/// The state of a device.
pub(super) struct Shared {
    state: AtomicU8,
    /// Outstanding requests are to be aborted instead of drained.
    abort: AtomicBool,
    config_changed: AtomicBool,
    pub(super) bell: Arc<Bell>,
}

impl Shared {
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self {
            state: AtomicU8::new(IDLE),
            abort: AtomicBool::new(false),
            config_changed: AtomicBool::new(false),
            bell: Arc::new(Bell::new()?),
        })
    }

    /// Records that a client has connected. `false` if the device is being removed.
    pub(super) fn connect(&self) -> bool {
        self.change(IDLE, CONNECTED)
    }

    /// Records that the client has disconnected; its requests may still be outstanding.
    pub(super) fn disconnect(&self) {
        self.change(CONNECTED, IDLE);
    }

    /// Returns whether a client is connected.
    pub(super) fn is_connected(&self) -> bool {
        self.state.load(Ordering::Acquire) == CONNECTED
    }

    /// Starts the removal of the device unless a client is connected. Returns whether it is being removed.
    pub(super) fn close(&self) -> bool {
        let closing = self.change(IDLE, CLOSING) || self.is_closing();
        self.bell.ring();
        closing
    }

    /// Starts the removal of the device with its client, and aborts outstanding requests.
    pub(super) fn force(&self) {
        self.abort.store(true, Ordering::Release);
        self.state.store(CLOSING, Ordering::Release);
        self.bell.ring();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLOSING
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.abort.load(Ordering::Acquire)
    }

    /// Records that the configuration space has changed.
    pub(super) fn note_config(&self) {
        self.config_changed.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Returns whether the configuration space has changed since the last call.
    pub(super) fn take_config(&self) -> bool {
        self.config_changed.swap(false, Ordering::AcqRel)
    }

    fn change(&self, from: u8, to: u8) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.state
            .compare_exchange(from, to, success, failure)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_goes_once_no_client_is_connected() {
        let shared = Shared::new().expect("an eventfd");
        assert!(!shared.is_connected() && shared.connect());
        assert!(!shared.connect() && shared.is_connected(), "one at a time");
        assert!(!shared.close(), "a client is connected");
        shared.disconnect();
        assert!(shared.close() && shared.close());
        assert!(!shared.connect() && shared.is_closing());
        shared.disconnect();
        assert!(
            shared.is_closing(),
            "a client that leaves late changes nothing"
        );
    }

    #[test]
    fn a_device_that_must_goes_under_its_client() {
        let shared = Shared::new().expect("an eventfd");
        assert!(shared.connect() && !shared.is_aborted());
        shared.force();
        assert!(shared.is_closing() && shared.is_aborted());
    }
}
