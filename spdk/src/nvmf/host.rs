//! Which hosts may connect to a subsystem, and the keys that they have for it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::ptr::null;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use spdk_sys as sys;

use super::{DISCONNECT_LIMIT, View, Which, disconnect, find, nqn, view};
use crate::app_thread::Spdk;
use crate::completion::{Status, call_within};
use crate::cstr::{cstr, string};
use crate::error::{Error, check};
use crate::keyring;
use crate::log;

/// The keys of a host, as it is given them; an empty one is none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// Pre-shared key of TLS, in interchange form: it connects over TLS with that key alone.
    pub psk: Vec<u8>,
    /// Key of DH-HMAC-CHAP, `DHHC-1:...`: it authenticates with it.
    pub dhchap: Vec<u8>,
    /// By which it knows the controller, of the same form; not without the other.
    pub dhchap_ctrlr: Vec<u8>,
    /// Those of before, which hold beside these for a while.
    pub old: Option<OldKeys>,
}

/// Keys that a host had before, as [`Keys`] has them.
#[derive(Clone, PartialEq, Eq)]
pub struct OldKeys {
    /// Until then the host gets in with them: [`end_old_keys`] ends them.
    pub until: SystemTime,
    /// Of TLS.
    pub psk: Vec<u8>,
    /// Of DH-HMAC-CHAP.
    pub dhchap: Vec<u8>,
    /// By which the host knows the controller while it uses the one above.
    pub dhchap_ctrlr: Vec<u8>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// What the keyring calls the keys of a host.
#[derive(Default)]
struct Names {
    psk: Option<CString>,
    dhchap: Option<CString>,
    dhchap_ctrlr: Option<CString>,
    old_psk: Option<CString>,
    old_dhchap: Option<CString>,
    old_dhchap_ctrlr: Option<CString>,
    /// When the old ones end.
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

    /// Takes the old ones away.
    fn split_old(&mut self) -> Self {
        self.until = None;
        Self {
            old_psk: self.old_psk.take(),
            old_dhchap: self.old_dhchap.take(),
            old_dhchap_ctrlr: self.old_dhchap_ctrlr.take(),
            ..Self::default()
        }
    }

    /// Puts the keys into the keyring, under names that no key had before: SPDK keeps those of DH-HMAC-CHAP by
    /// their names, and has old and new ones at once while they are changed.
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

    /// Takes the keys out of the keyring; one that somebody has removed by SPDK's own commands is gone already.
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

/// Hosts with old keys.
static OLD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The keys of the hosts that were let in here, by the NQNs of the subsystem and of the host.
    static HELD: RefCell<HashMap<(String, String), Names>> = RefCell::default();
    /// How often keys were put into the keyring.
    static PUT: Cell<u64> = const { Cell::new(0) };
}

/// Forgets what keys a host of a subsystem has had.
fn forget(spdk: Spdk, nqn: &str, host: &str) {
    let key = (nqn.to_owned(), host.to_owned());
    if let Some(names) = HELD.with_borrow_mut(|held| held.remove(&key)) {
        names.take(spdk);
    }
    count_old();
}

/// Forgets the keys of all hosts of a subsystem that is gone.
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

/// Lets a host in, with these keys, to see these namespaces.
///
/// ENODEV for an unknown subsystem, EINVAL for a bad NQN or key, EEXIST for a host
/// that is let in already.
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
    // Before it can connect.
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
    // Of one that was kept out by SPDK's own commands.
    forget(spdk, nqn, host);
    let names = Names::put(spdk, host, keys)?;
    let for_c = names.for_c();
    // SAFETY: on the app thread, the subsystem found without an await since; the
    // strings outlive the call.
    let rc =
        unsafe { sys::opi_nvmf_add_host(subsystem.as_ptr(), c_host.as_ptr(), &raw const for_c) };
    let added = check(OPERATION, rc).map_err(|error| error.with_detail(format!("host {host:?}")));
    settle(spdk, nqn, host, names, added)
}

/// Gives a host that is let in by name other keys. It stays connected, and connects anew with these, or their
/// old ones until those end.
///
/// ENODEV for an unknown subsystem, ENOENT for a host that is not let in by name, EINVAL for a bad key. After
/// an error it has the keys that it had.
pub fn set_keys(spdk: Spdk, nqn: &str, host: &str, keys: &Keys) -> Result<(), Error> {
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
    let rc = HELD.with_borrow(|held| {
        let (now, before) = (names.for_c(), held.get(&key).unwrap_or(&none).for_c());
        // SAFETY: as in `allow`; the names of the keys outlive the call too.
        unsafe {
            sys::opi_nvmf_set_host_keys(
                subsystem.as_ptr(),
                c_host.as_ptr(),
                &raw const now,
                &raw const before,
            )
        }
    });
    let set = check(OPERATION, rc).map_err(|error| error.with_detail(format!("host {host:?}")));
    settle(spdk, nqn, host, names, set)
}

/// Whether any host has old keys; any thread.
pub fn has_old_keys() -> bool {
    OLD.load(Ordering::Relaxed) > 0
}

