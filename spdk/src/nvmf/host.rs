//! Admission of hosts to a subsystem, and their keys for it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::ptr::null;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use spdk_sys as sys;

use super::{DISCONNECT_LIMIT, View, Which, find, nqn, view};
use crate::app_thread::Spdk;
use crate::completion::{Status, call_within};
use crate::cstr::{cstr, string};
use crate::error::{Error, check};
use crate::keyring;
use crate::log;

/// The configured keys of a host; an empty key means none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// TLS pre-shared key in interchange format: the host must connect over TLS with it.
    pub psk: Vec<u8>,
    /// DH-HMAC-CHAP key, `DHHC-1:...`: the host must authenticate with it.
    pub dhchap: Vec<u8>,
    /// Key by which the controller proves itself to the host, same format; requires `dhchap`.
    pub dhchap_ctrlr: Vec<u8>,
    /// Previous keys, valid beside the new ones until they expire.
    pub old: Option<OldKeys>,
}

/// Previous keys of a host, with the fields of [`Keys`].
#[derive(Clone, PartialEq, Eq)]
pub struct OldKeys {
    /// Expiry: the host may use these keys until [`end_old_keys`] removes them at this time.
    pub until: SystemTime,
    /// TLS pre-shared key.
    pub psk: Vec<u8>,
    /// DH-HMAC-CHAP key.
    pub dhchap: Vec<u8>,
    /// Key by which the controller proves itself while the host uses the old `dhchap`.
    pub dhchap_ctrlr: Vec<u8>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// Names of a host's keys in SPDK's keyring.
#[derive(Default)]
struct Names {
    psk: Option<CString>,
    dhchap: Option<CString>,
    dhchap_ctrlr: Option<CString>,
    old_psk: Option<CString>,
    old_dhchap: Option<CString>,
    old_dhchap_ctrlr: Option<CString>,
    /// Expiry of the old keys.
    until: Option<SystemTime>,
}

impl Names {
    fn for_c(&self) -> sys::opi_nvmf_host_keys {
        let name = |name: &Option<CString>| name.as_ref().map_or(null(), |name| name.as_ptr());
        sys::opi_nvmf_host_keys {
            psk: name(&self.psk),
            dhchap: name(&self.dhchap),
            dhchap_ctrlr: name(&self.dhchap_ctrlr),
            old_psk: name(&self.old_psk),
            old_dhchap: name(&self.old_dhchap),
            old_dhchap_ctrlr: name(&self.old_dhchap_ctrlr),
        }
    }

    /// Moves the old keys out.
    fn split_old(&mut self) -> Self {
        self.until = None;
        Self {
            old_psk: self.old_psk.take(),
            old_dhchap: self.old_dhchap.take(),
            old_dhchap_ctrlr: self.old_dhchap_ctrlr.take(),
            ..Self::default()
        }
    }

    /// Adds the keys to the keyring under unique names: SPDK holds DH-HMAC-CHAP keys by name, and old and new keys
    /// coexist during a change.
    fn put(spdk: Spdk, host: &str, keys: &Keys) -> Result<Self, Error> {
        let number = PUT.get();
        PUT.set(number.wrapping_add(1));
        let mut names = Self::default();
        let none = Vec::new();
        let old = keys.old.as_ref();
        names.until = old.map(|old| old.until);
        let old_key = |key: fn(&OldKeys) -> &Vec<u8>| old.map_or(&none, key);
        let all = [
            ("psk", &keys.psk, &mut names.psk),
            ("dhchap", &keys.dhchap, &mut names.dhchap),
            ("dhchap-ctrlr", &keys.dhchap_ctrlr, &mut names.dhchap_ctrlr),
            ("old-psk", old_key(|old| &old.psk), &mut names.old_psk),
            (
                "old-dhchap",
                old_key(|old| &old.dhchap),
                &mut names.old_dhchap,
            ),
            (
                "old-dhchap-ctrlr",
                old_key(|old| &old.dhchap_ctrlr),
                &mut names.old_dhchap_ctrlr,
            ),
        ];
        let mut added = Ok(());
        for (role, key, name) in all {
            if key.is_empty() || added.is_err() {
                continue;
            }
            let text = format!("{host} {role} {number}").replace(':', "/");
            added = cstr("key name", &text).and_then(|c_name| {
                keyring::add(spdk, &text, key)?;
                *name = Some(c_name);
                Ok(())
            });
        }
        match added {
            Ok(()) => Ok(names),
            Err(error) => {
                names.take(spdk);
                Err(error)
            }
        }
    }

