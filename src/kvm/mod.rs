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
    session: tokio::sync::Mutex<Weak<Session>>,
}

impl Machine {
    /// The machine whose monitor is at `address`, and the names of its buses that physical functions
    /// are counted on. Nothing is connected yet.
    pub fn new(address: Address, buses: Vec<String>) -> Self {
        Self(Arc::new(Inner {
            address,
            buses,
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
    /// A device of the same id that was left by an earlier life of this process is kept if it is
    /// vhost-user (QEMU connects it again by itself) and in its place, and else replaced.
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
    pub async fn unplug(&self, id: &str, deadline: Instant) -> Result<(), Error> {
        let unplugged = self.remove(id, deadline).await;
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
        if is_there || chardev.is_some() {
            self.remove(&device.id, deadline).await?;
        }
        // QEMU may have ended of the removal.
        let plugged = self
            .operation(&device.id, deadline)
            .await?
            .plug(device)
            .await;
        if plugged.is_err()
            && let Err(left) = self.remove(&device.id, Instant::now() + UNDO).await
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

    async fn remove(&self, id: &str, deadline: Instant) -> Result<(), Fault> {
        let mut reconnects = 0;
        loop {
            let removed = match self.operation(id, deadline).await {
                Ok(operation) => operation.unplug().await,
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
