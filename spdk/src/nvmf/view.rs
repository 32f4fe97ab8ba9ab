//! Which namespaces of a subsystem each of its hosts sees.
//!
//! A host sees all of them unless it was let in with a list. While a subsystem has no such host SPDK shows its
//! namespaces to anybody; from the first one on each namespace has a list of the hosts that see it. Hosts that are
//! connected are told of what comes and goes. I/O of a namespace that goes ends with Invalid Namespace, as for one that
//! is not there, but for what is in flight.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::ready;

use spdk_sys as sys;

use super::pause::paused;
use super::{Subsystem, check_status, host, namespace};
use crate::cstr::cstr;
use crate::error::Error;
use crate::log;
use crate::runtime::Spdk;

/// All namespaces, to a pause: SPDK_NVME_GLOBAL_NS_TAG.
const ALL: u32 = u32::MAX;

/// What a host sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum View {
    /// All namespaces.
    #[default]
    All,
    /// Those of these ids, once they are there.
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
    /// Hosts that do not see all, by the NQNs of the subsystem and of the host.
    static VIEWS: RefCell<HashMap<String, HashMap<String, BTreeSet<u32>>>> = RefCell::default();
    /// Subsystems whose namespaces have lists of hosts.
    static LISTED: RefCell<HashSet<String>> = RefCell::default();
}

/// What the host sees.
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

/// Has a host see this, whether it is let in already or about to be. It sees what it saw after an error.
pub(super) async fn show(spdk: Spdk, nqn: &str, host: &str, shown: View) -> Result<(), Error> {
    let before = view(nqn, host);
    set(nqn, host, shown);
    let settled = settle(spdk, nqn, host, true).await;
    if settled.is_err() {
        set(nqn, host, before);
    }
    settled
}

/// Forgets what a host saw that is no longer let in. Where the subsystem cannot be paused its other hosts see what
/// they saw, and the lists of its namespaces go with a later change.
pub(super) async fn hide(spdk: Spdk, nqn: &str, host: &str) {
    set(nqn, host, View::All);
    if let Err(error) = settle(spdk, nqn, host, false).await {
        let what =
            format!("namespaces of {nqn:?} still have host {host:?} on their lists: {error}");
        log::note(sys::spdk_log_level_SPDK_LOG_WARN, what);
    }
}

/// Before any host may connect: the namespaces of the subsystem have no lists.
pub(super) async fn open(spdk: Spdk, nqn: &str) -> Result<(), Error> {
    settle(spdk, nqn, "", false).await
}

/// Forgets a subsystem that is gone.
pub(super) fn forget_all(nqn: &str) {
    VIEWS.with_borrow_mut(|views| views.remove(nqn));
    LISTED.with_borrow_mut(|listed| listed.remove(nqn));
}

/// Whether a new namespace of the subsystem is shown to nobody until [`list`] has it shown.
pub(super) fn is_listed(nqn: &str) -> bool {
    LISTED.with_borrow(|listed| listed.contains(nqn))
}

/// Shows a new namespace to those that see it. The subsystem is paused.
pub(super) fn list(spdk: Spdk, nqn: &str, subsystem: Subsystem, nsid: u32) -> Result<(), Error> {
    if !is_listed(nqn) {
        return Ok(());
    }
    for host in host::list(spdk, nqn)? {
        tell(subsystem, nsid, &host, view(nqn, &host).has(nsid))?;
    }
    Ok(())
}

/// Makes SPDK agree with what hosts see: those that are let in, and the one that comes or has gone.
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
    // Those who see a namespace before and after go on with it: their I/O waits where it would be seen by nobody.
    let held = if was == is { 0 } else { ALL };
    paused(spdk, OPERATION, nqn, held, move |subsystem| {
        let change = || {
            let mut hosts = host::list(spdk, &name)?;
            hosts.retain(|other| *other != host);
            for namespace in namespace::list(spdk, &name)? {
                let nsid = namespace.nsid;
                // SAFETY: on the app thread, the subsystem paused.
                let rc = unsafe {
                    sys::spdk_nvmf_subsystem_set_ns_visibility(subsystem.as_ptr(), nsid, !is)
                };
                check_status(OPERATION, rc)?;
                if !is {
                    continue;
                }
                tell(
                    subsystem,
                    nsid,
                    &host,
                    comes && view(&name, &host).has(nsid),
                )?;
                for host in &hosts {
                    tell(subsystem, nsid, host, view(&name, host).has(nsid))?;
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

/// Puts a host on a namespace's list, or takes it off. The subsystem is paused.
fn tell(subsystem: Subsystem, nsid: u32, host: &str, sees: bool) -> Result<(), Error> {
    const OPERATION: &str = "show namespace";
    let c_host = cstr("host NQN", host)?;
    let change = match sees {
        true => sys::spdk_nvmf_ns_add_host,
        false => sys::spdk_nvmf_ns_remove_host,
    };
    // SAFETY: on the app thread, the subsystem paused, as the caller has it; SPDK copies the string.
    let rc = unsafe { change(subsystem.as_ptr(), nsid, c_host.as_ptr(), 0) };
    check_status(OPERATION, rc).map_err(|error| error.with_detail(format!("host {host:?}")))
}