    /// Removes the keys from the keyring; a key that SPDK's own commands have removed is no error.
    fn take(self, spdk: Spdk) {
        let names = [
            self.psk,
            self.dhchap,
            self.dhchap_ctrlr,
            self.old_psk,
            self.old_dhchap,
            self.old_dhchap_ctrlr,
        ];
        for name in names.iter().flatten() {
            let removed = name.to_str().map(|name| keyring::remove(spdk, name));
            if let Ok(Err(error)) = removed
                && error.errno.0 != libc::ENOKEY
            {
                log::note(
                    sys::spdk_log_level_SPDK_LOG_WARN,
                    format!("a key stays in SPDK's keyring: {error}"),
                );
            }
        }
    }
}

/// Number of hosts with old keys.
static OLD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Keys of the hosts that this module admitted, by subsystem NQN and host NQN.
    static HELD: RefCell<HashMap<(String, String), Names>> = RefCell::default();
    /// Number of times that keys were added to the keyring; makes their names unique.
    static PUT: Cell<u64> = const { Cell::new(0) };
}

/// Drops the keys of a host of a subsystem, also from the keyring.
fn forget(spdk: Spdk, nqn: &str, host: &str) {
    let key = (nqn.to_owned(), host.to_owned());
    if let Some(names) = HELD.with_borrow_mut(|held| held.remove(&key)) {
        names.take(spdk);
    }
    count_old();
}

/// Drops the keys of all hosts of a deleted subsystem.
pub(super) fn forget_all(spdk: Spdk, nqn: &str) {
    let names: Vec<Names> = HELD.with_borrow_mut(|held| {
        let gone = held.extract_if(|(of, _), _| of == nqn);
        gone.map(|(_, names)| names).collect()
    });
    for names in names {
        names.take(spdk);
    }
    count_old();
}

/// Admits a host to a subsystem with these keys and this view of its namespaces.
///
/// ENODEV for an unknown subsystem, EINVAL for an invalid NQN or key, EEXIST for a host that is already admitted.
pub async fn allow(
    spdk: Spdk,
    nqn: &str,
    host: &str,
    keys: &Keys,
    shown: &View,
) -> Result<(), Error> {
    const OPERATION: &str = "allow host";
    nqn::check(host).map_err(|reason| Error::new(OPERATION, libc::EINVAL).with_detail(reason))?;
    find(spdk, OPERATION, nqn)?;
    if is_allowed(spdk, nqn, host)? {
        return Err(Error::new(OPERATION, libc::EEXIST)
            .with_detail(format!("host {host:?} is allowed already")));
    }
    // Set before the host can connect.
    view::show(spdk, nqn, host, shown.clone()).await?;
    match add(spdk, nqn, host, keys) {
        Err(error) => {
            view::hide(spdk, nqn, host).await;
            Err(error)
        }
        added => added,
    }
}

fn add(spdk: Spdk, nqn: &str, host: &str, keys: &Keys) -> Result<(), Error> {
    const OPERATION: &str = "allow host";
    let subsystem = find(spdk, OPERATION, nqn)?;
    let c_host = cstr("host NQN", host)?;
    // Keys left by a host that SPDK's own commands have removed.
    forget(spdk, nqn, host);
    let names = Names::put(spdk, host, keys)?;
    let for_c = names.for_c();
    // SAFETY: on the app thread; no await since the subsystem was found, so the pointer is valid; the strings outlive
    // the call.
    let rc =
        unsafe { sys::opi_nvmf_add_host(subsystem.as_ptr(), c_host.as_ptr(), &raw const for_c) };
    let added = check(OPERATION, rc).map_err(|error| error.with_detail(format!("host {host:?}")));
    settle(spdk, nqn, host, names, added)
}

