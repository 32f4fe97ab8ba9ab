//! KVM mode: controllers become PCI devices of a running QEMU, over its QMP monitor.
//!
//! ```text
//!          chardev-add *             device_add           a driver takes it
//! absent ──────────────► connected ────────────► plugged ──────────────────► in use
//!   ▲                        │ fails                │ device_del                │ device_del
//!   │◄───────────────────────┘ undone               ▼                           ▼
//!   │◄────────── DEVICE_DELETED, chardev-remove * ── leaving ── refused, or late ──► as it was
//!   └── QEMU ends: from every state                      * vhost-user only
//! ```
//!
//! QEMU may be started anew or die at any time, also of what it is asked to do. Nothing is held of it
//! between operations: each asks what is there. The operations of one time share a connection, as the
//! monitor serves one client at a time, and the last one closes it.

mod address;
mod device;
mod fault;
mod operation;
mod plugged;
mod protocol;
mod session;
mod state;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

pub use address::Address;
pub use device::{Device, Model, Place};
pub use plugged::{Pluggable, Plugged, Slots};

use crate::error::Error;
use fault::Fault;
use operation::Operation;
use session::{Session, by};
use state::{Chardev, Presence};

/// How long undoing a failed plug may take, also past the deadline.
const UNDO: Duration = Duration::from_secs(3);

/// How often an unplug goes on after its connection broke, and how long after: a QEMU that dies closes
/// the connection first and the listening socket a little later.
const RECONNECTS: u32 = 5;
const RECONNECT: Duration = Duration::from_millis(200);

/// The machine to plug into.
#[derive(Clone)]
pub struct Machine(Arc<Inner>);

struct Inner {
    address: Address,
    buses: Vec<String>,
    /// Whether a vfio-user device is unplugged from a QEMU that is known to end of it.
    force_unplug: bool,
    session: tokio::sync::Mutex<Weak<Session>>,
}

impl Machine {
    /// The machine whose monitor is at `address`, and the names of its buses that physical functions
    /// are counted on. Nothing is connected yet.
    pub fn new(address: Address, buses: Vec<String>, force_unplug: bool) -> Self {
        Self(Arc::new(Inner {
            address,
            buses,
            force_unplug,
            session: tokio::sync::Mutex::default(),
        }))
    }

    /// Where a physical function is.
    ///
    /// # Errors
    /// Says which functions have a place when this one has none.
    pub fn place(&self, physical_function: i32) -> Result<Place, String> {
        Place::of(physical_function, &self.0.buses)
    }

    /// Plugs a device whose socket is being served. It returns when a driver of the guest has taken
    /// the device, or when none has for a while, with a warning in the log: a guest that boots will.
    /// A failure leaves nothing plugged.
    ///
    /// A device of the same id that QEMU has already is kept if it is in its place and has its
    /// connection, or will have it: vhost-user (QEMU connects it again by itself). Else it is replaced,
    /// unless QEMU would end of that.
    ///
    /// # Errors
    /// UNAVAILABLE when QEMU does not run or ends meanwhile, DEADLINE_EXCEEDED, and
    /// FAILED_PRECONDITION with QEMU's words when it refuses (no such bus, the slot is taken).
    pub async fn plug(&self, device: &Device, deadline: Instant) -> Result<(), Error> {
        let plugged = self.keep_or_plug(device, deadline).await;
        plugged.map_err(|fault| fault.during(&format!("plug the device {}", device.id), &device.id))
    }

    /// Plugs a device again that the machine has lost, as a QEMU that was started anew has.
    ///
    /// # Errors
    /// Those of [`plug`](Self::plug).
    pub async fn renew(&self, device: &Device, deadline: Instant) -> Result<(), Error> {
        let renewed = self.plug_if_absent(device, deadline).await;
        renewed.map_err(|fault| fault.during(&format!("plug the device {}", device.id), &device.id))
    }

    /// Unplugs the device of this id and waits until the guest has given it up. A device that is not
    /// there, or whose QEMU has ended, is a success.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when the guest or QEMU refuses; DEADLINE_EXCEEDED when the guest does not
    /// answer, which may give the device up later; UNAVAILABLE when it cannot be told whether QEMU
    /// runs.
    pub async fn unplug(&self, id: &str, model: Model, deadline: Instant) -> Result<(), Error> {
        let unplugged = self.remove(id, model, deadline).await;
        unplugged.map_err(|fault| fault.during(&format!("unplug the device {id}"), id))
    }

    async fn keep_or_plug(&self, device: &Device, deadline: Instant) -> Result<(), Fault> {
        let operation = self.operation(&device.id, deadline).await?;
        let presence = operation.presence().await?;
        let chardev = operation.chardev().await?;
        let is_there = presence != Presence::Absent;
        let leads_here = |chardev: &Chardev| is_there && chardev.leads_to(&device.socket);
        if chardev.as_ref().is_some_and(leads_here) && operation.is_at(&device.place).await? {
            return operation.connected().await;
        }
        // vfio-user: QEMU connects once, so that a device which is connected is served.
        let is_served = is_there && !device.model.has_chardev() && is_connected(device).await;
        if is_served && operation.is_at(&device.place).await? {
            return Ok(());
        }
        if is_there || chardev.is_some() {
            self.remove(&device.id, device.model, deadline).await?;
        }
        // QEMU may have ended of the removal.
        let plugged = self
            .operation(&device.id, deadline)
            .await?
            .plug(device)
            .await;
        if plugged.is_err()
            && let Err(left) = self
                .remove(&device.id, device.model, Instant::now() + UNDO)
                .await
        {
            tracing::error!(device = device.id, %left, "could not undo a plug that failed: QEMU may still have the device");
        }
        plugged
    }

    async fn plug_if_absent(&self, device: &Device, deadline: Instant) -> Result<(), Fault> {
        let operation = self.operation(&device.id, deadline).await?;
        match operation.presence().await? {
            Presence::Absent => self.keep_or_plug(device, deadline).await,
            Presence::Plugged | Presence::Taken => Ok(()),
        }
    }

    async fn remove(&self, id: &str, model: Model, deadline: Instant) -> Result<(), Fault> {
        let may_end = model.has_chardev() || self.0.force_unplug;
        let mut reconnects = 0;
        loop {
            let removed = match self.operation(id, deadline).await {
                Ok(operation) => operation.unplug(may_end).await,
                Err(fault) => Err(fault),
            };
            match removed {
                Err(Fault::Absent { .. }) => {
                    tracing::info!(device = id, "QEMU does not run, so the device is unplugged");
                    return Ok(());
                }
                Err(Fault::Broken(_)) if reconnects < RECONNECTS => {
                    reconnects += 1;
                    let pause = tokio::time::sleep(RECONNECT);
                    by(deadline, "QEMU's monitor did not come back", pause).await?;
                }
                other => return other,
            }
        }
    }

    /// Takes the connection that others use, or makes one.
    async fn operation<'a>(&self, id: &'a str, deadline: Instant) -> Result<Operation<'a>, Fault> {
        let mut session = by(
            deadline,
            "QEMU's monitor did not answer",
            self.0.session.lock(),
        )
        .await?;
        let qemu = match session.upgrade() {
            Some(open) if open.is_open() => open,
            _ => {
                let new = Arc::new(Session::connect(&self.0.address, deadline).await?);
                *session = Arc::downgrade(&new);
                new
            }
        };
        Ok(Operation { qemu, id, deadline })
    }
}

/// Whether the device's socket has a client. One that cannot be told has none.
async fn is_connected(device: &Device) -> bool {
    let connected = crate::connected::is_connected(&device.socket).await;
    connected.unwrap_or(false)
}
