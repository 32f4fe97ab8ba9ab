//! Start and stop of SPDK within this process.
//!
//! ```text
//! start ─► own OS thread ─► spdk_app_start ─┬─ fails ─► StartError
//!                                           └─ app thread up, mailbox open ─► Runtime
//! stop ─► calls refused ─► message ─► spdk_app_stop ─► subsystems end ─► thread ends
//! ```

use std::ffi::{CString, c_int, c_void};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use spdk_sys as sys;
use tokio::sync::oneshot;

use crate::app_thread::Spdk;
use crate::bdev::{self, nvme};
use crate::cores::CoreSet;
use crate::dhchap::Weakest;
use crate::error::Error;
use crate::hooks::{idle, polls};
use crate::iobuf::Iobuf;
use crate::log;
use crate::mailbox::{self, Handle, Shared};
use crate::nvmf::reservation;
use crate::physical;
use crate::rpc;
use crate::stopping;
use crate::vhost;

/// How to start SPDK.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cores of the reactors, one pinned reactor each.
    pub cores: CoreSet,
    /// For how long reactors without work sleep at most; `None`: they poll. They also do where SPDK lacks the change for it.
    pub longest_sleep: Option<Duration>,
    /// Measure how long each poll of an SPDK thread holds its reactor. Not measured where SPDK lacks the change for it.
    pub measure_polls: bool,
    /// Memory to reserve at the start, MiB.
    pub mem_mib: u32,
    /// Use ordinary memory instead of hugepages. Excludes vhost-user, vfio-user and PCIe devices.
    pub no_huge: bool,
    /// The sizes of the I/O buffer pools.
    pub iobuf: Iobuf,
    /// Capacity of the mailbox, a power of two. One call less may be in flight.
    pub mailbox_capacity: usize,
    /// Path of SPDK's own JSON-RPC socket, for diagnosis; at most 107 bytes. `None`: no socket.
    pub rpc_socket: Option<PathBuf>,
    /// Timeout of I/O to a remote controller, after which its path is reset.
    pub remote_io_timeout: Duration,
    /// The weakest hash and DH group of DH-HMAC-CHAP that hosts and peers may use.
    pub dhchap: Weakest,
}

/// Why SPDK failed to start.
#[derive(Debug, thiserror::Error)]
#[error("SPDK did not start: {reason}{}", if log.is_empty() { String::new() } else { format!(" ({})", log.join("; ")) })]
pub struct StartError {
    /// The failure.
    pub reason: String,
    /// The last errors that SPDK logged, oldest first.
    pub log: Vec<String>,
}

impl StartError {
    fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            log: log::last_errors(),
        }
    }
}

/// A running SPDK. At most one per process, since SPDK's state is global.
pub struct Runtime {
    handle: Handle,
    host: Host,
}

/// The OS thread that hosts SPDK.
struct Host {
    ended: oneshot::Receiver<c_int>,
    thread: std::thread::JoinHandle<()>,
}

impl Host {
    /// Waits for SPDK's exit code and for the end of its thread. C libraries free thread-local state when a thread
    /// ends, which must not race with the exit of the process.
    async fn end(self) -> c_int {
        let code = self.ended.await.unwrap_or(1);
        // It has said its last word: this waits for the system to end it.
        let _ = tokio::task::spawn_blocking(|| self.thread.join()).await;
        code
    }
}

type Opened = Result<Arc<Shared>, Error>;

/// The argument that C passes to the start function.
struct Start {
    mailbox_capacity: usize,
    may_watch: bool,
    rpc_socket: Option<PathBuf>,
    remote_io_timeout: Duration,
    dhchap: Weakest,
    opened: oneshot::Sender<Opened>,
    shared: oneshot::Sender<Arc<Shared>>,
}