/// Replaces the keys of a host admitted by name. It stays connected; its next connections need the new keys, or the old
/// ones until these expire. Its first DH-HMAC-CHAP key ends its connections, none of which has proved whose it is;
/// I/O that does not complete may delay the end, which is awaited for 5 s at most.
///
/// ENODEV for an unknown subsystem, ENOENT for a host that is not admitted by name, EINVAL for an invalid key. After an
/// error that is settled the host keeps its previous keys.
pub async fn set_keys(spdk: Spdk, nqn: &str, host: &str, keys: &Keys) -> Result<(), Error> {
    const OPERATION: &str = "change keys of host";
    let subsystem = find(spdk, OPERATION, nqn)?;
    if !is_allowed(spdk, nqn, host)? {
        return Err(Error::new(OPERATION, libc::ENOENT)
            .with_detail(format!("host {host:?} is not allowed")));
    }
    let c_host = cstr("host NQN", host)?;
    let names = Names::put(spdk, host, keys)?;
    let key = (nqn.to_owned(), host.to_owned());
    let none = Names::default();
    let (rc, is_first) = HELD.with_borrow(|held| {
        let held = held.get(&key).unwrap_or(&none);
        let is_first = names.dhchap.is_some() && held.dhchap.is_none();
        let (now, before) = (names.for_c(), held.for_c());
        // SAFETY: as in `add`; the names of the previous keys outlive the call too.
        let rc = unsafe {
            sys::opi_nvmf_set_host_keys(
                subsystem.as_ptr(),
                c_host.as_ptr(),
                &raw const now,
                &raw const before,
            )
        };
        (rc, is_first)
    });
    let set = check(OPERATION, rc).map_err(|error| error.with_detail(format!("host {host:?}")));
    settle(spdk, nqn, host, names, set)?;
    match is_first {
        true => (disconnect(spdk, nqn, host).await).map_err(Error::unsettled),
        false => Ok(()),
    }
}

/// Whether any host has old keys; callable from any thread.
pub fn has_old_keys() -> bool {
    OLD.load(Ordering::Relaxed) > 0
}

/// Removes the old keys of all hosts whose expiry is at or before `now`.
pub fn end_old_keys(spdk: Spdk, now: SystemTime) {
    let over: Vec<_> = HELD.with_borrow(|held| {
        let over = (held.iter()).filter(|(_, names)| names.until.is_some_and(|until| until <= now));
        over.map(|(key, _)| key.clone()).collect()
    });
    for (nqn, host) in over {
        end(spdk, &nqn, &host);
        log::note(
            sys::spdk_log_level_SPDK_LOG_INFO,
            format!("old keys of a host have ended: host {host:?} of {nqn:?}"),
        );
    }
}

fn end(spdk: Spdk, nqn: &str, host: &str) {
    const OPERATION: &str = "end old keys of host";
    // A subsystem that SPDK's own commands have removed has no keys left.
    if let (Ok(subsystem), Ok(c_host)) = (find(spdk, OPERATION, nqn), cstr("host NQN", host)) {
        // SAFETY: on the app thread; no await since the subsystem was found, so the pointer is valid; the string
        // outlives the call.
        unsafe { sys::opi_nvmf_end_old_keys(subsystem.as_ptr(), c_host.as_ptr()) };
    }
    let key = (nqn.to_owned(), host.to_owned());
    let old = HELD.with_borrow_mut(|held| held.get_mut(&key).map(Names::split_old));
    count_old();
    if let Some(old) = old {
        old.take(spdk);
    }
}

/// Updates [`OLD`]; must be called after each change of `HELD`.
fn count_old() {
    let has_old = |names: &&Names| names.until.is_some();
    let number = HELD.with_borrow(|held| held.values().filter(has_old).count());
    OLD.store(number, Ordering::Relaxed);
}

/// Commits the new keys as the host's current ones, or on failure keeps the previous ones; drops the others.
fn settle(
    spdk: Spdk,
    nqn: &str,
    host: &str,
    names: Names,
    result: Result<(), Error>,
) -> Result<(), Error> {
    let key = (nqn.to_owned(), host.to_owned());
    let unused = match result {
        Ok(()) => HELD.with_borrow_mut(|held| held.insert(key, names)),
        Err(_) => Some(names),
    };
    count_old();
    if let Some(unused) = unused {
        unused.take(spdk);
    }
    result
}

/// Replaces the view of a host admitted by name, and notifies the host if it is connected.
///
/// ENODEV for an unknown subsystem, ENOENT for a host that is not admitted by name, ETIMEDOUT if the subsystem's I/O
/// does not drain. After an error the host keeps its previous view.
pub async fn show(spdk: Spdk, nqn: &str, host: &str, shown: &View) -> Result<(), Error> {
    if !is_allowed(spdk, nqn, host)? {
        return Err(Error::new("show namespaces", libc::ENOENT)
            .with_detail(format!("host {host:?} is not allowed")));
    }
    view::show(spdk, nqn, host, shown.clone()).await
}

