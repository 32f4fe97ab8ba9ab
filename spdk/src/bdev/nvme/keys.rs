//! Keys of DH-HMAC-CHAP: of a controller and a host NQN, for all paths that connect so. Connections that are there
//! authenticate anew.
//!
//! ```text
//! set_keys ─► each connection has them ─► those that work authenticate, queue by queue ─► the keys of before go
//!                                           │  └─ ended ─► connected again ─► once more
//!                                           └─ refused, or not connected again ─► each has those of before
//! ```

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::fmt;
use std::ptr::null;
use std::rc::Rc;
use std::time::{Duration, Instant};

use spdk_sys as sys;

use super::{Path, connection, paths};
use crate::app_thread::Spdk;
use crate::completion::{Promise, completion};
use crate::cstr::cstr;
use crate::deadline::within;
use crate::error::{Error, check};
use crate::keyring;
use crate::locks::lock;
use crate::timer::sleep;
use spdk_control::executor::spawn_local;

const OPERATION: &str = "set keys of NVMe controller";

/// Poll period of a path that is being connected, or is down and has yet to be tried again.
const RETRY: Duration = Duration::from_millis(20);

/// How long a connection whose keys were refused counts as one that works: it is connected again meanwhile, after at most
/// 8 s. A change that comes within that time is not taken unless the new keys are proved.
const REFUSED: Duration = Duration::from_secs(15);

/// The keys that a host has for a controller; an empty one is none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// By which this host proves itself, `DHHC-1:...`.
    pub dhchap: Vec<u8>,
    /// By which the controller is to prove itself, of the same form; not without the other.
    pub dhchap_ctrlr: Vec<u8>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// What the keyring calls the keys.
#[derive(Default)]
pub(super) struct Names {
    dhchap: Option<CString>,
    dhchap_ctrlr: Option<CString>,
}

thread_local! {
    /// The keys of controllers, by the controllers' names and the hosts' NQNs.
    static HELD: RefCell<HashMap<(String, String), Rc<Names>>> = RefCell::default();
    /// How often keys were put into the keyring.
    static PUT: Cell<u64> = const { Cell::new(0) };
}

impl Names {
    pub(super) fn dhchap(&self) -> *const c_char {
        self.dhchap.as_ref().map_or(null(), |name| name.as_ptr())
    }

    pub(super) fn dhchap_ctrlr(&self) -> *const c_char {
        let name = self.dhchap_ctrlr.as_ref();
        name.map_or(null(), |name| name.as_ptr())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.dhchap.is_none()
    }

    /// Puts the keys into the keyring, under names that no key had before: old and new ones are there at once.
    fn put(spdk: Spdk, controller: &str, keys: &Keys) -> Result<Self, Error> {
        let number = PUT.get();
        PUT.set(number.wrapping_add(1));
        let put = |role: &str, key: &[u8]| {
            if key.is_empty() {
                return Ok(None);
            }
            let name = format!("nvmeRemoteControllers/{controller} {role} {number}");
            let c_name = cstr("key name", &name)?;
            keyring::add(spdk, &name, key)?;
            Ok::<_, Error>(Some(c_name))
        };
        let mut names = Self {
            dhchap: put("dhchap", &keys.dhchap)?,
            dhchap_ctrlr: None,
        };
        match put("dhchap-ctrlr", &keys.dhchap_ctrlr) {
            Ok(name) => {
                names.dhchap_ctrlr = name;
                Ok(names)
            }
            Err(error) => {
                names.take(spdk);
                Err(error)
            }
        }
    }

    /// Takes the keys out of the keyring. Connections that are authenticating with them hold on to them.
    fn take(&self, spdk: Spdk) {
        for name in [&self.dhchap, &self.dhchap_ctrlr].into_iter().flatten() {
            let removed = name.to_str().map(|name| keyring::remove(spdk, name));
            if let Ok(Err(error)) = removed
                && error.errno.0 != libc::ENOKEY
            {
                tracing::warn!(%error, "a key stays in SPDK's keyring");
            }
        }
    }
}

