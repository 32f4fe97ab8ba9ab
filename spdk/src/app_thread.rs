//! The proof that code runs on SPDK's app thread.

use std::marker::PhantomData;

use spdk_sys as sys;

/// Proof that code runs on SPDK's app thread, where bdevs are registered and NVMe-oF and vhost are configured.
/// Neither `Send` nor `Sync`.
///
/// Invariant: the app thread is bound to the reactor that it starts on (`spdk_thread_bind`), so a single OS thread
/// runs it for the lifetime of SPDK. The executor, the watches and other state live in thread-locals of that OS
/// thread. Neither a scheduler nor `thread_set_cpumask` over SPDK's JSON-RPC moves a bound thread
/// (`lib/event/reactor.c`).
#[derive(Clone, Copy)]
pub struct Spdk {
    stays: PhantomData<*const ()>,
}

impl Spdk {
    /// Binds the app thread to its reactor.
    ///
    /// # Safety
    /// Runs on the app thread, before anything is stored in a thread-local of its OS thread.
    pub(crate) unsafe fn bind() -> Self {
        // SAFETY: the caller's contract; the app thread lives until SPDK has stopped.
        unsafe { sys::spdk_thread_bind(sys::spdk_get_thread(), true) };
        Self { stays: PhantomData }
    }
}