/// Revokes a host's admission and disconnects it. I/O that does not complete may delay the disconnect, which is awaited
/// for 5 s at most. ENODEV for an unknown subsystem, ENOENT for a host that is not admitted by name.
pub async fn disallow(spdk: Spdk, nqn: &str, host: &str) -> Result<(), Error> {
    const OPERATION: &str = "disallow host";
    let subsystem = find(spdk, OPERATION, nqn)?.as_ptr();
    let c_host = cstr("host NQN", host)?;
    // SAFETY: on the app thread; no await since the subsystem was found, so the pointer is valid; the string outlives
    // the call.
    let rc = unsafe { sys::spdk_nvmf_subsystem_remove_host(subsystem, c_host.as_ptr()) };
    forget(spdk, nqn, host);
    if let Err(error) = check(OPERATION, rc) {
        // A view may be left over from an earlier attempt.
        view::hide(spdk, nqn, host).await;
        return Err(error.with_detail(format!("host {host:?}")));
    }
    let ended = disconnect(spdk, nqn, host).await;
    view::hide(spdk, nqn, host).await;
    ended
}

/// Ends the connections of a host, which may connect again if it is admitted. I/O that does not complete may delay the
/// end, which is awaited for 5 s at most. ENODEV for an unknown subsystem.
async fn disconnect(spdk: Spdk, nqn: &str, host: &str) -> Result<(), Error> {
    const OPERATION: &str = "disconnect host";
    let subsystem = find(spdk, OPERATION, nqn)?.as_ptr();
    let c_host = cstr("host NQN", host)?;
    let ended = call_within::<Status>(spdk, DISCONNECT_LIMIT, OPERATION, |callback, argument| {
        // SAFETY: on the app thread; no await since the subsystem was found, so the pointer is valid; SPDK copies the
        // string, and the callback reclaims the argument exactly once, unless the call is refused.
        unsafe {
            sys::spdk_nvmf_subsystem_disconnect_host(subsystem, c_host.as_ptr(), callback, argument)
        }
    })
    .await;
    match ended {
        Err(error) if error.errno.0 == libc::ETIMEDOUT => {
            let what =
                format!("the connections of host {host:?} to {nqn:?} end once their I/O has");
            log::note(sys::spdk_log_level_SPDK_LOG_WARN, what);
            Ok(())
        }
        ended => check(OPERATION, ended?),
    }
}

/// Admits any host, or from now on only hosts admitted by name. In the latter case all hosts connected over a network
/// are disconnected, since SPDK does not tell which hosts they are; those still admitted reconnect by themselves.
pub async fn allow_any(spdk: Spdk, nqn: &str, any: bool) -> Result<(), Error> {
    const OPERATION: &str = "allow any host";
    if any {
        view::open(spdk, nqn).await?;
    }
    let subsystem = find(spdk, OPERATION, nqn)?.as_ptr();
    // SAFETY: on the app thread; no await since the subsystem was found, so the pointer is valid.
    check(OPERATION, unsafe {
        sys::spdk_nvmf_subsystem_set_allow_any_host(subsystem, any)
    })?;
    if any {
        return Ok(());
    }
    match super::disconnect(spdk, nqn, &Which::default()).await {
        Err(error) if error.errno.0 == libc::ENOENT => Ok(()),
        Err(error) if error.errno.0 == libc::ETIMEDOUT => {
            let what = format!(
                "hosts that {nqn:?} does not admit by name are kept out; their connections end once their I/O has"
            );
            log::note(sys::spdk_log_level_SPDK_LOG_WARN, what);
            Ok(())
        }
        other => other,
    }
}

/// Returns whether the host is admitted by name.
pub fn is_allowed(spdk: Spdk, nqn: &str, host: &str) -> Result<bool, Error> {
    Ok(list(spdk, nqn)?.iter().any(|allowed| allowed == host))
}

/// Returns the hosts admitted by name.
pub fn list(spdk: Spdk, nqn: &str) -> Result<Vec<String>, Error> {
    let subsystem = find(spdk, "list hosts", nqn)?.as_ptr();
    let mut hosts = Vec::new();
    // SAFETY: on the app thread, the only thread that changes the list of hosts; the walk has no await.
    unsafe {
        let mut host = sys::spdk_nvmf_subsystem_get_first_host(subsystem);
        while !host.is_null() {
            hosts.push(string(sys::spdk_nvmf_host_get_nqn(host)));
            host = sys::spdk_nvmf_subsystem_get_next_host(subsystem, host);
        }
    }
    Ok(hosts)
}