/// The keys that a host has for a controller, whether or not that is attached.
pub(super) fn held(controller: &str, host: &str) -> Rc<Names> {
    let key = (controller.to_owned(), host.to_owned());
    HELD.with_borrow(|held| held.get(&key).cloned().unwrap_or_default())
}

/// Answers those before.
fn hold(controller: &str, host: &str, names: Rc<Names>) -> Rc<Names> {
    let key = (controller.to_owned(), host.to_owned());
    let before = HELD.with_borrow_mut(|held| {
        if names.is_empty() {
            held.remove(&key)
        } else {
            held.insert(key, names)
        }
    });
    before.unwrap_or_default()
}

/// Gives a host these keys for a controller in place of those that it had: for the paths by which it will connect, and
/// for those that are there. Connections that work authenticate anew, where the peer demands that or has a key of its own;
/// they stay, and I/O waits meanwhile. One that ends meanwhile is connected again with the new keys, which counts. Those
/// that were down before use the keys when they are connected next. Without keys nothing authenticates, and what is
/// connected stays. With `instead_of` the keys of that host go, once the new ones are taken.
///
/// EPERM, with the reason, if a peer refuses the keys or does not prove itself; EHOSTUNREACH, with the reason, if one whose
/// connection has ended cannot be connected again, ETIMEDOUT if one has not answered within `limit`: then the host has the
/// keys of before, and connections that have ended so are connected anew with them.
pub async fn set_keys(
    spdk: Spdk,
    name: &str,
    host: &str,
    keys: &Keys,
    instead_of: Option<&str>,
    limit: Duration,
) -> Result<(), Error> {
    let give_up = Instant::now() + limit;
    let Some(_alone) = within(spdk, limit, lock("NVMe keys", name)).await else {
        let detail = format!("another change of the keys of {name:?} has not ended in time");
        return Err(Error::new(OPERATION, libc::ETIMEDOUT).with_detail(detail));
    };
    exchange(spdk, name, host, keys, give_up).await?;
    let Some(host_before) = instead_of else {
        return Ok(());
    };
    let none = Keys::default();
    match exchange(spdk, name, host_before, &none, give_up).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let back = exchange(spdk, name, host, &none, give_up).await;
            Err(error.after_undo(back))
        }
    }
}

/// The same under the lock.
async fn exchange(
    spdk: Spdk,
    name: &str,
    host: &str,
    keys: &Keys,
    give_up: Instant,
) -> Result<(), Error> {
    let connections = connections(spdk, name, host);
    let new = Rc::new(Names::put(spdk, name, keys)?);
    let old = hold(name, host, Rc::clone(&new));
    let mut set = give_all(name, &connections, &new);
    if set.is_ok() && !new.is_empty() {
        set = authenticate_all(spdk, name, connections, give_up).await;
    }
    if set.is_ok() {
        old.take(spdk);
        return Ok(());
    }
    hold(name, host, Rc::clone(&old));
    let back = give_all(name, &self::connections(spdk, name, host), &old);
    new.take(spdk);
    set.map_err(|error| error.after_undo(back))
}

/// The connections of a host to a controller: one for all paths that stand by for one another. None before the controller
/// is attached.
fn connections(spdk: Spdk, name: &str, host: &str) -> Vec<Path> {
    let mut connections = paths(spdk, name).unwrap_or_default();
    connections.retain(|path| path.active && path.hostnqn == host);
    connections
}

fn of(path: &Path) -> String {
    let id = path.id().map(|id| id.to_string());
    id.unwrap_or_else(|| path.subsystem.clone())
}

fn give_all(name: &str, connections: &[Path], names: &Names) -> Result<(), Error> {
    let c_name = cstr("controller name", name)?;
    for path in connections {
        let Some(id) = path.id() else { continue };
        let (id, source) = id.to_c()?;
        // SAFETY: on the app thread (the caller has proof); id, names and strings outlive the call.
        let rc = unsafe {
            let (dhchap, dhchap_ctrlr) = (names.dhchap(), names.dhchap_ctrlr());
            sys::opi_nvme_set_keys(c_name.as_ptr(), &id, source.as_ptr(), dhchap, dhchap_ctrlr)
        };
        match -rc {
            // It has gone meanwhile.
            libc::ENXIO => {}
            _ => check(OPERATION, rc).map_err(|error| error.with_detail(of(path)))?,
        }
    }
    Ok(())
}

