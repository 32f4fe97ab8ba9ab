//! Visibility of a subsystem's namespaces, per host.
//!
//! A host sees all namespaces unless it was admitted with a list, its view; a namespace is shown to all hosts unless it
//! has a mask, the hosts that may see it. A host sees what both allow. Masks belong to the names of namespaces, so that
//! a mask can be set before its namespace is added, and remains when that is removed and added again.
//!
//! In SPDK a namespace is visible to all hosts or has a list of hosts. It has a list while it has a mask, or while any
//! host of its subsystem has a view. Connected hosts are notified of changes. I/O to a namespace that becomes hidden
//! fails with Invalid Namespace, like I/O to one that does not exist, except for commands in flight.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::ready;
use std::rc::Rc;

use spdk_sys as sys;

use super::pause::paused;
use super::{Subsystem, check_status, host, namespace};
use crate::app_thread::Spdk;
use crate::cstr::cstr;
use crate::error::Error;
use crate::log;

/// What a host sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum View {
    /// All namespaces.
    #[default]
    All,
    /// Only the namespaces with these IDs, existing or future.
    Only(BTreeSet<u32>),
}

/// Visibility of the namespaces of one subsystem.
#[derive(Debug, Default)]
struct Visibility {
    /// Namespace IDs that hosts see, of the hosts that do not see everything.
    views: HashMap<String, BTreeSet<u32>>,
    /// Hosts that may see a namespace, by the name of the namespace.
    masks: HashMap<String, BTreeSet<String>>,
    /// Names of the namespaces in SPDK, by ID, of those that were added with one.
    names: HashMap<u32, String>,
    /// Lists of the namespaces in SPDK, by ID, of those that have one.
    lists: BTreeMap<u32, BTreeSet<String>>,
}

impl Visibility {
    fn is_empty(&self) -> bool {
        let Self {
            views,
            masks,
            names,
            lists,
        } = self;
        views.is_empty() && masks.is_empty() && names.is_empty() && lists.is_empty()
    }

    fn view(&self, host: &str) -> View {
        let only = self.views.get(host);
        only.map_or(View::All, |nsids| View::Only(nsids.clone()))
    }

    fn set_view(&mut self, host: &str, view: View) {
        match view {
            View::All => self.views.remove(host),
            View::Only(nsids) => self.views.insert(host.to_owned(), nsids),
        };
    }

    /// Sets the mask of the namespace with this name; returns the previous one.
    fn set_mask(
        &mut self,
        name: &str,
        hosts: Option<BTreeSet<String>>,
    ) -> Option<BTreeSet<String>> {
        match hosts {
            Some(hosts) => self.masks.insert(name.to_owned(), hosts),
            None => self.masks.remove(name),
        }
    }

    /// Returns the hosts that are to be on the list of a namespace; `None` for all hosts, without a list. A mask may
    /// name hosts that are not admitted, since any host may connect to a subsystem that is open.
    fn wanted(
        &self,
        nsid: u32,
        name: Option<&str>,
        admitted: &BTreeSet<String>,
    ) -> Option<BTreeSet<String>> {
        let mask = name.and_then(|name| self.masks.get(name));
        if mask.is_none() && self.views.is_empty() {
            return None;
        }
        let sees = |host: &&String| {
            let view = self.views.get(*host);
            view.is_none_or(|nsids| nsids.contains(&nsid))
        };
        let hosts = mask.unwrap_or(admitted).iter();
        Some(hosts.filter(sees).cloned().collect())
    }

    fn name(&self, nsid: u32) -> Option<&str> {
        self.names.get(&nsid).map(String::as_str)
    }
}

thread_local! {
    /// Visibility of namespaces, by the NQN of the subsystem.
    static ALL: RefCell<HashMap<String, Visibility>> = RefCell::default();
    /// Hosts that go on seeing the namespace whose visibility is being set.
    static STILL_SEEING: RefCell<BTreeSet<String>> = RefCell::default();
}

fn with<T>(nqn: &str, access: impl FnOnce(&mut Visibility) -> T) -> T {
    ALL.with_borrow_mut(|all| {
        let of = all.entry(nqn.to_owned()).or_default();
        let result = access(of);
        if of.is_empty() {
            all.remove(nqn);
        }
        result
    })
}