impl Runtime {
    /// Starts SPDK, and returns when its app thread accepts calls. Must run in a tokio runtime: a task spawned here
    /// delivers the replies.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let fail = |error: std::io::Error| StartError::new(error.to_string());
        log::install(options.rpc_socket.is_some()).map_err(fail)?;
        if let Some(longest) = options.longest_sleep {
            idle::allow(&options.cores, longest);
        }
        if options.measure_polls && !polls::measure() {
            tracing::warn!("polls are not measured: this SPDK lacks the change observe-polls");
        }
        let pools = options.iobuf.set(options.cores.iter().count());
        pools.map_err(|error| StartError::new(error.to_string()))?;
        let (opened_tx, opened) = oneshot::channel();
        let (ended_tx, ended) = oneshot::channel();
        let control = CoreSet::allowed().map_err(fail)?;
        vhost::set_control_cores(&control);
        let thread = std::thread::Builder::new()
            .name("spdk".to_owned())
            .spawn(move || {
                let _ = ended_tx.send(host(&options, &control, opened_tx));
            })
            .map_err(fail)?;
        let host = Host { ended, thread };
        let shared = match opened.await {
            Ok(Ok(shared)) => shared,
            Ok(Err(error)) => {
                host.end().await;
                return Err(StartError::new(error.to_string()));
            }
            // The start function was never called.
            Err(_) => {
                let code = host.end().await;
                return Err(StartError::new(format!("spdk_app_start returned {code}")));
            }
        };
        tokio::spawn({
            let shared = shared.clone();
            async move {
                if let Err(error) = mailbox::deliver(shared).await {
                    tracing::error!(%error, "replies of the data path cannot be delivered");
                }
            }
        });
        Ok(Self {
            handle: Handle(shared),
            host,
        })
    }

    /// Returns a handle to the app thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Stops SPDK: refuses new calls, disconnects hosts, and tears the subsystems down in SPDK's order. Returns
    /// SPDK's exit code after its threads have ended.
    pub async fn stop(self) -> c_int {
        while let Err(mailbox::CallError::Full) = self.handle.call(wait_for_nobody).await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let shared = self.handle.0;
        shared.refuse_calls();
        while let Err(mailbox::CallError::Full) = shared.request_stop() {
            // Retry: the reactor drains the ring.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let code = self.host.end().await;
        log::finish();
        code
    }
}

/// Ends what SPDK's teardown would wait for: I/O held back by rate limits, virtual machines, which stay connected
/// until they are disconnected, and reservations being saved.
async fn wait_for_nobody(spdk: Spdk) {
    stopping::begin(spdk);
    bdev::qos::lift_all(spdk).await;
    vhost::stop(spdk).await;
    reservation::stop(spdk).await;
}

/// The main function of SPDK's own thread; returns its exit code. `control` are the cores of the calling threads.
fn host(options: &Options, control: &CoreSet, opened: oneshot::Sender<Opened>) -> c_int {
    let mask = CString::new(options.cores.to_spdk()).unwrap_or_default();
    let (shared_tx, mut shared) = oneshot::channel();
    let start = Box::into_raw(Box::new(Start {
        mailbox_capacity: options.mailbox_capacity,
        may_watch: !options.cores.intersects(control),
        rpc_socket: options.rpc_socket.clone(),
        remote_io_timeout: options.remote_io_timeout,
        dhchap: options.dhchap,
        opened,
        shared: shared_tx,
    }));
    // SAFETY: a C struct of integers and nullable pointers, for which all zero is valid; spdk_app_opts_init fills
    // it in.
    let mut app: sys::spdk_app_opts = unsafe { std::mem::zeroed() };
    // SAFETY: `app` is valid for writes of the size passed.
    unsafe { sys::spdk_app_opts_init(&mut app, size_of::<sys::spdk_app_opts>()) };
    app.name = c"opi-spdk".as_ptr();
    app.reactor_mask = mask.as_ptr();
    // Must be set explicitly: the default opens a socket. `begin` opens SPDK's JSON-RPC socket, if configured, with
    // owner-only permissions.
    app.rpc_addr = std::ptr::null();
    app.mem_size = c_int::try_from(options.mem_mib).unwrap_or(c_int::MAX);
    app.no_huge = options.no_huge;
    // Without an IOMMU of 48 bits on an Intel processor SPDK demands physical addresses, which DPDK refuses to a process
    // that the kernel does not tell them. Only PCIe devices need them.
    if !options.no_huge && !physical::is_told() {
        app.iova_mode = c"va".as_ptr();
    }
    app.disable_signal_handlers = true;
    app.enable_coredump = false;
    app.log = Some(sys::opi_log_sink);
    if options.rpc_socket.is_none() {
        // No SPDK trace buffer in shared memory: it is used only with the JSON-RPC socket, and a killed process
        // would leave it behind.
        app.num_entries = 0;
    }

    // SAFETY: SPDK is not running yet, so nobody else accesses these options; its target reads them at creation, below.
    unsafe { sys::opi_nvmf_accept_dhchap(&options.dhchap.accepted()) };
    // SAFETY: `app` and the strings that it points to outlive the call, which blocks until SPDK has stopped;
    // `begin`, if called, takes ownership of `start`.
    let code = unsafe { sys::spdk_app_start(&mut app, Some(begin), start.cast()) };

    match shared.try_recv() {
        Ok(shared) => shared.close(),
        // SAFETY: `begin` takes ownership of the box first, and then sends or drops the sender of `shared`. The
        // sender still exists, so `begin` did not run, and the box is still owned here.
        Err(oneshot::error::TryRecvError::Empty) => drop(unsafe { Box::from_raw(start) }),
        Err(oneshot::error::TryRecvError::Closed) => {}
    }
    // SAFETY: spdk_app_start has returned, and the rings in SPDK's memory are freed.
    unsafe { sys::spdk_app_fini() };
    remove_dpdk_dirs();
    code
}

