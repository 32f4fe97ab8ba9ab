//! Visibility of a subsystem's namespaces, per host.
//!
//! A host sees all namespaces unless it was admitted with a list. While no host of a subsystem has a list, SPDK
//! shows its namespaces to every host; from the first one on, each namespace has a list of the hosts that see it.
//! Connected hosts are notified of changes. I/O to a namespace that becomes hidden fails with Invalid Namespace,
//! like I/O to one that does not exist, except for commands in flight.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::ready;

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

impl View {
    fn has(&self, nsid: u32) -> bool {
        match self {
            Self::All => true,
            Self::Only(nsids) => nsids.contains(&nsid),
        }
    }
}

thread_local! {
    /// Hosts that do not see everything, by the NQNs of subsystem and host.
    static VIEWS: RefCell<HashMap<String, HashMap<String, BTreeSet<u32>>>> = RefCell::default();
    /// Subsystems whose namespaces have lists of hosts.
    static LISTED: RefCell<HashSet<String>> = RefCell::default();
    /// Hosts that go on seeing the namespace whose visibility is being set.
    static STILL_SEEING: RefCell<BTreeSet<String>> = RefCell::default();
}

/// Returns what a host sees.
fn view(nqn: &str, host: &str) -> View {
    VIEWS.with_borrow(|views| {
        let only = views.get(nqn).and_then(|hosts| hosts.get(host));
        only.map_or(View::All, |nsids| View::Only(nsids.clone()))
    })
}

fn set(nqn: &str, host: &str, view: View) {
    VIEWS.with_borrow_mut(|views| {
        let hosts = views.entry(nqn.to_owned()).or_default();
        match view {
            View::All => hosts.remove(host),
            View::Only(nsids) => hosts.insert(host.to_owned(), nsids),
        };
        if hosts.is_empty() {
            views.remove(nqn);
        }
    });
}

/// Sets what a host sees, whether it is admitted already or about to be. Rolled back on an error.
pub(super) async fn show(spdk: Spdk, nqn: &str, host: &str, shown: View) -> Result<(), Error> {
    let before = view(nqn, host);
    set(nqn, host, shown);
    let settled = settle(spdk, nqn, host, true).await;
    if settled.is_err() {
        set(nqn, host, before);
    }
    settled
}

/// Forgets the view of a host that is no longer admitted. If the subsystem cannot be paused, other hosts' views are
/// unaffected, and the stale list entries are removed by a later change.
pub(super) async fn hide(spdk: Spdk, nqn: &str, host: &str) {
    set(nqn, host, View::All);
    if let Err(error) = settle(spdk, nqn, host, false).await {
        let what =
            format!("namespaces of {nqn:?} still have host {host:?} on their lists: {error}");
        log::note(sys::spdk_log_level_SPDK_LOG_WARN, what);
    }
}

/// Called before any host is allowed: removes the lists of the subsystem's namespaces.
pub(super) async fn open(spdk: Spdk, nqn: &str) -> Result<(), Error> {
    settle(spdk, nqn, "", false).await
}

/// Forgets a deleted subsystem.
pub(super) fn forget_all(nqn: &str) {
    VIEWS.with_borrow_mut(|views| views.remove(nqn));
    LISTED.with_borrow_mut(|listed| listed.remove(nqn));
}

/// Returns whether new namespaces of the subsystem stay hidden until [`list`] shows them.
pub(super) fn is_listed(nqn: &str) -> bool {
    LISTED.with_borrow(|listed| listed.contains(nqn))
}

/// Shows a new namespace to the hosts that may see it. The subsystem must be paused.
pub(super) fn list(spdk: Spdk, nqn: &str, subsystem: Subsystem, nsid: u32) -> Result<(), Error> {
    if !is_listed(nqn) {
        return Ok(());
    }
    for host in host::list(spdk, nqn)? {
        tell(subsystem, nsid, &host, view(nqn, &host).has(nsid))?;
    }
    Ok(())
}

/// Reconciles SPDK with the views of all admitted hosts and of `host`, which is being admitted (`comes`) or removed.
async fn settle(spdk: Spdk, nqn: &str, host: &str, comes: bool) -> Result<(), Error> {
    const OPERATION: &str = "show namespaces";
    let (was, is) = (
        is_listed(nqn),
        VIEWS.with_borrow(|views| views.contains_key(nqn)),
    );
    if !was && !is {
        return Ok(());
    }
    let (name, host) = (nqn.to_owned(), host.to_owned());
    paused(spdk, OPERATION, nqn, 0, move |subsystem| {
        let change = || {
            let mut hosts = host::list(spdk, &name)?;
            hosts.retain(|other| *other != host);
            let hosts: Vec<_> = std::iter::once((host, comes))
                .chain(hosts.into_iter().map(|other| (other, true)))
                .collect();
            for namespace in namespace::list(spdk, &name)? {
                let nsid = namespace.nsid;
                let sees = |(host, stays): &(String, bool)| *stays && view(&name, host).has(nsid);
                let still_seeing = hosts.iter().filter(|host| !was && sees(host));
                let still_seeing = still_seeing.map(|(host, _)| host.clone()).collect();
                set_listed(subsystem, nsid, is, still_seeing)?;
                if is {
                    for host in &hosts {
                        tell(subsystem, nsid, &host.0, sees(host))?;
                    }
                }
            }
            LISTED.with_borrow_mut(|listed| match is {
                true => listed.insert(name),
                false => listed.remove(&name),
            });
            Ok(())
        };
        ready(change())
    })
    .await
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