/// Sets what a host sees, whether it is admitted already or about to be. Rolled back on an error.
pub(super) async fn show(spdk: Spdk, nqn: &str, host: &str, shown: View) -> Result<(), Error> {
    let before = with(nqn, |of| {
        let before = of.view(host);
        of.set_view(host, shown);
        before
    });
    let settled = settle_host(spdk, nqn, host, true).await;
    if settled.is_err() {
        with(nqn, |of| of.set_view(host, before));
    }
    settled
}

/// Forgets the view of a host that is no longer admitted. If the subsystem cannot be paused, other hosts' views are
/// unaffected, and the stale list entries are removed by a later change.
pub(super) async fn hide(spdk: Spdk, nqn: &str, host: &str) {
    with(nqn, |of| of.set_view(host, View::All));
    if let Err(error) = settle_host(spdk, nqn, host, false).await {
        let what =
            format!("namespaces of {nqn:?} still have host {host:?} on their lists: {error}");
        log::note(sys::spdk_log_level_SPDK_LOG_WARN, what);
    }
}

/// Called before any host is allowed: removes the lists of the subsystem's namespaces without a mask.
pub(super) async fn open(spdk: Spdk, nqn: &str) -> Result<(), Error> {
    settle_host(spdk, nqn, "", false).await
}

/// Sets the mask of the namespace with this name. Rolled back on an error.
pub(super) async fn mask(
    spdk: Spdk,
    nqn: &str,
    name: &str,
    hosts: Option<BTreeSet<String>>,
) -> Result<(), Error> {
    super::find(spdk, "show namespaces", nqn)?;
    let before = with(nqn, |of| of.set_mask(name, hosts));
    let has_run = Rc::new(Cell::new(false));
    let settled = settle_mask(spdk, nqn, name, &has_run).await;
    let Err(error) = settled else { return Ok(()) };
    with(nqn, |of| of.set_mask(name, before));
    match has_run.get() {
        true => Err(error.after_undo(settle_mask(spdk, nqn, name, &has_run).await)),
        false => Err(error),
    }
}

/// Sets the mask of the namespace with this name for when it is added, and leaves SPDK as it is.
pub(super) fn note_mask(nqn: &str, name: &str, hosts: Option<BTreeSet<String>>) {
    with(nqn, |of| of.set_mask(name, hosts));
}

/// Returns whether the namespace with this name has a mask.
pub(super) fn has_mask(nqn: &str, name: &str) -> bool {
    with(nqn, |of| of.masks.contains_key(name))
}

/// Forgets a deleted subsystem, except for masks: they are deleted by themselves.
pub(super) fn forget_all(nqn: &str) {
    with(nqn, |of| {
        of.views.clear();
        of.names.clear();
        of.lists.clear();
    });
}

/// Forgets removed namespaces.
pub(super) fn forget(nqn: &str, which: impl Fn(u32) -> bool) {
    with(nqn, |of| {
        of.names.retain(|nsid, _| !which(*nsid));
        of.lists.retain(|nsid, _| !which(*nsid));
    });
}

/// Returns whether a new namespace of this name has to stay hidden until [`list`] shows it.
pub(super) fn is_listed(nqn: &str, name: &str) -> bool {
    with(nqn, |of| {
        !of.views.is_empty() || of.masks.contains_key(name)
    })
}

/// Shows a new namespace, `hidden` or not, to the hosts that may see it. The subsystem must be paused.
pub(super) fn list(
    spdk: Spdk,
    nqn: &str,
    subsystem: Subsystem,
    (nsid, name): (u32, &str),
    hidden: bool,
) -> Result<(), Error> {
    with(nqn, |of| {
        // Of before a loss of its bdev, by which SPDK removed it.
        of.names.retain(|id, it| *id != nsid && it != name);
        if !name.is_empty() {
            of.names.insert(nsid, name.to_owned());
        }
        match hidden {
            true => of.lists.insert(nsid, BTreeSet::new()),
            false => of.lists.remove(&nsid),
        };
    });
    apply(subsystem, nqn, nsid, &admitted(spdk, nqn)?)
}