/// Removes DPDK's runtime directories of this process and of processes that no longer exist: DPDK leaves them
/// behind. Failures are ignored, since the directories are harmless.
fn remove_dpdk_dirs() {
    let Ok(entries) = std::fs::read_dir("/var/run/dpdk") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix("spdk_pid")?.parse::<u32>().ok());
        let ended = |pid: u32| {
            pid == std::process::id() || !std::path::Path::new(&format!("/proc/{pid}")).exists()
        };
        if pid.is_some_and(ended) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Ends the process without running exit handlers of C libraries: if SPDK has not stopped, these would free what its
/// reactors still use.
pub fn exit_at_once(code: u8) -> ! {
    // SAFETY: _exit does not return and runs no code of this process.
    unsafe { libc::_exit(c_int::from(code)) }
}

/// SPDK's start function. Runs on the app thread once all subsystems are initialized.
unsafe extern "C" fn begin(argument: *mut c_void) {
    // SAFETY: `argument` is the box that `host` passed; SPDK calls this once.
    let start = unsafe { Box::from_raw(argument.cast::<Start>()) };
    // SAFETY: runs on the app thread, and nothing has been stored in a thread-local yet.
    let spdk = unsafe { Spdk::bind() };
    // Before a controller can be attached, through SPDK's socket or the mailbox.
    let configured = nvme::configure(spdk, start.remote_io_timeout, start.dhchap);
    let rpc = || match start.rpc_socket.as_deref() {
        Some(path) => rpc::open(spdk, path),
        None => Ok(()),
    };
    let opened = configured
        .and_then(|()| rpc())
        .and_then(|()| mailbox::open(spdk, start.mailbox_capacity, start.may_watch));
    match &opened {
        Ok(shared) => {
            let _ = start.shared.send(shared.clone());
        }
        // SAFETY: runs on the app thread, with the reactors running.
        Err(_) => unsafe { sys::spdk_app_stop(1) },
    }
    // Fails only if the caller of `start` is gone; the process is exiting then.
    let _ = start.opened.send(opened);
}

/// Returns the number of reactors; 0 before SPDK has started.
pub fn reactor_count() -> u32 {
    // SAFETY: reads a number that is constant once SPDK has started, and zero-initialized before.
    unsafe { sys::spdk_env_get_core_count() }
}

/// Returns SPDK's version string, such as "SPDK v26.01".
pub fn version() -> &'static str {
    sys::SPDK_VERSION_STRING.to_str().unwrap_or("SPDK")
}
