//! The vhost-user backend: the protocol on one thread per device, the rings on SPDK threads.
//!
//! ```text
//!  app thread          control thread of a device            worker (SPDK thread of a core)
//!  serve, withdraw ──► socket ─ messages ─ mappings ── jobs ──► session: rings ─► Io ─► bdev
//!        ▲                 ▲                                       │
//!        └── made, ended ──┘◄───────── answers, bell ──────────────┘
//! ```
//!
//! Only validated rings and memory of a client reach the worker, and a reactor never waits for a client.
//! `spdk_gate::vhost_user` defines what is valid.

mod call;
mod client;
mod control;
mod device;
mod dirty;
mod inflight;
mod journal;
mod memory;
mod opened;
mod queue;
mod request;
mod room;
mod session;
mod shared;
mod signal;
mod socket;
#[cfg(test)]
mod tests;
mod worker;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

pub(crate) use device::{Device, Io};
pub(crate) use opened::{Bdev, Opened, Owner};
pub(crate) use request::Request;
pub(crate) use session::Queues;
pub use socket::Access;

use self::control::Control;
use self::shared::Shared;
use crate::app_thread::Spdk;
use crate::cores::CoreSet;
use crate::deadline::within;
use crate::error::Error;
use crate::timer::sleep;

/// How long a removal drains outstanding requests, before the rest is left to the device's own thread.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// How long all devices may take to end during teardown.
const STOP_LIMIT: Duration = Duration::from_millis(1500);

/// First backoff between attempts to remove a device while a client is connected; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Last backoff before giving up. In total half a second, which a machine needs to disconnect after an unplug.
const LAST_PAUSE: Duration = Duration::from_millis(256);

/// Stack of a control thread, in bytes; there is no recursion.
const STACK: usize = 256 << 10;

/// Cores of control threads.
static CONTROL: OnceLock<CoreSet> = OnceLock::new();

/// A device, as the app thread sees it.
struct Entry {
    shared: Arc<Shared>,
    ended: Rest,
}

thread_local! {
    static DEVICES: RefCell<BTreeMap<String, Entry>> = const { RefCell::new(BTreeMap::new()) };
    /// Removed devices that may still have outstanding requests, which teardown has to abort too. What a device holds is
    /// released when it has ended.
    static REMOVED: RefCell<Vec<(Weak<Shared>, Rest)>> = const { RefCell::new(Vec::new()) };
    static ACCESS: RefCell<Access> = const { RefCell::new(Access { group: None, mode: None }) };
}

/// The rest of a removed device: ends once its last request is done. Its memory and its bdev are in use until then.
#[derive(Clone)]
pub(crate) struct Rest(watch::Receiver<()>);

impl Rest {
    /// Resolves when the device has released everything.
    pub(crate) async fn ended(mut self) {
        // Nothing is sent: the drop of the sender ends the wait.
        let _ = self.0.changed().await;
    }

    fn has_ended(&self) -> bool {
        self.0.has_changed().is_err()
    }
}

/// Notifies the client of a device that the configuration space has changed. Any thread.
#[derive(Clone)]
pub(crate) struct Notifier(Arc<Shared>);

impl Notifier {
    pub(crate) fn config_changed(&self) {
        self.0.note_config();
    }
}

/// Sets the cores of control threads. Must be called before the first device is created.
pub(crate) fn set_control_cores(cores: &CoreSet) {
    // Set once: there is only one runtime per process.
    let _ = CONTROL.set(cores.clone());
}

/// Sets the owner group and mode of sockets created from now on.
pub fn set_access(_: Spdk, access: Access) {
    ACCESS.set(access);
}

/// Returns the names of all devices.
pub(crate) fn names(_: Spdk) -> Vec<String> {
    DEVICES.with_borrow(|devices| devices.keys().cloned().collect())
}

/// Returns how many devices have a client.
pub(crate) fn connections(_: Spdk) -> usize {
    DEVICES.with_borrow(|devices| {
        let shared = devices.values().map(|device| &device.shared);
        shared.filter(|shared| shared.is_connected()).count()
    })
}

/// Returns whether there is a device of that name.
pub(crate) fn is_there(_: Spdk, name: &str) -> bool {
    DEVICES.with_borrow(|devices| devices.contains_key(name))
}