fn admitted(spdk: Spdk, nqn: &str) -> Result<BTreeSet<String>, Error> {
    Ok(host::list(spdk, nqn)?.into_iter().collect())
}

/// Reconciles SPDK with the views of all admitted hosts and of `host`, which is being admitted (`comes`) or removed.
async fn settle_host(spdk: Spdk, nqn: &str, host: &str, comes: bool) -> Result<(), Error> {
    if with(nqn, |of| of.views.is_empty() && of.lists.is_empty()) {
        return Ok(());
    }
    let mut hosts = admitted(spdk, nqn)?;
    change(&mut hosts, host, comes);
    // Masks alone do not depend on who is admitted.
    let is_settled = with(nqn, |of| {
        let as_wanted = |(nsid, list): (&u32, &BTreeSet<String>)| {
            of.wanted(*nsid, of.name(*nsid), &hosts).as_ref() == Some(list)
        };
        of.views.is_empty() && of.lists.iter().all(as_wanted)
    });
    if is_settled {
        return Ok(());
    }
    let (name, host) = (nqn.to_owned(), host.to_owned());
    paused(spdk, "show namespaces", nqn, 0, move |subsystem| {
        let settle = || {
            let mut hosts = admitted(spdk, &name)?;
            change(&mut hosts, &host, comes);
            let all = namespace::list(spdk, &name)?;
            all.iter()
                .try_for_each(|of| apply(subsystem, &name, of.nsid, &hosts))
        };
        ready(settle())
    })
    .await
}

fn change(hosts: &mut BTreeSet<String>, host: &str, comes: bool) {
    match comes {
        true => hosts.insert(host.to_owned()),
        false => hosts.remove(host),
    };
}

/// Reconciles SPDK with the mask of the namespace with this name, if that is added. `has_run` tells whether anything
/// was tried.
async fn settle_mask(
    spdk: Spdk,
    nqn: &str,
    name: &str,
    has_run: &Rc<Cell<bool>>,
) -> Result<(), Error> {
    let find = |of: &mut Visibility| {
        let mut names = of.names.iter();
        let found = names.find(|(_, it)| *it == name);
        found.map(|(nsid, _)| *nsid)
    };
    let Some(nsid) = with(nqn, find) else {
        return Ok(());
    };
    if !namespace::exists(spdk, nqn, nsid) {
        forget(nqn, |id| id == nsid);
        return Ok(());
    }
    let (subnqn, name, has_run) = (nqn.to_owned(), name.to_owned(), Rc::clone(has_run));
    paused(spdk, "show namespaces", nqn, 0, move |subsystem| {
        let settle = || {
            // SPDK removes a namespace whose bdev goes away, also while this waited for the pause.
            let is_it = with(&subnqn, |of| of.name(nsid) == Some(&name));
            if !is_it || !namespace::exists(spdk, &subnqn, nsid) {
                return Ok(());
            }
            has_run.set(true);
            apply(subsystem, &subnqn, nsid, &admitted(spdk, &subnqn)?)
        };
        ready(settle())
    })
    .await
}

/// Reconciles the list of one namespace in SPDK. The subsystem must be paused.
fn apply(
    subsystem: Subsystem,
    nqn: &str,
    nsid: u32,
    admitted: &BTreeSet<String>,
) -> Result<(), Error> {
    let (wanted, before) = with(nqn, |of| {
        let wanted = of.wanted(nsid, of.name(nsid), admitted);
        (wanted, of.lists.get(&nsid).cloned())
    });
    let still_seeing = match &before {
        None => wanted.clone().unwrap_or_default(),
        Some(_) => BTreeSet::new(),
    };
    set_listed(subsystem, nsid, wanted.is_some(), still_seeing)?;
    let Some(wanted) = wanted else {
        with(nqn, |of| of.lists.remove(&nsid));
        return Ok(());
    };
    let before = before.unwrap_or_default();
    with(nqn, |of| of.lists.insert(nsid, before.clone()));
    for host in before.difference(&wanted) {
        tell(subsystem, nsid, host, false)?;
        on_list(nqn, nsid, |list| list.remove(host));
    }
    for host in wanted.difference(&before) {
        tell(subsystem, nsid, host, true)?;
        on_list(nqn, nsid, |list| list.insert(host.clone()));
    }
    Ok(())
}

