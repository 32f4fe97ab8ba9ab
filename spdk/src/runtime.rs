//! Start and stop of SPDK in this process.
//!
//! ```text
//! start ─► own OS thread ─► spdk_app_start ─┬─ fails ─► StartError
//!                                           └─ app thread up, mailbox open ─► Runtime
//! stop ─► calls refused ─► message ─► spdk_app_stop ─► subsystems end ─► thread ends
//! ```

use std::ffi::{CString, c_int, c_void};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use spdk_sys as sys;
use tokio::sync::oneshot;

use crate::bdev::{self, nvme};
use crate::cores::CoreSet;
use crate::error::Error;
use crate::iobuf::Iobuf;
use crate::log;
use crate::mailbox::{self, Handle, Shared};
use crate::nvmf::reservation;
use crate::rpc;
use crate::vhost;

/// Proof that the code runs on SPDK's app thread, where bdevs are registered and
/// NVMe-oF and vhost are configured. Neither `Send` nor `Sync`.
///
/// The app thread is bound to the reactor that it starts on (`spdk_thread_bind`), so one
/// OS thread runs it for as long as SPDK lives. That is an invariant: the executor, the
/// watches and other state live in thread-locals of that OS thread. Neither a scheduler nor
/// `thread_set_cpumask` on SPDK's JSON-RPC socket moves a bound thread (`lib/event/reactor.c`).
#[derive(Clone, Copy)]
pub struct Spdk {
    stays: PhantomData<*const ()>,
}

/// How SPDK is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Reactors run on these cores, one each, pinned.
    pub cores: CoreSet,
    /// Memory to reserve at start, MiB.
    pub mem_mib: u32,
    /// Ordinary memory in place of hugepages: no vhost-user, no vfio-user, no
    /// PCIe devices.
    pub no_huge: bool,
    /// The pools of buffers.
    pub iobuf: Iobuf,
    /// Calls that may be under way at once, plus one; a power of two.
    pub mailbox_capacity: usize,
    /// Where SPDK's own JSON-RPC server listens, for diagnosis; 107 bytes at most.
    pub rpc_socket: Option<PathBuf>,
    /// How long a peer may leave I/O unanswered before the path to it is given up.
    pub remote_io_timeout: Duration,
}

/// Why SPDK did not start.
#[derive(Debug, thiserror::Error)]
#[error("SPDK did not start: {reason}{}", if log.is_empty() { String::new() } else { format!(" ({})", log.join("; ")) })]
pub struct StartError {
    /// What failed.
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

/// SPDK, running. One to a process: SPDK's state is global.
pub struct Runtime {
    handle: Handle,
    host: Host,
}

/// The thread that SPDK runs on.
struct Host {
    ended: oneshot::Receiver<c_int>,
    thread: std::thread::JoinHandle<()>,
}

impl Host {
    /// SPDK's exit code, once the thread is gone too: what C libraries keep for a
    /// thread goes with it, and with the process, which must not happen at once.
    async fn end(self) -> c_int {
        let code = self.ended.await.unwrap_or(1);
        // It has said its last word: this waits for the system to end it.
        let _ = tokio::task::spawn_blocking(|| self.thread.join()).await;
        code
    }
}

type Opened = Result<Arc<Shared>, Error>;

/// What the start function gets through C.
struct Start {
    mailbox_capacity: usize,
    may_watch: bool,
    rpc_socket: Option<PathBuf>,
    remote_io_timeout: Duration,
    opened: oneshot::Sender<Opened>,
    shared: oneshot::Sender<Arc<Shared>>,
}

impl Runtime {
    /// Starts SPDK and returns when its app thread takes calls. In a tokio
    /// runtime: the replies are delivered by a task that is spawned here.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let fail = |error: std::io::Error| StartError::new(error.to_string());
        log::install(options.rpc_socket.is_some()).map_err(fail)?;
        let pools = options.iobuf.set();
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
            // The start function never ran.
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

