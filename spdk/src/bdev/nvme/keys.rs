//! DH-HMAC-CHAP keys, held for a controller and a host NQN, and shared by all paths that connect as that host. Existing
//! connections reauthenticate when the keys change.
//!
//! ```text
//! set_keys ─► keys set on each connection ─► working ones reauthenticate, queue by queue ─► old keys removed
//!                                              │  └─ connection lost ─► reconnected ─► retry
//!                                              └─ refused, or reconnect failed ─► rollback to the old keys
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
use crate::step::spawn_local;
use crate::timer::sleep;

const OPERATION: &str = "set keys of NVMe controller";

/// Poll period of a path that is being connected, or is down until its next reconnect.
const RETRY: Duration = Duration::from_millis(20);

/// How long a connection whose keys were refused counts as working, since SPDK reconnects it after at most 8 s. A
/// change of keys within that time is accepted only if the new keys are proved.
const REFUSED: Duration = Duration::from_secs(15);

/// A host's keys for a controller; an empty key means none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// Key of this host, `DHHC-1:...`.
    pub dhchap: Vec<u8>,
    /// Key of the controller (mutual authentication), same format; requires `dhchap`.
    pub dhchap_ctrlr: Vec<u8>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// Names of the keys in SPDK's keyring.
#[derive(Default)]
pub(super) struct Names {
    dhchap: Option<CString>,
    dhchap_ctrlr: Option<CString>,
}

thread_local! {
    /// Current keys, by controller name and host NQN.
    static HELD: RefCell<HashMap<(String, String), Rc<Names>>> = RefCell::default();
    /// Number of times that keys were added to the keyring; makes their names unique.
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

    /// Adds the keys to the keyring under unique names: old and new keys coexist during a change.
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

    /// Removes the keys from the keyring. Connections that are authenticating hold references to them.
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

/// Returns a host's keys for a controller, whether or not the controller is attached.
pub(super) fn held(controller: &str, host: &str) -> Rc<Names> {
    let key = (controller.to_owned(), host.to_owned());
    HELD.with_borrow(|held| held.get(&key).cloned().unwrap_or_default())
}

/// Replaces the keys and returns the previous ones.
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

/// Replaces a host's keys for a controller, for future and existing connections. A working connection reauthenticates
/// if the peer demands authentication or has a key of its own; it stays connected, and I/O waits meanwhile. If it is
/// lost meanwhile, a reconnect with the new keys counts as proof. A connection that was down before uses the new keys
/// at its next reconnect. Empty keys turn authentication off for later connections; existing ones stay. With
/// `instead_of` the keys of that host are removed once the new keys are accepted.
///
/// EPERM, with the reason, if a peer refuses the keys or does not prove itself; EHOSTUNREACH, with the reason, if a
/// lost connection cannot be reconnected; ETIMEDOUT if a peer has not answered within `limit`. After an error the
/// previous keys are restored (rollback), and connections lost on the way reconnect with them.
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

/// One exchange of keys, under the lock of [`set_keys`].
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

/// Returns the connections of a host to a controller; a failover controller has one for all its paths. Empty before the
/// controller is attached.
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
        // SAFETY: on the app thread (the caller has proof); the ID, the key names and the strings outlive the call.
        let rc = unsafe {
            let (dhchap, dhchap_ctrlr) = (names.dhchap(), names.dhchap_ctrlr());
            sys::opi_nvme_set_keys(c_name.as_ptr(), &id, source.as_ptr(), dhchap, dhchap_ctrlr)
        };
        match -rc {
            // The connection has been detached meanwhile.
            libc::ENXIO => {}
            _ => check(OPERATION, rc).map_err(|error| error.with_detail(of(path)))?,
        }
    }
    Ok(())
}

/// Reauthenticates the connections concurrently. A connection that was down before is not a failure.
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

/// Outcome of one attempt to reauthenticate a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The keys were proved on each queue.
    Proved,
    /// The connection or one of its queues is connecting or authenticating, perhaps still with the old keys.
    Connecting,
    /// The connection is down.
    Down,
    /// The path has been detached, or neither side demands authentication.
    Unasked,
    /// The connection was lost meanwhile, or the peer did not answer.
    Ended,
}

/// Reauthentication of one connection with new keys.
struct Exchange {
    name: String,
    path: Path,
    /// The connection worked when the exchange began: the keys must be proved on it or on its successor.
    has_begun: Cell<bool>,
}

impl Exchange {
    async fn run(self: Rc<Self>, spdk: Spdk, give_up: Instant, done: Promise<Result<(), Error>>) {
        connection::forget(&self.path);
        let outcome = loop {
            match self.attempt().await {
                Ok(Step::Proved | Step::Unasked) => break Ok(()),
                Ok(Step::Down) if !self.has_begun.get() => match self.refused() {
                    // A reconnect was due, perhaps still with the old keys; the next attempt uses the new ones.
                    Some(_) => {
                        connection::forget(&self.path);
                        self.has_begun.set(true);
                    }
                    None => break Ok(()),
                },
                Ok(Step::Down) => {
                    // No failure recorded: the reconnect has not been attempted yet.
                    if let Some(error) = connection::failure(OPERATION, &self.path) {
                        break Err(error);
                    }
                }
                Ok(Step::Connecting) => {}
                // Earlier failures say nothing about the next connection.
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

    /// Returns why the peer has refused the connection since the exchange began.
    fn refused(&self) -> Option<Error> {
        let failure = connection::failure(OPERATION, &self.path);
        failure.filter(|error| error.errno.0 == libc::EPERM)
    }

    /// The outcome at the deadline: success for a path that was down before and still is, since it can prove nothing.
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
        // Set before awaiting the status, which may arrive after the deadline.
        let had_begun = self.has_begun.replace(true);
        // SAFETY: on the app thread; `opi_nvme_authenticate` of the shim fulfils the contract of `done`.
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

/// Connections whose keys were refused recently.
mod refusals {
    use super::{Error, HashMap, Instant, Path, REFUSED, RefCell, of};

    /// Controller name, path and host NQN.
    type Connection = (String, String, String);

    thread_local! {
        /// App thread. Bounded by the number of connections: an entry is removed by the next proof, or when it expires.
        static NOTED: RefCell<HashMap<Connection, Instant>> = RefCell::default();
    }

    fn key(name: &str, path: &Path) -> Connection {
        (name.to_owned(), of(path), path.hostnqn.clone())
    }

    /// Records how the exchange of a connection ended.
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

    /// Returns whether the keys of a connection were refused within [`REFUSED`].
    pub(super) fn is_recent(name: &str, path: &Path) -> bool {
        NOTED.with_borrow(|noted| {
            let at = noted.get(&key(name, path));
            at.is_some_and(|at| at.elapsed() < REFUSED)
        })
    }
}

/// Maps a status of the shim to a step; `None` if the peer refused the keys or did not prove itself.
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
