//! Connected hosts and their queues.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_int, c_void};

use spdk_sys as sys;

use super::operations::{self, Group};
use super::{DISCONNECT_LIMIT, check_status, find, target};
use crate::app_thread::Spdk;
use crate::completion::{Promise, Status, call_within, completion};
use crate::cstr::{cstr, read, string};
use crate::error::{Error, check};
use crate::locks::lock;

/// Bound of queues reported: as many connections as file descriptors allow.
const MOST: usize = 1 << 16;

/// A host connected to a subsystem. A host with several connections appears once for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// NQN of the subsystem.
    pub subsystem: String,
    /// The NQN that the host claims; empty if SPDK does not expose it.
    pub host: String,
    /// ID of the controller created for the host.
    pub controller_id: u16,
    /// Address and port; for a virtual machine, the directory of its socket.
    pub address: String,
    /// The host is a virtual machine, over vfio-user.
    pub is_guest: bool,
    /// Sorted by ID; the admin queue, 0, comes first.
    pub queues: Vec<Queue>,
    /// Identifies the controller among those of connected hosts.
    pub(crate) controller: usize,
}

/// A queue of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Queue {
    /// Queue ID.
    pub id: u16,
    /// Queue size, in commands.
    pub size: u32,
    /// Core of the reactor that serves the queue.
    pub core: u32,
    /// Completed I/O commands; 0 for an admin queue, or if SPDK does not count them.
    pub completed_io: u64,
}

/// The number of connected queues by transport, including queues whose host has not sent Connect yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Doors {
    /// NVMe/TCP: one connection each.
    pub tcp: u64,
    /// vfio-user.
    pub vfio_user: u64,
}

/// The result of a walk over SPDK's queues.
#[derive(Default)]
pub struct Connections {
    hosts: Vec<Connected>,
    queues: Vec<(usize, Queue)>,
    doors: Doors,
    groups: Vec<Group>,
    operations: BTreeMap<u32, u64>,
}

impl Connections {
    /// Returns the hosts with their queues. Expensive: not on a reactor.
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

    /// Returns the number of queues by transport.
    pub fn doors(&self) -> Doors {
        self.doors
    }

    /// Returns the I/O commands that each reactor's poll groups have completed since the start, by core. These are the
    /// commands of all I/O queues over any transport, with Connect and with those that failed.
    pub fn operations(&self) -> &BTreeMap<u32, u64> {
        &self.operations
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
            // SAFETY: the strings are null or NUL-terminated, and valid during C's callback, which this runs in.
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
    /// Converts a host, without its queues.
    ///
    /// # Safety
    /// The strings of `queue` are null, or NUL-terminated and valid during the call.
    unsafe fn of(queue: &sys::opi_nvmf_queue) -> Self {
        // SAFETY: by the caller's contract null, or NUL-terminated and valid during the call.
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

/// Walks all connected hosts, one reactor after another, a few queues per step.
///
/// # Errors
/// SPDK is out of memory.
pub async fn connections(spdk: Spdk) -> Result<Connections, Error> {
    const OPERATION: &str = "list hosts";
    let _alone = lock("walk over queues", "").await;
    let target = target(spdk, OPERATION)?.as_ptr();
    let (promise, pending) = completion();
    let walk = Box::into_raw(Box::new(Walk {
        found: Connections::default(),
        promise,
    }));
    let walk = sys::opi_nvmf_walk {
        group: Some(on_group),
        queue: Some(on_queue),
        done: Some(on_done),
        arg: walk.cast(),
    };
    // SAFETY: runs on the app thread; `walk` is copied, and its argument lives until `on_done`, which is always called,
    // last.
    unsafe { sys::opi_nvmf_for_each_queue(target, &raw const walk) };
    let (mut found, status) = pending.await?;
    check_status(OPERATION, status)?;
    found.operations = operations::add(&found.groups);
    Ok(found)
}

/// Owned by C while the poll groups are walked.
struct Walk {
    found: Connections,
    promise: Promise<(Connections, c_int)>,
}

unsafe extern "C" fn on_group(argument: *mut c_void, group: *const sys::opi_nvmf_group) {
    // SAFETY: as in `on_queue`.
    let (walk, group) = unsafe { (&mut *argument.cast::<Walk>(), &*group) };
    walk.found.groups.push(Group {
        id: group.group.addr(),
        core: group.core,
        completed: group.completed_io,
    });
}

unsafe extern "C" fn on_queue(argument: *mut c_void, queue: *const sys::opi_nvmf_queue) {
    // SAFETY: `argument` is the box that `connections` passed. The walk runs on one thread at a time, so access is
    // exclusive. `queue` is valid during the call.
    let (walk, queue) = unsafe { (&mut *argument.cast::<Walk>(), &*queue) };
    walk.found.add(queue);
}

unsafe extern "C" fn on_done(argument: *mut c_void, status: c_int) {
    // SAFETY: `argument` is the box that `connections` passed; called once, after the walk, on the app thread.
    let Walk { found, promise } = *unsafe { Box::from_raw(argument.cast::<Walk>()) };
    promise.complete((found, status));
}

/// Selects hosts of a subsystem. Virtual machines are never selected.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Only hosts with this NQN.
    pub host: Option<String>,
    /// Only the host with this controller.
    pub controller_id: Option<u16>,
}

/// Disconnects hosts; their commands in flight end with the connection. Admitted hosts may reconnect.
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
