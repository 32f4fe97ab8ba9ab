//! The interface of a kind of device: features and configuration space for the control thread, request processing on
//! the worker.

use std::sync::Arc;

use spdk_gate::vhost_user::message::CONFIG_SPACE;

use super::request::Request;
use super::session::Queues;

/// A device, shared by all threads. Its methods must not block.
pub(crate) trait Device: Send + Sync + 'static {
    /// The worker's half.
    type Io: Io;

    /// Returns the virtio features of the kind; the core adds its own.
    fn features(&self) -> u64;

    /// Returns how many queues a driver may set up.
    fn max_queues(&self) -> u16;

    /// Returns the number of queues reported to a client.
    fn queue_num(&self) -> u16 {
        self.max_queues()
    }

    /// Fills in the configuration space, which is zeroed. Control thread.
    fn config(&self, space: &mut [u8; CONFIG_SPACE]);

    /// Returns whether a device (PCIe, RDMA) accesses guest memory by DMA. The memory must then be on huge pages.
    fn needs_dma(&self) -> bool {
        false
    }

    /// Creates the worker's half, on the worker, when a session begins. It is dropped there once the session has
    /// ended and no request is outstanding.
    fn io(self: Arc<Self>) -> Self::Io;
}

/// The half of a device on the SPDK thread that polls its rings. Never leaves that thread.
pub(crate) trait Io: Sized + 'static {
    /// Per-request state. One in each slot of a ring, created once and reused without a reset.
    type Context: Default + 'static;

    /// Returns whether the core polls this queue; otherwise [`Io::poll`] takes requests from it.
    fn is_polled(&self, _queue: u16) -> bool {
        true
    }

    /// Starts a request, which ends by [`Request::complete`] on this thread, now or later. Returns how many bytes of a
    /// volume it reads or changes; 0 if it is answered at once. The sum bounds a turn of the poller.
    fn submit(&self, request: Request<Self>) -> u64;

    /// Runs after the rings in each turn of the poller. Returns whether there was work.
    fn poll(&self, _queues: &Queues<'_, Self>) -> bool {
        false
    }

    /// Aborts outstanding requests as fast as possible, during teardown.
    fn abort(&self) {}
}