/// Serves a device at a socket. EEXIST for a name in use, EADDRNOTAVAIL if the socket cannot be created.
pub(crate) async fn serve<D: Device>(
    spdk: Spdk,
    operation: &'static str,
    kind: &'static str,
    name: &str,
    path: &Path,
    device: Arc<D>,
) -> Result<Notifier, Error> {
    if is_there(spdk, name) {
        return Err(Error::new(operation, libc::EEXIST)
            .with_detail(format!("there is a vhost controller {name:?} already")));
    }
    let booking = worker::book(spdk)?;
    let shared = Arc::new(Shared::new()?);
    let (made_sender, made) = oneshot::channel();
    let (ended_sender, ended) = watch::channel(());
    let control = Control {
        name: name.to_owned(),
        kind,
        path: path.to_owned(),
        access: ACCESS.with_borrow(|access| *access),
        device,
        shared: shared.clone(),
        booking,
        made: made_sender,
        ended: ended_sender,
    };
    let entry = Entry {
        shared: shared.clone(),
        ended: Rest(ended),
    };
    DEVICES.with_borrow_mut(|devices| devices.insert(name.to_owned(), entry));
    let made = match start(control) {
        Ok(()) => made
            .await
            .unwrap_or_else(|_| Err(Error::new(operation, libc::ECANCELED))),
        Err(error) => Err(Error::new(
            operation,
            error.raw_os_error().unwrap_or(libc::EAGAIN),
        )),
    };
    if let Err(error) = made {
        DEVICES.with_borrow_mut(|devices| devices.remove(name));
        return Err(error);
    }
    Ok(Notifier(shared))
}

/// Starts a control thread, pinned away from the reactor's core, whose affinity it would inherit.
fn start<D: Device>(control: Control<D>) -> std::io::Result<()> {
    let builder = std::thread::Builder::new()
        .name("vhost-user".to_owned())
        .stack_size(STACK);
    let thread = builder.spawn(move || {
        if let Some(cores) = CONTROL.get() {
            // A failure to move the thread only costs performance.
            let _ = cores.pin_current_thread();
        }
        control.run();
    });
    thread.map(drop)
}

/// Removes a device and its socket. ENODEV if there is none of that name, EBUSY while a client is connected. Returns
/// within 4 s; requests still outstanding then are returned as [`Rest`].
pub(crate) async fn withdraw(
    spdk: Spdk,
    operation: &'static str,
    name: &str,
) -> Result<Option<Rest>, Error> {
    let mut pause = FIRST_PAUSE;
    loop {
        let closed = DEVICES.with_borrow(|devices| Some(devices.get(name)?.shared.close()));
        match closed {
            None => {
                return Err(Error::new(operation, libc::ENODEV)
                    .with_detail(format!("there is no vhost controller {name:?}")));
            }
            Some(true) => break,
            Some(false) if pause > LAST_PAUSE => {
                return Err(Error::new(operation, libc::EBUSY)
                    .with_detail(format!("a virtual machine is connected to {name:?}")));
            }
            Some(false) => sleep(spdk, pause).await,
        }
        pause *= 2;
    }
    let Some(entry) = DEVICES.with_borrow_mut(|devices| devices.remove(name)) else {
        return Ok(None);
    };
    let rest = entry.ended.clone();
    // Recorded before the wait, whose caller may give up: until the device has ended, teardown must know of it.
    REMOVED.with_borrow_mut(|removed| {
        removed.retain(|(_, rest)| !rest.has_ended());
        removed.push((Arc::downgrade(&entry.shared), entry.ended));
    });
    match within(spdk, DRAIN_LIMIT, rest.clone().ended()).await {
        Some(()) => Ok(None),
        None => Ok(Some(rest)),
    }
}

/// Ends all devices with their clients, removed devices that still drain, and the workers. Requests in flight are
/// aborted. A worker must not end before the last device: the device could not end its session any more.
pub(crate) async fn stop(spdk: Spdk) {
    let mut rests = Vec::new();
    for (shared, rest) in REMOVED.take() {
        if let Some(shared) = shared.upgrade() {
            shared.force();
        }
        rests.push(rest);
    }
    for entry in DEVICES.take().into_values() {
        entry.shared.force();
        rests.push(entry.ended);
    }
    let all = async {
        for rest in rests {
            rest.ended().await;
        }
    };
    if within(spdk, STOP_LIMIT, all).await.is_some() {
        worker::stop(spdk);
    }
}
