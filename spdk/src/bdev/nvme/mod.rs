//! NVMe controllers, remote and PCIe, and the bdevs of their namespaces.
//!
//! A controller has a name and one or more paths; namespace `n` of controller `x` is the bdev `xn<n>`. A lost path is
//! reconnected until it is detached. Paths authenticate with the [`Keys`] of their host, if it has any.
//!
//! ```text
//! attach ─► waiting for the controller's lock ─► connecting ─► a path, bdevs
//!                        deadline passed: ETIMEDOUT └─► rollback: detached, if it connects after all
//! ```

mod attempts;
mod clash;
mod connection;
mod detach;
mod keys;
mod limits;
mod path_id;
mod path_io;
mod policy;
mod refusal;
mod reset;
mod state;
mod stop;

use std::ffi::{CString, c_int, c_void};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::completion::{Promise, completion};
use crate::cstr::{cstr, fill};
use crate::deadline::in_task;
use crate::error::Error;
use crate::log;
use crate::transport_id::{self, Kind};

use attempts::Attempt;
use detach::remove;
pub use detach::{Detached, detach};
pub use keys::{Keys, set_keys};
use limits::CONNECT_TIMEOUT_MS;
pub use limits::DEFAULT_IO_TIMEOUT;
pub(crate) use limits::configure;
pub use path_id::PathId;
pub use path_io::{PathIo, io_by_path, path_stats};
pub use policy::use_all_paths;
pub use reset::reset;
pub use state::{Namespace, Path, PathState, controllers, namespaces, paths};
pub(crate) use stop::stop;

/// Address of a controller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each name says it")]
pub enum Address {
    Tcp {
        ip: IpAddr,
        port: u16,
    },
    Rdma {
        ip: IpAddr,
        port: u16,
    },
    /// `dddd:bb:dd.f`; the device must be bound to a driver that SPDK supports.
    Pcie {
        address: String,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { ip, port } => write!(f, "tcp {}", SocketAddr::new(*ip, *port)),
            Self::Rdma { ip, port } => write!(f, "rdma {}", SocketAddr::new(*ip, *port)),
            Self::Pcie { address } => write!(f, "pcie {address}"),
        }
    }
}

impl Address {
    fn kind(&self) -> Kind {
        match self {
            Self::Tcp { .. } => Kind::Tcp,
            Self::Rdma { .. } => Kind::Rdma,
            Self::Pcie { .. } => Kind::Pcie,
        }
    }

    fn to_id(&self, subsystem: &str) -> Result<sys::spdk_nvme_transport_id, Error> {
        let mut id = match self {
            Self::Tcp { ip, port } | Self::Rdma { ip, port } => {
                transport_id::ip(self.kind(), *ip, *port)?
            }
            Self::Pcie { address } => transport_id::path(self.kind(), address)?,
        };
        fill("subsystem NQN", &mut id.subnqn, subsystem)?;
        Ok(id)
    }
}

/// How further paths join a controller. All paths of a controller have the same mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Multipath {
    /// The controller takes one path only.
    Disabled,
    /// On standby until the active path fails.
    Failover,
    /// Connected concurrently.
    Multipath,
}

/// A path to attach.
#[derive(Debug, Clone)]
pub struct Options {
    /// The controller's name, at most 49 bytes.
    pub name: String,
    /// Address of the controller.
    pub address: Address,
    /// The NQN of its subsystem; empty for PCIe.
    pub subsystem: String,
    /// The host's NQN; None uses the NQN that SPDK generated for this process.
    pub hostnqn: Option<String>,
    /// Source address and port; port 0 is any.
    pub source: Option<SocketAddr>,
    /// How further paths join the controller.
    pub multipath: Multipath,
    /// The caller knows of no path yet: the attach fails if SPDK has paths of this controller.
    pub first: bool,
    /// PDU header digest (TCP).
    pub header_digest: bool,
    /// PDU data digest (TCP).
    pub data_digest: bool,
    /// Number of I/O queues; 0 uses SPDK's default.
    pub num_io_queues: u32,
    /// Entries of an I/O queue; 0 uses SPDK's default.
    pub io_queue_size: u32,
    /// Name in SPDK's keyring of the TLS pre-shared key (TCP).
    pub psk: Option<String>,
    /// How long [`attach`] waits for the controller.
    pub deadline: Duration,
}

impl Options {
    /// Returns the identity of the path to attach.
    pub fn path(&self) -> PathId {
        PathId {
            address: self.address.clone(),
            subsystem: self.subsystem.clone(),
            source: self.source.map(|source| source.ip()),
        }
    }
}

/// Reconnect policy of a lost remote path: a retry at this interval, without end. I/O queued for it fails after
/// `FAST_IO_FAIL_SEC`, so that no I/O hangs for ever.
const RECONNECT_DELAY_SEC: u32 = 2;
const FAST_IO_FAIL_SEC: u32 = 10;

/// Maximum length of a controller name in SPDK, in bytes.
pub const MAX_NAME_LEN: usize = 49;

