//! The hosts that are connected.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};

use spdk_sys as sys;

use super::{check_status, target};
use crate::completion::{Promise, completion};
use crate::cstr::string;
use crate::error::Error;
use crate::runtime::Spdk;

/// What C holds while the poll groups are walked. Subsystems are told apart by their addresses, which
/// are not followed.
struct Query {
    hosts: HashMap<usize, u64>,
    promise: Promise<(HashMap<usize, u64>, c_int)>,
}

/// How many hosts are connected to each subsystem, by its NQN; one that has none is not there. A host that
/// is connected to several controllers of a subsystem counts once for each.
pub async fn connected_hosts(spdk: Spdk) -> Result<HashMap<String, u64>, Error> {
    const OPERATION: &str = "count hosts";
    let target = target(spdk, OPERATION)?.as_ptr();
    let (promise, pending) = completion();
    let query = Box::into_raw(Box::new(Query {
        hosts: HashMap::new(),
        promise,
    }));
    // SAFETY: on the app thread; `query` stays until `on_done`, which always comes, last.
    unsafe {
        sys::opi_nvmf_for_each_host(target, Some(on_host), Some(on_done), query.cast());
    }
    let (hosts, status) = pending.await?;
    check_status(OPERATION, status)?;
    let mut by_nqn = HashMap::new();
    // SAFETY: on the app thread, where alone subsystems come and go, and without an await in between.
    unsafe {
        let mut subsystem = sys::spdk_nvmf_subsystem_get_first(target);
        while !subsystem.is_null() {
            if let Some(hosts) = hosts.get(&subsystem.addr()) {
                by_nqn.insert(string(sys::spdk_nvmf_subsystem_get_nqn(subsystem)), *hosts);
            }
            subsystem = sys::spdk_nvmf_subsystem_get_next(subsystem);
        }
    }
    Ok(by_nqn)
}

unsafe extern "C" fn on_host(argument: *mut c_void, subsystem: *const sys::spdk_nvmf_subsystem) {
    // SAFETY: what `connected_hosts` passed; SPDK walks one thread at a time, so nobody else has it.
    let query = unsafe { &mut *argument.cast::<Query>() };
    *query.hosts.entry(subsystem.addr()).or_default() += 1;
}

unsafe extern "C" fn on_done(argument: *mut c_void, status: c_int) {
    // SAFETY: as above; called once, after the walk, on the app thread.
    let Query { hosts, promise } = *unsafe { Box::from_raw(argument.cast::<Query>()) };
    promise.complete((hosts, status));
}
