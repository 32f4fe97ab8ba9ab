//! The hosts that are connected, and their queues.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};

use spdk_sys as sys;

use super::{DISCONNECT_LIMIT, check_status, find, target};
use crate::completion::{Promise, Status, call_within, completion};
use crate::cstr::{cstr, read, string};
use crate::error::{Error, check};
use crate::locks::lock;
use crate::runtime::Spdk;

/// Queues of which is told: as many as file descriptors can be connections of.
const MOST: usize = 1 << 16;

/// A host that is connected to a subsystem. One that is connected several times is there once for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// NQN of the subsystem.
    pub subsystem: String,
    /// Who it says that it is; empty where SPDK does not tell.
    pub host: String,
    /// Of the controller that was made for it.
    pub controller_id: u16,
    /// Its address and port; of a virtual machine the directory of its socket.
    pub address: String,
    /// It is a virtual machine, over vfio-user.
    pub is_guest: bool,
    /// By their IDs: first the admin queue, 0.
    pub queues: Vec<Queue>,
    /// Tells it from others that are connected.
    pub(crate) controller: usize,
}

/// A queue of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Queue {
    /// Its ID.
    pub id: u16,
    /// How many commands it has room for.
    pub size: u32,
    /// The core of the reactor that serves it.
    pub core: u32,
    /// I/O commands that have ended; 0 for an admin queue, and where SPDK does not tell.
    pub completed_io: u64,
}

/// Queues that are connected, those too whose host has not said yet who it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Doors {
    /// Over NVMe/TCP: a connection each.
    pub tcp: u64,
    /// Over vfio-user.
    pub vfio_user: u64,
}

/// What a walk over SPDK's queues has found.
#[derive(Default)]
pub struct Connections {
    hosts: Vec<Connected>,
    queues: Vec<(usize, Queue)>,
    doors: Doors,
}

impl Connections {
    /// The hosts with their queues. Costs time: not on a reactor.
    pub fn hosts(self) -> Vec<Connected> {
        let mut of: HashMap<usize, Vec<Queue>> = HashMap::new();
        for (controller, queue) in self.queues {
            of.entry(controller).or_default().push(queue);
        }
        let mut hosts = self.hosts;
        for host in &mut hosts {
            host.queues = of.remove(&host.controller).unwrap_or_default();
            host.queues.sort_unstable();
        }
        hosts
    }

    /// By the door that they came through.
    pub fn doors(&self) -> Doors {
        self.doors
    }

    fn add(&mut self, queue: &sys::opi_nvmf_queue) {
        match queue.is_guest {
            false => self.doors.tcp += 1,
            true => self.doors.vfio_user += 1,
        }
        if queue.ctrlr.is_null() || self.queues.len() == MOST {
            return;
        }
        if queue.qid == 0 {
            // SAFETY: as C has them for the call.
            self.hosts.push(unsafe { Connected::of(queue) });
        }
        let of = Queue {
            id: queue.qid,
            size: queue.size,
            core: queue.core,
            completed_io: queue.completed_io,
        };
        self.queues.push((queue.ctrlr.addr(), of));
    }
}

impl Connected {
    /// Without its queues.
    ///
    /// # Safety
    /// The texts of `queue` are null or terminated strings that stay during the call.
    unsafe fn of(queue: &sys::opi_nvmf_queue) -> Self {
        // SAFETY: the caller's contract.
        let [subsystem, host] = [queue.subnqn, queue.hostnqn].map(|text| unsafe { string(text) });
        Self {
            subsystem,
            host,
            controller_id: queue.cntlid,
            address: read(&queue.address),
            is_guest: queue.is_guest,
            queues: Vec::new(),
            controller: queue.ctrlr.addr(),
        }
    }
}

/// All hosts that are connected, one reactor after the other, a few queues a step.
///
/// # Errors
/// SPDK has no memory for it.
pub async fn connections(spdk: Spdk) -> Result<Connections, Error> {
    const OPERATION: &str = "list hosts";
    let _alone = lock("walk over queues", "").await;
    let target = target(spdk, OPERATION)?.as_ptr();
    let (promise, pending) = completion();
    let walk = Box::into_raw(Box::new(Walk {
        found: Connections::default(),
        promise,
    }));
    // SAFETY: on the app thread; `walk` stays until `on_done`, which always comes, last.
    unsafe { sys::opi_nvmf_for_each_queue(target, Some(on_queue), Some(on_done), walk.cast()) };
    let (found, status) = pending.await?;
    check_status(OPERATION, status)?;
    Ok(found)
}

/// What C holds while the poll groups are walked.
struct Walk {
    found: Connections,
    promise: Promise<(Connections, c_int)>,
}

unsafe extern "C" fn on_queue(argument: *mut c_void, queue: *const sys::opi_nvmf_queue) {
    // SAFETY: what `connections` passed; SPDK walks one thread at a time, so nobody else has it. `queue` is
    // valid for the call.
    let (walk, queue) = unsafe { (&mut *argument.cast::<Walk>(), &*queue) };
    walk.found.add(queue);
}

unsafe extern "C" fn on_done(argument: *mut c_void, status: c_int) {
    // SAFETY: as above; called once, after the walk, on the app thread.
    let Walk { found, promise } = *unsafe { Box::from_raw(argument.cast::<Walk>()) };
    promise.complete((found, status));
}

/// Which of a subsystem's hosts. Virtual machines are none of them.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Those of this NQN.
    pub host: Option<String>,
    /// The one with this controller.
    pub controller_id: Option<u16>,
}

/// Disconnects hosts: what they have in flight ends with the connection. Whoever may connects again by itself.
///
/// # Errors
/// ENODEV for an unknown subsystem, ENOENT if no host is meant, ETIMEDOUT if I/O holds a connection up: it ends
/// once that is over.
pub async fn disconnect(spdk: Spdk, nqn: &str, which: &Which) -> Result<(), Error> {
    const OPERATION: &str = "disconnect host";
    let target = target(spdk, OPERATION)?.as_ptr();
    let host = which.host.as_deref();
    let host = host.map(|host| cstr("host NQN", host)).transpose()?;
    let controller = which.controller_id.map_or(-1, i32::from);
    let subsystem = find(spdk, OPERATION, nqn)?.as_ptr();
    let status = call_within::<Status>(spdk, DISCONNECT_LIMIT, OPERATION, |callback, argument| {
        let host = host.as_ref().map_or(std::ptr::null(), |host| host.as_ptr());
        // SAFETY: on the app thread, the subsystem found without an await since, and only compared with later;
        // SPDK's side copies the string; the callback takes the argument back, once.
        unsafe {
            sys::opi_nvmf_disconnect_hosts(target, subsystem, host, controller, callback, argument);
        }
        0
    })
    .await?;
    check(OPERATION, status)
}