/// Has the connections authenticate side by side. One that was down before is no failure.
async fn authenticate_all(
    spdk: Spdk,
    name: &str,
    connections: Vec<Path>,
    give_up: Instant,
) -> Result<(), Error> {
    let mut waiting = Vec::new();
    for path in connections {
        let (done, is_done) = completion();
        let has_begun = Cell::new(refusals::is_recent(name, &path));
        let exchange = Rc::new(Exchange {
            name: name.to_owned(),
            path,
            has_begun,
        });
        waiting.push((Rc::clone(&exchange), is_done));
        spawn_local(exchange.run(spdk, give_up, done));
    }
    let mut failed = None;
    for (exchange, is_done) in waiting {
        let left = give_up.saturating_duration_since(Instant::now());
        let outcome = match within(spdk, left, is_done).await {
            Some(outcome) => outcome?,
            None => exchange.is_late(),
        };
        refusals::note(&exchange.name, &exchange.path, &outcome);
        if let Err(error) = outcome {
            let what = error.detail.clone().unwrap_or_else(|| error.to_string());
            let what = format!("{}: {what}", of(&exchange.path));
            failed.get_or_insert(error.with_detail(what));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Outcome of one attempt to have a connection authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Each of its queues has proved the keys.
    Proved,
    /// The connection, or a queue of it, is being connected or authenticates, maybe with the old keys.
    Connecting,
    /// The connection is down.
    Down,
    /// The path has been detached, or neither side asks for authentication.
    Unasked,
    /// The connection has ended meanwhile, or the peer did not answer.
    Ended,
}

/// The authentication of one connection with new keys.
struct Exchange {
    name: String,
    path: Path,
    /// The connection worked when the exchange began: the keys are taken only if it, or the one after it, proves them.
    has_begun: Cell<bool>,
}

impl Exchange {
    async fn run(self: Rc<Self>, spdk: Spdk, give_up: Instant, done: Promise<Result<(), Error>>) {
        connection::forget(&self.path);
        let outcome = loop {
            match self.attempt().await {
                Ok(Step::Proved | Step::Unasked) => break Ok(()),
                Ok(Step::Down) if !self.has_begun.get() => match self.refused() {
                    // It was about to be connected, perhaps with the old keys still: the next attempt has the new ones.
                    Some(_) => {
                        connection::forget(&self.path);
                        self.has_begun.set(true);
                    }
                    None => break Ok(()),
                },
                Ok(Step::Down) => {
                    // Without a failure the reconnect has yet to be tried.
                    if let Some(error) = connection::failure(OPERATION, &self.path) {
                        break Err(error);
                    }
                }
                Ok(Step::Connecting) => {}
                // What failed before has nothing to do with the connection to come.
                Ok(Step::Ended) => connection::forget(&self.path),
                Err(error) => break Err(error),
            }
            if Instant::now() >= give_up {
                break self.is_late();
            }
            sleep(spdk, RETRY).await;
        };
        done.complete(outcome);
    }

    /// Why the peer has refused the connection since the exchange began.
    fn refused(&self) -> Option<Error> {
        let failure = connection::failure(OPERATION, &self.path);
        failure.filter(|error| error.errno.0 == libc::EPERM)
    }

    /// The outcome at the deadline: success for a path that was down before and still is, since nothing can be proved.
    fn is_late(&self) -> Result<(), Error> {
        if !self.has_begun.get() {
            return self.refused().map_or(Ok(()), Err);
        }
        let late = || {
            let detail = "the connection has not authenticated in time".to_owned();
            Error::new(OPERATION, libc::ETIMEDOUT).with_detail(detail)
        };
        Err(connection::failure(OPERATION, &self.path).unwrap_or_else(late))
    }

    async fn attempt(&self) -> Result<Step, Error> {
        // Set before the answer, which may come after the deadline.
        let had_begun = self.has_begun.replace(true);
        // SAFETY: on the app thread; the shim's function, which calls back as it has to.
        let done = unsafe {
            connection::done(
                OPERATION,
                &self.name,
                &self.path,
                sys::opi_nvme_authenticate,
            )
        };
        let (status, reason) = match done.await {
            Ok(None) => (-libc::ENXIO, None),
            Ok(Some(ended)) => (ended.status, ended.reason),
            Err(error) if step(-error.errno.0).is_none() => return Err(error),
            Err(error) => {
                self.has_begun.set(had_begun);
                (-error.errno.0, None)
            }
        };
        step(status).ok_or_else(|| {
            let unknown = || "one of its queues could not be authenticated".to_owned();
            Error::new(OPERATION, libc::EPERM).with_detail(reason.unwrap_or_else(unknown))
        })
    }
}

/// Connections whose keys were refused a moment ago.
mod refusals {
    use super::{Error, HashMap, Instant, Path, REFUSED, RefCell, of};

    /// Controller, path and host.
    type Connection = (String, String, String);

    thread_local! {
        /// On the app thread. As many as there are connections at most: each goes with its next proof, or its time.
        static NOTED: RefCell<HashMap<Connection, Instant>> = RefCell::default();
    }

    fn key(name: &str, path: &Path) -> Connection {
        (name.to_owned(), of(path), path.hostnqn.clone())
    }

    /// Takes note of how the exchange of a connection ended.
    pub(super) fn note(name: &str, path: &Path, outcome: &Result<(), Error>) {
        let refused = matches!(outcome, Err(error) if error.errno.0 == libc::EPERM);
        NOTED.with_borrow_mut(|noted| {
            noted.retain(|_, at| at.elapsed() < REFUSED);
            match refused {
                true => noted.insert(key(name, path), Instant::now()),
                false => noted.remove(&key(name, path)),
            }
        });
    }

    /// Whether the keys of a connection were refused within [`REFUSED`].
    pub(super) fn is_recent(name: &str, path: &Path) -> bool {
        NOTED.with_borrow(|noted| {
            let at = noted.get(&key(name, path));
            at.is_some_and(|at| at.elapsed() < REFUSED)
        })
    }
}

/// The step that a status of the shim stands for; `None` where the peer has refused the keys or has not proved itself.
fn step(status: i32) -> Option<Step> {
    match -status {
        0 => Some(Step::Proved),
        libc::EBUSY | libc::EALREADY => Some(Step::Connecting),
        libc::ENOTCONN => Some(Step::Down),
        libc::ENXIO | libc::EOPNOTSUPP => Some(Step::Unasked),
        libc::ECANCELED | libc::ETIMEDOUT => Some(Step::Ended),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_proof_or_a_connection_that_is_not_there_is_good() {
        for (errno, expected) in [
            (0, Some(Step::Proved)),
            (libc::EBUSY, Some(Step::Connecting)),
            (libc::EALREADY, Some(Step::Connecting)),
            (libc::ENOTCONN, Some(Step::Down)),
            (libc::ENXIO, Some(Step::Unasked)),
            (libc::EOPNOTSUPP, Some(Step::Unasked)),
            (libc::ECANCELED, Some(Step::Ended)),
            (libc::ETIMEDOUT, Some(Step::Ended)),
            (libc::EACCES, None),
            (libc::EIO, None),
            (libc::EINVAL, None),
            (libc::ENOKEY, None),
        ] {
            assert_eq!(step(-errno), expected, "{errno}");
        }
    }

    #[test]
    fn keys_are_not_shown() {
        let keys = Keys {
            dhchap: b"DHHC-1:00:secret:".to_vec(),
            dhchap_ctrlr: Vec::new(),
        };
        assert_eq!(format!("{keys:?}"), "Keys { .. }");
    }
}
