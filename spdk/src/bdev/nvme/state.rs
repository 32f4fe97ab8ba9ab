//! Reads the state of NVMe controllers: paths and namespaces.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::net::IpAddr;

use spdk_sys as sys;

use super::{Address, PathId, refusal};
use crate::app_thread::Spdk;
use crate::cstr::{cstr, read, string};
use crate::error::{Error, check};
use crate::transport_id::{self, Kind};

/// A path to a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The address that the path connects to; None for a transport that this module does not attach.
    pub address: Option<Address>,
    /// The subsystem's NQN.
    pub subsystem: String,
    /// The configured source address, if any.
    pub source: Option<IpAddr>,
    /// The configured source port; 0 for any.
    pub source_port: u16,
    /// The host's NQN.
    pub hostnqn: String,
    /// The controller's id in the subsystem.
    pub cntlid: u16,
    /// State of the path.
    pub state: PathState,
    /// Whether the controller's connection uses this path; the other paths of a failover controller are on standby.
    pub active: bool,
    /// Why connecting failed since the path was last connected, if known.
    pub failure: Option<String>,
}

impl Path {
    /// Returns the path's identity; None for a transport that this module does not attach.
    pub fn id(&self) -> Option<PathId> {
        Some(PathId {
            address: self.address.clone()?,
            subsystem: self.subsystem.clone(),
            source: self.source,
        })
    }
}

/// State of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathState {
    /// Serves I/O.
    Connected,
    /// On standby until the active path fails.
    Standby,
    /// The connection is being reset.
    Resetting,
    /// The connection was lost; a reconnect is scheduled.
    Reconnecting,
    /// The connection was lost.
    Failed,
    /// Disabled.
    Disabled,
    /// Being detached.
    Deleting,
}

impl PathState {
    fn of(state: sys::opi_nvme_path_state) -> Self {
        match state {
            sys::opi_nvme_path_state_OPI_NVME_PATH_CONNECTED => Self::Connected,
            sys::opi_nvme_path_state_OPI_NVME_PATH_STANDBY => Self::Standby,
            sys::opi_nvme_path_state_OPI_NVME_PATH_RESETTING => Self::Resetting,
            sys::opi_nvme_path_state_OPI_NVME_PATH_RECONNECTING => Self::Reconnecting,
            sys::opi_nvme_path_state_OPI_NVME_PATH_DISABLED => Self::Disabled,
            sys::opi_nvme_path_state_OPI_NVME_PATH_DELETING => Self::Deleting,
            _ => Self::Failed,
        }
    }
}

/// A namespace of a controller, exposed as a bdev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// The bdev's name.
    pub bdev: String,
    /// The namespace's id.
    pub nsid: u32,
    /// None if the device reports none; likewise `nguid` and `eui64`.
    pub uuid: Option<[u8; 16]>,
    #[expect(missing_docs, reason = "as above")]
    pub nguid: Option<[u8; 16]>,
    #[expect(missing_docs, reason = "as above")]
    pub eui64: Option<[u8; 8]>,
    /// Whether I/O is spread over all paths (active-active).
    pub over_all_paths: bool,
}

/// Returns the names of the attached controllers.
pub fn controllers(_: Spdk) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    // SAFETY: on the app thread; `collect_name` gets the vector that it expects, during this call only.
    unsafe { sys::opi_nvme_for_each_controller(Some(collect_name), (&raw mut names).cast()) };
    names
}

unsafe extern "C" fn collect_name(argument: *mut c_void, name: *const c_char) {
    // SAFETY: the walk passes the vector of `controllers` and a C string, both valid during the call.
    unsafe { (*argument.cast::<Vec<String>>()).push(string(name)) };
}

/// Returns the paths of a controller. ENODEV if no controller of that name is attached.
pub fn paths(_: Spdk, name: &str) -> Result<Vec<Path>, Error> {
    let mut paths: Vec<Path> = Vec::new();
    let c_name = cstr("controller name", name)?;
    // SAFETY: on the app thread; `collect_path` gets the vector that it expects, during this call only.
    let rc = unsafe {
        sys::opi_nvme_for_each_path(c_name.as_ptr(), Some(collect_path), (&raw mut paths).cast())
    };
    check("list NVMe paths", rc).map_err(|error| error.with_detail(format!("{name:?}")))?;
    Ok(paths)
}