    /// The way to the app thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Stops SPDK: calls are refused, hosts disconnected, subsystems ended in
    /// SPDK's order. Returns when its threads are done, with its exit code.
    pub async fn stop(self) -> c_int {
        while let Err(mailbox::CallError::Full) = self.handle.call(wait_for_nobody).await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let shared = self.handle.0;
        shared.refuse_calls();
        while let Err(mailbox::CallError::Full) = shared.request_stop() {
            // The ring empties as fast as the reactor turns.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let code = self.host.end().await;
        log::finish();
        code
    }
}

/// Ends what SPDK would wait for when it stops: rate limits of I/O in flight, virtual machines, which stay
/// connected until they are disconnected, and reservations that are being saved.
async fn wait_for_nobody(spdk: Spdk) {
    bdev::qos::lift_all(spdk).await;
    vhost::stop(spdk).await;
    reservation::stop(spdk).await;
}

/// The life of SPDK's own thread; returns its exit code. Callers run on the cores `control`.
fn host(options: &Options, control: &CoreSet, opened: oneshot::Sender<Opened>) -> c_int {
    let mask = CString::new(options.cores.to_spdk()).unwrap_or_default();
    let (shared_tx, mut shared) = oneshot::channel();
    let start = Box::into_raw(Box::new(Start {
        mailbox_capacity: options.mailbox_capacity,
        may_watch: !options.cores.intersects(control),
        rpc_socket: options.rpc_socket.clone(),
        remote_io_timeout: options.remote_io_timeout,
        opened,
        shared: shared_tx,
    }));
    // SAFETY: a C struct for which all zero is a valid value, and which
    // spdk_app_opts_init fills in.
    let mut app: sys::spdk_app_opts = unsafe { std::mem::zeroed() };
    // SAFETY: the size is that of the struct given.
    unsafe { sys::spdk_app_opts_init(&mut app, size_of::<sys::spdk_app_opts>()) };
    app.name = c"opi-spdk".as_ptr();
    app.reactor_mask = mask.as_ptr();
    // Not the default: `begin` opens SPDK's JSON-RPC socket, if at all, for its owner alone.
    app.rpc_addr = std::ptr::null();
    app.mem_size = c_int::try_from(options.mem_mib).unwrap_or(c_int::MAX);
    app.no_huge = options.no_huge;
    app.disable_signal_handlers = true;
    app.enable_coredump = false;
    app.log = Some(sys::opi_log_sink);
    if options.rpc_socket.is_none() {
        // No SPDK trace buffer in shared memory: nobody is told of it, and a killed
        // process would leave it behind.
        app.num_entries = 0;
    }

    // SAFETY: SPDK reads it when it makes its target, below.
    unsafe { sys::opi_nvmf_limit_dhgroups() };
    // SAFETY: `app` and the strings it points to outlive the call; `begin` takes
    // `start` over, if it is called.
    let code = unsafe { sys::spdk_app_start(&mut app, Some(begin), start.cast()) };

    match shared.try_recv() {
        Ok(shared) => shared.close(),
        // SAFETY: `begin` takes the box before anything else and sends or drops
        // `shared`; so it did not run if the sender is still alive, and then the
        // box is ours.
        Err(oneshot::error::TryRecvError::Empty) => drop(unsafe { Box::from_raw(start) }),
        Err(oneshot::error::TryRecvError::Closed) => {}
    }
    // SAFETY: spdk_app_start has returned; the rings are freed.
    unsafe { sys::spdk_app_fini() };
    remove_dpdk_dirs();
    code
}

/// DPDK makes a directory for each process and leaves it behind: removes ours, and
/// those of processes that are gone. Where they cannot be removed they do no harm.
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

/// Ends the process at once, without the exit handlers of C libraries: they would
/// take down what reactors still use, if SPDK has not stopped.
pub fn exit_at_once(code: u8) -> ! {
    // SAFETY: ends the process; nothing runs afterwards.
    unsafe { libc::_exit(c_int::from(code)) }
}

/// SPDK's start function: on the app thread, once all subsystems are up.
unsafe extern "C" fn begin(argument: *mut c_void) {
    // SAFETY: what `host` passed, and SPDK calls once.
    let start = unsafe { Box::from_raw(argument.cast::<Start>()) };
    // Before anything is put into a thread-local: see [`Spdk`].
    // SAFETY: SPDK calls this on the app thread, which lives until SPDK has stopped.
    unsafe { sys::spdk_thread_bind(sys::spdk_get_thread(), true) };
    let spdk = Spdk { stays: PhantomData };
    // Before anybody can attach a controller, by SPDK's socket or the mailbox.
    let configured = nvme::configure(spdk, start.remote_io_timeout);
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
        // SAFETY: on the app thread, with the reactors running.
        Err(_) => unsafe { sys::spdk_app_stop(1) },
    }
    // Nobody waits any more: then the process is on its way out.
    let _ = start.opened.send(opened);
}

/// How many reactors there are; 0 before SPDK has started.
pub fn reactor_count() -> u32 {
    // SAFETY: reads a number that is settled once SPDK has started, and a table of zeros before.
    unsafe { sys::spdk_env_get_core_count() }
}

/// SPDK's version, as it calls itself: "SPDK v26.01".
pub fn version() -> &'static str {
    sys::SPDK_VERSION_STRING.to_str().unwrap_or("SPDK")
}