/// Attaches a controller by its first path, or adds a path to an attached controller, and returns when its namespaces
/// are bdevs.
///
/// ETIMEDOUT if the peer has not answered by the deadline, EHOSTUNREACH if connecting failed, EPERM with the reason if
/// the peer refuses the host or breaks the protocol, EEXIST if the path exists, or the controller takes no second path
/// or is unknown to the caller, EINVAL for invalid values or another multipath mode or subsystem than the controller's,
/// ENOTSUP for a transport that this build lacks, ENOKEY for an unknown key.
pub async fn attach(spdk: Spdk, options: &Options) -> Result<(), Error> {
    const OPERATION: &str = "attach NVMe controller";
    check_options(OPERATION, options)?;
    let deadline = options.deadline;
    let options = options.clone();
    let (name, address) = (options.name.clone(), options.address.clone());
    let outcome = in_task(
        spdk,
        deadline,
        ("NVMe controller", &name),
        move |caller| async move {
            let result = connect(spdk, OPERATION, &options).await;
            if caller.has_timed_out() && result.is_ok() {
                let (name, path) = (&options.name, options.path());
                let late = remove(OPERATION, name, Some(&path)).await;
                log::note(
                    sys::spdk_log_level_SPDK_LOG_NOTICE,
                    format!("{path} of {name:?} connected after its deadline: {late:?}"),
                );
            }
            result
        },
    );
    outcome.await.unwrap_or_else(|| {
        Err(Error::new(OPERATION, libc::ETIMEDOUT).with_detail(format!(
            "{address} has not answered within {} ms",
            deadline.as_millis()
        )))
    })
}

fn check_options(operation: &'static str, options: &Options) -> Result<(), Error> {
    let invalid = |detail: String| Err(Error::new(operation, libc::EINVAL).with_detail(detail));
    let Options { name, address, .. } = options;
    if name.is_empty() || name.len() > MAX_NAME_LEN {
        return invalid(format!("name {name:?} must have 1 to {MAX_NAME_LEN} bytes"));
    }
    if options.num_io_queues > 1 << 16 || options.io_queue_size > 1 << 16 {
        return invalid(format!(
            "{} queues of {}: both can be 65536 at most",
            options.num_io_queues, options.io_queue_size
        ));
    }
    let tcp = matches!(address, Address::Tcp { .. });
    if !tcp && (options.psk.is_some() || options.header_digest || options.data_digest) {
        return invalid(format!("TLS and digests are for TCP, not for {address}"));
    }
    // SAFETY: reads a list that is constant once SPDK is initialized; the name is static.
    if !unsafe { sys::spdk_nvme_transport_available_by_name(address.kind().name().as_ptr()) } {
        return Err(Error::new(operation, libc::ENOTSUP).with_detail(format!(
            "this SPDK is built without the transport of {address}"
        )));
    }
    Ok(())
}

/// Context of `on_attached`, owned by C while it connects.
struct Connecting {
    promise: Promise<c_int>,
    /// Counts the attempt until SPDK has ended it, even if the caller has stopped waiting.
    _under_way: Attempt,
}

async fn connect(spdk: Spdk, operation: &'static str, options: &Options) -> Result<(), Error> {
    check_joins(
        operation,
        options,
        &paths(spdk, &options.name).unwrap_or_default(),
    )?;
    let id = options.address.to_id(&options.subsystem)?;
    let name = cstr("controller name", &options.name)?;
    let optional = |field, text: Option<&str>| text.map(|text| cstr(field, text)).transpose();
    let hostnqn = optional("host NQN", options.hostnqn.as_deref())?;
    let psk = optional("key name", options.psk.as_deref())?;
    let host = options.hostnqn.as_deref().unwrap_or_default();
    let keys = keys::held(&options.name, host);
    let (source_address, source_port) = source(options.source)?;
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
    let remote = !matches!(options.address, Address::Pcie { .. });
    let attach = sys::opi_nvme_attach {
        name: name.as_ptr(),
        id: &id,
        hostnqn: pointer(&hostnqn),
        source_address: pointer(&source_address),
        source_port: pointer(&source_port),
        psk_name: pointer(&psk),
        dhchap_name: keys.dhchap(),
        dhchap_ctrlr_name: keys.dhchap_ctrlr(),
        num_io_queues: options.num_io_queues,
        io_queue_size: options.io_queue_size,
        timeout_ms: if remote { CONNECT_TIMEOUT_MS } else { 0 },
        ctrlr_loss_timeout_sec: if remote { -1 } else { 0 },
        reconnect_delay_sec: if remote { RECONNECT_DELAY_SEC } else { 0 },
        fast_io_fail_timeout_sec: if remote { FAST_IO_FAIL_SEC } else { 0 },
        header_digest: options.header_digest,
        data_digest: options.data_digest,
        multipath: options.multipath == Multipath::Multipath,
    };
    // Reasons left by earlier attempts.
    let for_host = options.hostnqn.as_deref();
    let from = source_address.as_deref().unwrap_or_default();
    refusal::forget(&id, from, for_host);
    let (promise, pending) = completion();
    let connecting = Box::into_raw(Box::new(Connecting {
        promise,
        _under_way: Attempt::to(&options.address),
    }));
    // SAFETY: on the app thread; everything that `attach` points to outlives the call, which copies it; `on_attached`
    // reclaims the box, unless the call is refused.
    let rc = unsafe { sys::opi_nvme_attach(&attach, Some(on_attached), connecting.cast()) };
    let at = || format!("{} of {:?}", options.address, options.name);
    if rc != 0 {
        // SAFETY: SPDK refused the call, so it holds no pointer to the box.
        drop(unsafe { Box::from_raw(connecting) });
        return Err(Error::new(operation, rc).with_detail(at()));
    }
    match pending.await? {
        0 => match clash::check_no_clash(spdk, operation, &options.name) {
            Ok(()) => Ok(()),
            Err(error) => {
                let undone = remove(operation, &options.name, Some(&options.path())).await;
                Err(error.after_undo(undone))
            }
        },
        status if status == -libc::EIO => {
            Err(refusal::error(operation, &id, from, for_host, &at()))
        }
        status => Err(Error::new(operation, status).with_detail(at())),
    }
}