unsafe extern "C" fn collect_path(argument: *mut c_void, path: *const sys::opi_nvme_path) {
    // SAFETY: the walk passes the vector of `paths` and a path, both valid during the call.
    unsafe {
        let (paths, path) = (&mut *argument.cast::<Vec<Path>>(), &*path);
        let state = PathState::of(path.state);
        let (source, hostnqn) = (CStr::from_ptr(path.source_address), string(path.hostnqn));
        // A failure of a path that works is of an exchange that is under way.
        let failure =
            refusal::reason(&*path.id, source, &hostnqn).filter(|_| state != PathState::Connected);
        paths.push(Path {
            address: address(&*path.id),
            subsystem: read(&(*path.id).subnqn),
            source: source.to_str().ok().and_then(|source| source.parse().ok()),
            source_port: string(path.source_port).parse().unwrap_or(0),
            cntlid: path.cntlid,
            state,
            active: path.active,
            failure,
            hostnqn,
        });
    }
}

pub(super) fn address(id: &sys::spdk_nvme_transport_id) -> Option<Address> {
    match Kind::of(id)? {
        Kind::Tcp => transport_id::ip_and_port(id).map(|(ip, port)| Address::Tcp { ip, port }),
        Kind::Rdma => transport_id::ip_and_port(id).map(|(ip, port)| Address::Rdma { ip, port }),
        Kind::Pcie => Some(Address::Pcie {
            address: read(&id.traddr),
        }),
        Kind::VfioUser => None,
    }
}

/// Returns the namespaces of a controller. ENODEV if no controller of that name is attached.
pub fn namespaces(_: Spdk, name: &str) -> Result<Vec<Namespace>, Error> {
    walk(name, sys::opi_nvme_for_each_namespace)
}

/// Returns the controller's namespaces for which SPDK could not create a bdev, with the bdev names that SPDK would have
/// used. ENODEV if no controller of that name is attached.
pub(super) fn missing(_: Spdk, name: &str) -> Result<Vec<Namespace>, Error> {
    walk(name, sys::opi_nvme_for_each_missing)
}

type Walk = unsafe extern "C" fn(*const c_char, sys::opi_nvme_namespace_fn, *mut c_void) -> c_int;

fn walk(name: &str, each: Walk) -> Result<Vec<Namespace>, Error> {
    let mut namespaces: Vec<Namespace> = Vec::new();
    let c_name = cstr("controller name", name)?;
    // SAFETY: `each` is one of the shim's two walks, called on the app thread (the callers have proof);
    // `collect_namespace` gets the vector that it expects, during this call only.
    let rc = unsafe {
        each(
            c_name.as_ptr(),
            Some(collect_namespace),
            (&raw mut namespaces).cast(),
        )
    };
    check("list NVMe namespaces", rc).map_err(|error| error.with_detail(format!("{name:?}")))?;
    namespaces.sort_by_key(|namespace| namespace.nsid);
    Ok(namespaces)
}

unsafe extern "C" fn collect_namespace(
    argument: *mut c_void,
    namespace: *const sys::opi_nvme_namespace,
) {
    fn told<const N: usize>(id: [u8; N]) -> Option<[u8; N]> {
        (id != [0; N]).then_some(id)
    }
    // SAFETY: the walk passes the vector of `walk` and a namespace, both valid during the call.
    unsafe {
        let namespaces = &mut *argument.cast::<Vec<Namespace>>();
        let namespace = &*namespace;
        namespaces.push(Namespace {
            bdev: string(namespace.bdev),
            nsid: namespace.nsid,
            uuid: told(namespace.uuid),
            nguid: told(namespace.nguid),
            eui64: told(namespace.eui64),
            over_all_paths: namespace.over_all_paths,
        });
    }
}