fn on_list(nqn: &str, nsid: u32, access: impl FnOnce(&mut BTreeSet<String>) -> bool) {
    with(nqn, |of| of.lists.get_mut(&nsid).map(access));
}

/// Gives a namespace a list of hosts, or makes it visible to all. The subsystem must be paused.
///
/// With its list, which begins empty, SPDK hides the namespace from all hosts but those that go on seeing it; an SPDK
/// without the changes of this project hides it from these as well, until they are on the list.
fn set_listed(
    subsystem: Subsystem,
    nsid: u32,
    listed: bool,
    still_seeing: BTreeSet<String>,
) -> Result<(), Error> {
    STILL_SEEING.set(still_seeing);
    // SAFETY: runs on the app thread, with the subsystem paused.
    let rc =
        unsafe { sys::spdk_nvmf_subsystem_set_ns_visibility(subsystem.as_ptr(), nsid, !listed) };
    STILL_SEEING.take();
    check_status("show namespaces", rc)
}

/// Returns whether a host goes on seeing the namespace whose visibility is being set. Called by SPDK's hook.
pub(crate) fn still_sees(host: &[u8]) -> bool {
    std::str::from_utf8(host)
        .is_ok_and(|host| STILL_SEEING.with_borrow(|seeing| seeing.contains(host)))
}

/// Adds a host to a namespace's list, or removes it. The subsystem must be paused.
fn tell(subsystem: Subsystem, nsid: u32, host: &str, sees: bool) -> Result<(), Error> {
    const OPERATION: &str = "show namespace";
    let c_host = cstr("host NQN", host)?;
    let change = match sees {
        true => sys::spdk_nvmf_ns_add_host,
        false => sys::spdk_nvmf_ns_remove_host,
    };
    // SAFETY: runs on the app thread; the caller has paused the subsystem; SPDK copies the string.
    let rc = unsafe { change(subsystem.as_ptr(), nsid, c_host.as_ptr(), 0) };
    check_status(OPERATION, rc).map_err(|error| error.with_detail(format!("host {host:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_host_sees_what_its_view_and_the_mask_allow() {
        let mut of = Visibility::default();
        let admitted = hosts(&["a", "b", "c"]);
        let wanted = |of: &Visibility, nsid, name| of.wanted(nsid, Some(name), &admitted);
        assert_eq!(wanted(&of, 1, "one"), None);
        of.set_mask("one", Some(hosts(&["a", "stranger"])));
        assert_eq!(wanted(&of, 1, "one"), Some(hosts(&["a", "stranger"])));
        assert_eq!(wanted(&of, 2, "two"), None, "it has no mask");

        of.set_view("b", View::Only(BTreeSet::from([2])));
        assert_eq!(wanted(&of, 1, "one"), Some(hosts(&["a", "stranger"])));
        assert_eq!(wanted(&of, 2, "two"), Some(admitted.clone()));
        assert_eq!(wanted(&of, 3, "three"), Some(hosts(&["a", "c"])));
        of.set_view("a", View::Only(BTreeSet::from([2])));
        assert_eq!(wanted(&of, 1, "one"), Some(hosts(&["stranger"])));

        of.set_mask("one", Some(BTreeSet::new()));
        assert_eq!(wanted(&of, 1, "one"), Some(BTreeSet::new()), "nobody");
        of.set_mask("one", None);
        for host in ["a", "b"] {
            of.set_view(host, View::All);
        }
        assert!(of.is_empty());
    }

    #[test]
    fn masks_outlive_their_subsystem_and_their_namespaces() {
        with("s", |of| {
            of.set_view("a", View::Only(BTreeSet::new()));
            of.names.insert(1, "one".to_owned());
            of.lists.insert(1, BTreeSet::new());
        });
        note_mask("s", "one", Some(BTreeSet::new()));
        forget("s", |nsid| nsid == 1);
        assert!(has_mask("s", "one") && is_listed("s", "two"));
        forget_all("s");
        assert!(is_listed("s", "one") && !is_listed("s", "two"));
        note_mask("s", "one", None);
        assert!(ALL.with_borrow(HashMap::is_empty));
    }
}