/// Checks whether a path could be attached once `gone` is detached; fails as [`attach`] would.
pub fn may_replace(spdk: Spdk, options: &Options, gone: &PathId) -> Result<(), Error> {
    let mut others = paths(spdk, &options.name).unwrap_or_default();
    others.retain(|path| path.id().as_ref() != Some(gone));
    check_joins("replace NVMe path", options, &others)
}

/// Checks whether the new path may join `paths`, those of its controller.
fn check_joins(operation: &'static str, options: &Options, paths: &[Path]) -> Result<(), Error> {
    if paths.is_empty() {
        return Ok(());
    }
    let refuse = |errno, detail| Err(Error::new(operation, errno).with_detail(detail));
    let name = &options.name;
    if options.first {
        let what = format!("SPDK has a controller {name:?} with paths that are not known here");
        return refuse(libc::EEXIST, what);
    }
    let new = options.path();
    if paths.iter().any(|path| path.id().as_ref() == Some(&new)) {
        return refuse(libc::EEXIST, format!("{name:?} has the path {new}"));
    }
    if options.multipath == Multipath::Disabled {
        return refuse(
            libc::EEXIST,
            format!("{name:?} is attached and takes no second path"),
        );
    }
    let same = |path: &&Path| {
        path.address.as_ref() == Some(&new.address) && path.subsystem == new.subsystem
    };
    if paths
        .iter()
        .filter(same)
        .any(|path| path.source.is_none() || new.source.is_none())
    {
        let what = format!(
            "{name:?} has a path to {}: for a second one both need a source address, or SPDK \
             cannot tell them apart",
            options.address
        );
        return refuse(libc::EINVAL, what);
    }
    let other = |path: &&Path| path.subsystem != options.subsystem;
    if let Some(Path { subsystem, .. }) = paths.iter().find(other) {
        let new = &options.subsystem;
        let what = format!("{name:?} is of subsystem {subsystem:?}, not {new:?}");
        return refuse(libc::EINVAL, what);
    }
    match (options.multipath, paths.first()) {
        (Multipath::Failover, Some(first)) => match differs(first, options) {
            Some(what) => refuse(libc::EINVAL, what),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Describes what SPDK would ignore of a standby path: it connects all paths of a failover controller with the first
/// path's host NQN, source address and source port.
fn differs(first: &Path, options: &Options) -> Option<String> {
    let name = &options.name;
    let all = format!("all paths of the failover controller {name:?} are connected");
    match &options.hostnqn {
        Some(nqn) if *nqn != first.hostnqn => {
            let host = &first.hostnqn;
            return Some(format!(
                "{all} as the host of the first, {host:?}, not {nqn:?}"
            ));
        }
        _ => {}
    }
    let there = (first.source, first.source_port);
    let new = (
        options.path().source,
        options.source.map_or(0, |source| source.port()),
    );
    let told = |(source, port): (Option<IpAddr>, u16)| match source {
        Some(source) => SocketAddr::new(source, port).to_string(),
        None => "no address in particular".to_owned(),
    };
    (there != new).then(|| {
        format!(
            "{all} from where the first is, {}, not {}",
            told(there),
            told(new)
        )
    })
}

fn source(source: Option<SocketAddr>) -> Result<(Option<CString>, Option<CString>), Error> {
    let Some(source) = source else {
        return Ok((None, None));
    };
    let port = match source.port() {
        0 => None,
        port => Some(cstr("source port", &port.to_string())?),
    };
    Ok((
        Some(cstr("source address", &source.ip().to_string())?),
        port,
    ))
}

unsafe extern "C" fn on_attached(argument: *mut c_void, _count: usize, status: c_int) {
    // SAFETY: the box that `connect` passed; SPDK calls back exactly once, on this thread.
    let connecting = unsafe { Box::from_raw(argument.cast::<Connecting>()) };
    connecting.promise.complete(status);
}
