//! A device's control thread: lets one client in at a time, and serves it until it goes.
//!
//! ```text
//! bind ─► idle ── client ─► connected ── gone, or broke the protocol ─► draining ─► idle
//!           └── close ─► closing: socket removed, nothing outstanding, ended
//! ```

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::client::{Client, End};
use super::device::Device;
use super::shared::Shared;
use super::socket::{Access, Connection, Listener, wait};
use super::worker::Booking;
use crate::error::Error;

/// How long a client may take to its first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// Between two log lines about clients of one device that broke the protocol.
const QUIET: Duration = Duration::from_secs(10);

/// What a control thread is made of.
pub(super) struct Control<D: Device> {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) path: PathBuf,
    pub(super) access: Access,
    pub(super) device: Arc<D>,
    pub(super) shared: Arc<Shared>,
    pub(super) booking: Booking,
    /// Told whether the socket could be made.
    pub(super) made: oneshot::Sender<Result<(), Error>>,
    /// Told, by going, that the device has ended and nothing of it is left.
    pub(super) ended: oneshot::Sender<()>,
}

/// Clients that broke the protocol: one line, and then a count.
#[derive(Default)]
struct Offences {
    told: Option<Instant>,
    untold: u64,
}

impl<D: Device> Control<D> {
    /// The life of the thread.
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
        let _ = self.ended.send(());
    }
}

/// A device that listens.
pub(super) struct Door<D: Device> {
    name: String,
    kind: &'static str,
    pub(super) device: Arc<D>,
    pub(super) shared: Arc<Shared>,
    pub(super) booking: Booking,
    /// Gone as soon as the device is to go, whatever it still waits for.
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

    /// Closes those that come while one is connected, and the socket once the device is to go.
    pub(super) fn keep(&mut self) {
        if self.shared.is_closing() {
            self.listener = None;
        }
    }

    /// Lets nobody in beside the one who is connected.
    pub(super) fn turn_away(&self) {
        if let Some(listener) = &self.listener {
            // Each is closed as it is dropped; the rest of them in later turns.
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

    /// One line in a while about clients that broke the protocol.
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
