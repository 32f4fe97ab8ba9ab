//! KVM mode: plugs controllers as PCI devices into a running QEMU, over its QMP monitor.
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
//! QEMU may restart or crash at any time, also because of a command. No state of QEMU is cached between operations:
//! each one queries it. Concurrent operations share a connection, since the monitor serves one client at a time, and
//! the last one closes it.

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
pub use plugged::{Kvm, Pluggable, Plugged, Slots};

use crate::error::Error;
use fault::Fault;
use operation::Operation;
use session::{Session, with_deadline};
use state::{Chardev, Presence};

/// Timeout for the rollback of a failed plug, also past the deadline.
const UNDO: Duration = Duration::from_secs(3);

/// Retries of an unplug after its connection broke, and the backoff between them: a crashing QEMU closes the
/// connection first and the listening socket a little later.
const RECONNECTS: u32 = 5;
const RECONNECT: Duration = Duration::from_millis(200);

/// The QEMU to plug into.
#[derive(Clone)]
pub struct Machine(Arc<Inner>);

struct Inner {
    address: Address,
    buses: Vec<String>,
    /// Whether vfio-user devices are unplugged also from a QEMU that is known to crash then.
    force_unplug: bool,
    session: tokio::sync::Mutex<Weak<Session>>,
}

impl Machine {
    /// Creates a client for the monitor at `address`; `buses` are the PCI buses that physical functions are mapped to.
    /// Does not connect yet.
    pub fn new(address: Address, buses: Vec<String>, force_unplug: bool) -> Self {
        Self(Arc::new(Inner {
            address,
            buses,
            force_unplug,
            session: tokio::sync::Mutex::default(),
        }))
    }

    /// The location of a physical function.
    ///
    /// # Errors
    /// The valid functions, if this one has no location.
    pub fn place(&self, physical_function: i32) -> Result<Place, String> {
        Place::of(physical_function, &self.0.buses)
    }

    /// Plugs a device whose socket is being served. Returns when a guest driver has taken the device, or after a
    /// timeout with a logged warning: a guest that is booting takes it later. A failed plug is rolled back; where that fails
    /// too, the error is unsettled.
    ///
    /// Idempotent: a device of this ID that QEMU already has is kept if it is in its place and connected, or will be
    /// (vhost-user, which QEMU reconnects). Otherwise it is replaced, unless unplugging it would crash QEMU.
    ///
    /// # Errors
    /// UNAVAILABLE if QEMU does not run or ends in the meantime, DEADLINE_EXCEEDED, and FAILED_PRECONDITION with
    /// QEMU's description if QEMU refuses (no such bus, slot in use).
    pub async fn plug(&self, device: &Device, deadline: Instant) -> Result<(), Error> {
        let plugged = self.keep_or_plug(device, deadline).await;
        plugged.map_err(|fault| fault.during(&format!("plug the device {}", device.id), &device.id))
    }

    /// Plugs a device again that QEMU has lost, for example by a restart.
    ///
    /// # Errors
    /// See [`plug`](Self::plug).
    pub async fn renew(&self, device: &Device, deadline: Instant) -> Result<(), Error> {
        let renewed = self.plug_if_absent(device, deadline).await;
        renewed.map_err(|fault| fault.during(&format!("plug the device {}", device.id), &device.id))
    }

    /// Unplugs the device of this ID and waits until the guest has released it. Idempotent: succeeds if QEMU does not
    /// have the device, or does not run.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the guest or QEMU refuses; DEADLINE_EXCEEDED if the guest does not answer, though it may
    /// still release the device later; UNAVAILABLE if it is unknown whether QEMU runs.
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
        // vfio-user: QEMU connects only once, so a device with a connection is being served.
        let is_served = is_there && !device.model.has_chardev() && is_connected(device).await;
        if is_served && operation.is_at(&device.place).await? {
            return Ok(());
        }
        if is_there || chardev.is_some() {
            self.remove(&device.id, device.model, deadline).await?;
        }
        // The removal may have crashed QEMU, so this is a new operation.
        let plugged = self
            .operation(&device.id, deadline)
            .await?
            .plug(device)
            .await;
        let Err(fault) = plugged else { return Ok(()) };
        let undo = Instant::now() + UNDO;
        match self.remove(&device.id, device.model, undo).await {
            Ok(()) => Err(fault),
            Err(left) => {
                tracing::error!(device = device.id, %left, "could not undo a plug that failed: QEMU may still have the device");
                Err(Fault::Left(Box::new(fault)))
            }
        }
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
                    with_deadline(deadline, "QEMU's monitor did not come back", pause).await?;
                }
                other => return other,
            }
        }
    }

    /// Joins the shared connection, or opens one.
    async fn operation<'a>(&self, id: &'a str, deadline: Instant) -> Result<Operation<'a>, Fault> {
        let mut session = with_deadline(
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

/// Whether the device's socket has a client; `false` if unknown.
async fn is_connected(device: &Device) -> bool {
    let connected = crate::connected::is_connected(&device.socket).await;
    connected.unwrap_or(false)
}
