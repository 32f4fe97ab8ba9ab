//! A device's control thread: accepts one client at a time, and serves it until it disconnects.
//!
//! ```text
//! bind ─► idle ── client ─► connected ── disconnects, or violates the protocol ─► draining ─► idle
//!           └── close ─► closing: socket removed, nothing outstanding, ended
//! ```

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::client::{Client, End};
use super::device::Device;
use super::shared::Shared;
use super::socket::{Access, Connection, Listener, wait};
use super::worker::Booking;
use crate::error::Error;

/// Timeout of a client's first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// Minimum interval between two log lines about protocol violations by clients of one device.
const QUIET: Duration = Duration::from_secs(10);

/// The arguments of a control thread.
pub(super) struct Control<D: Device> {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) path: PathBuf,
    pub(super) access: Access,
    pub(super) device: Arc<D>,
    pub(super) shared: Arc<Shared>,
    pub(super) booking: Booking,
    /// Reports whether the socket was created.
    pub(super) made: oneshot::Sender<Result<(), Error>>,
    /// Dropping it reports that the device has ended and released everything.
    pub(super) ended: watch::Sender<()>,
}

/// Rate limit for protocol violations: one line, then a count.
#[derive(Default)]
struct Offences {
    told: Option<Instant>,
    untold: u64,
}

impl<D: Device> Control<D> {
    /// The main function of the thread.
    pub(super) fn run(self) {
        let listener = match Listener::bind(&self.path, self.access) {
            Ok(listener) => listener,
            Err(error) => {
                let _ = self.made.send(Err(error));
                return;
            }
        };
        let _ = self.made.send(Ok(()));
        let mut door = Door {
            name: self.name,
            kind: self.kind,
            device: self.device,
            shared: self.shared,
            booking: self.booking,
            listener: Some(listener),
            offences: Offences::default(),
        };
        while !door.shared.is_closing() {
            door.wait_for_client();
        }
        drop(door);
        drop(self.ended);
    }
}

/// A listening device.
pub(super) struct Door<D: Device> {
    name: String,
    kind: &'static str,
    pub(super) device: Arc<D>,
    pub(super) shared: Arc<Shared>,
    pub(super) booking: Booking,
    /// Dropped as soon as the device is being removed, even while requests are outstanding.
    pub(super) listener: Option<Listener>,
    offences: Offences,
}

impl<D: Device> Door<D> {
    fn wait_for_client(&mut self) {
        let listener = self.listener.as_ref().map(AsRawFd::as_raw_fd);
        let bell = Some(self.shared.bell.as_raw_fd());
        wait([(listener, libc::POLLIN), (bell, libc::POLLIN)], None);
        self.shared.bell.hush();
        let Some(socket) = self.listener.as_ref().and_then(Listener::accept) else {
            return;
        };
        if self.shared.connect() {
            self.serve(Connection::new(socket));
        }
    }

    /// Closes the listening socket once the device is being removed.
    pub(super) fn keep(&mut self) {
        if self.shared.is_closing() {
            self.listener = None;
        }
    }

    /// Refuses further clients while one is connected.
    pub(super) fn turn_away(&self) {
        if let Some(listener) = &self.listener {
            // Accepting and dropping closes the connection; others follow in later turns.
            drop(listener.accept());
        }
    }

    fn serve(&mut self, connection: Connection) {
        tracing::debug!(device = %self.name, kind = self.kind, "vhost-user client connected");
        let begun = Instant::now();
        let mut client = Client::new(self, connection);
        let end = loop {
            if let Err(end) = client.turn(begun + FIRST_MESSAGE) {
                break end;
            }
        };
        let aborted = client.leave();
        match end {
            End::Broke(what) => self.report(&what),
            End::Gone | End::Closed => {
                tracing::debug!(device = %self.name, aborted, "vhost-user client has gone");
            }
        }
    }

    /// Logs a protocol violation, rate-limited.
    fn report(&mut self, error: &str) {
        let now = Instant::now();
        let offences = &mut self.offences;
        if offences.told.is_some_and(|told| now - told < QUIET) {
            offences.untold += 1;
            return;
        }
        offences.told = Some(now);
        let untold = std::mem::take(&mut offences.untold);
        tracing::warn!(
            device = %self.name, kind = self.kind, error, untold,
            "vhost-user client broke the protocol"
        );
    }
}