/// Ends the old keys of all hosts whose time is over at `now`.
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
    // What somebody has removed by SPDK's own commands has no keys.
    if let (Ok(subsystem), Ok(c_host)) = (find(spdk, OPERATION, nqn), cstr("host NQN", host)) {
        // SAFETY: on the app thread, the subsystem found without an await since; the string outlives the call.
        unsafe { sys::opi_nvmf_end_old_keys(subsystem.as_ptr(), c_host.as_ptr()) };
    }
    let key = (nqn.to_owned(), host.to_owned());
    let old = HELD.with_borrow_mut(|held| held.get_mut(&key).map(Names::split_old));
    count_old();
    if let Some(old) = old {
        old.take(spdk);
    }
}

/// To be called after each change of `HELD`.
fn count_old() {
    let has_old = |names: &&Names| names.until.is_some();
    let number = HELD.with_borrow(|held| held.values().filter(has_old).count());
    OLD.store(number, Ordering::Relaxed);
}

/// The host has these keys in place of those before, unless that failed.
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

/// Has a host that is let in by name see these namespaces from now on, and tells it if it is connected.
///
/// ENODEV for an unknown subsystem, ENOENT for a host that is not let in by name, ETIMEDOUT if I/O of the
/// subsystem does not complete. After an error it sees what it saw.
pub async fn show(spdk: Spdk, nqn: &str, host: &str, shown: &View) -> Result<(), Error> {
    if !is_allowed(spdk, nqn, host)? {
        return Err(Error::new("show namespaces", libc::ENOENT)
            .with_detail(format!("host {host:?} is not allowed")));
    }
    view::show(spdk, nqn, host, shown.clone()).await
}

/// Keeps a host out from now on and disconnects it. I/O that does not end may hold up the end of a connection: it is
/// not waited for longer than 5 s. ENODEV for an unknown
/// subsystem, ENOENT for a host that was not let in by name.
pub async fn disallow(spdk: Spdk, nqn: &str, host: &str) -> Result<(), Error> {
    const OPERATION: &str = "disallow host";
    let subsystem = find(spdk, OPERATION, nqn)?.as_ptr();
    let c_host = cstr("host NQN", host)?;
    // SAFETY: on the app thread, the subsystem just found; the string outlives
    // the call.
    let rc = unsafe { sys::spdk_nvmf_subsystem_remove_host(subsystem, c_host.as_ptr()) };
    forget(spdk, nqn, host);
    if let Err(error) = check(OPERATION, rc) {
        // What it saw may be left of an attempt before.
        view::hide(spdk, nqn, host).await;
        return Err(error.with_detail(format!("host {host:?}")));
    }
    let ended = call_within::<Status>(spdk, DISCONNECT_LIMIT, OPERATION, |callback, argument| {
        // SAFETY: as above, still without an await; SPDK copies the string, and
        // the callback takes the argument back, once, unless the call is refused.
        unsafe {
            sys::spdk_nvmf_subsystem_disconnect_host(subsystem, c_host.as_ptr(), callback, argument)
        }
    })
    .await;
    view::hide(spdk, nqn, host).await;
    match ended {
        Err(error) if error.errno.0 == libc::ETIMEDOUT => {
            let what = format!(
                "host {host:?} is kept out of {nqn:?}; its connections end once their I/O has"
            );
            log::note(sys::spdk_log_level_SPDK_LOG_WARN, what);
            Ok(())
        }
        ended => check(OPERATION, ended?),
    }
}

/// Lets any host in, or from now on only those allowed by name. Then those that are
/// connected over a network are disconnected: SPDK does not say who they are, and who
/// may still connects again by itself.
pub async fn allow_any(spdk: Spdk, nqn: &str, any: bool) -> Result<(), Error> {
    const OPERATION: &str = "allow any host";
    if any {
        view::open(spdk, nqn).await?;
    }
    let subsystem = find(spdk, OPERATION, nqn)?.as_ptr();
    // SAFETY: on the app thread, the subsystem just found.
    check(OPERATION, unsafe {
        sys::spdk_nvmf_subsystem_set_allow_any_host(subsystem, any)
    })?;
    if any {
        return Ok(());
    }
    match disconnect(spdk, nqn, &Which::default()).await {
        Err(error) if error.errno.0 == libc::ENOENT => Ok(()),
        other => other,
    }
}

/// Whether the host is let in by name.
pub fn is_allowed(spdk: Spdk, nqn: &str, host: &str) -> Result<bool, Error> {
    Ok(list(spdk, nqn)?.iter().any(|allowed| allowed == host))
}

/// The hosts that are let in by name.
pub fn list(spdk: Spdk, nqn: &str) -> Result<Vec<String>, Error> {
    let subsystem = find(spdk, "list hosts", nqn)?.as_ptr();
    let mut hosts = Vec::new();
    // SAFETY: on the app thread, where alone hosts are changed, and without an
    // await in between.
    unsafe {
        let mut host = sys::spdk_nvmf_subsystem_get_first_host(subsystem);
        while !host.is_null() {
            hosts.push(string(sys::spdk_nvmf_host_get_nqn(host)));
            host = sys::spdk_nvmf_subsystem_get_next_host(subsystem, host);
        }
    }
    Ok(hosts)
}
