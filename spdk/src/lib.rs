//! A safe API over SPDK v26.01: the runtime that hosts its reactors, the mailbox through which other threads run
//! work on SPDK's app thread, and the bdevs and the NVMe-oF and vhost objects.
//!
//! ```text
//!  control threads                      │  SPDK app thread (a pinned reactor)
//!                                       │
//!  Handle::call(recipe) ── request ring ──► mailbox poller ─► executor ─► C
//!        ▲                              │                                 │
//!        └── reply task ◄── reply ring ◄──────────────── completion ◄─────┘
//!             (eventfd)                 │
//! ```
//!
//! [`Spdk`] proves that code runs on the app thread. Every function that touches SPDK takes one. It is neither
//! `Send` nor `Sync`, so state of that thread cannot escape from it. It cannot be returned as a result:
//!
//! ```compile_fail
//! # async fn f(handle: spdk::Handle) {
//! let stolen: spdk::Spdk = handle.call(|spdk| async move { spdk }).await.unwrap();
//! # }
//! ```
//!
//! It cannot be moved to an ordinary thread:
//!
//! ```compile_fail
//! # async fn f(handle: spdk::Handle) {
//! handle.call(|spdk| async move { std::thread::spawn(move || drop(spdk)); }).await.unwrap();
//! # }
//! ```
//!
//! A recipe must not capture anything that is not `Send`:
//!
//! ```compile_fail
//! # async fn f(handle: spdk::Handle) {
//! let local = std::rc::Rc::new(1);
//! handle.call(move |_| async move { *local }).await.unwrap();
//! # }
//! ```
//!
//! A `Send` recipe whose future is not `Send` is what the mailbox is for:
//!
//! ```no_run
//! # async fn f(handle: spdk::Handle) {
//! let one = handle
//!     .call(|spdk| async move {
//!         let local = std::rc::Rc::new(1);
//!         std::future::ready(()).await;
//!         let _here = spdk;
//!         *local
//!     })
//!     .await;
//! # }
//! ```

mod app_thread;
pub mod bdev;
mod completion;
pub mod cores;
pub mod cpu;
mod cstr;
mod deadline;
pub mod dhchap;
pub mod errno;
mod error;
pub mod file_lock;
mod guest_memory;
pub mod hooks;
mod hugepages;
mod iobuf;
pub mod keyring;
mod locks;
mod log;
mod mailbox;
mod memory;
pub mod nvmf;
mod physical;
mod reactors;
mod ring;
mod rpc;
mod runtime;
mod sigbus;
mod step;
mod stopping;
mod timer;
mod transport_id;
pub mod vhost;
mod wiping;

pub use app_thread::Spdk;
pub use error::{Errno, Error};
pub use hooks::idle::LONGEST as LONGEST_SLEEP;
pub use hooks::polls::{POLL_BOUNDS, Polls};
pub use hugepages::hugepages_free_mib;
pub use iobuf::{Gets as IobufGets, Iobuf, Pool as IobufPool, pools as iobuf_pools};
pub use log::level_has_changed as log_level_has_changed;
pub use mailbox::{CallError, ControlStats, Handle, MailboxStats};
pub use mailbox::{Observer, Timeline, observe_calls};
pub use memory::{Memory, memory};
pub use reactors::Reactor;
pub use runtime::{Options, Runtime, StartError, exit_at_once, reactor_count, version};
pub use wiping::Wiping;
