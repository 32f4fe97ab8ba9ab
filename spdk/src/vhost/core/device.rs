//! What a kind of device brings: its features and configuration space for the control thread, and its
//! requests on the worker.

use std::sync::Arc;

use spdk_gate::vhost_user::message::CONFIG_SPACE;

use super::request::Request;
use super::session::Queues;

/// What a device is. Shared by all threads; its calls return at once.
pub(crate) trait Device: Send + Sync + 'static {
    /// Its half on the worker.
    type Io: Io;

    /// Virtio features of the kind; the core adds its own.
    fn features(&self) -> u64;

    /// Most queues that a driver may set up.
    fn max_queues(&self) -> u16;

    /// The number of queues that a client is told.
    fn queue_num(&self) -> u16 {
        self.max_queues()
    }

    /// Fills in the configuration space, which is zeroed. On the control thread.
    fn config(&self, space: &mut [u8; CONFIG_SPACE]);

    /// Whether a device (PCIe, RDMA) reads and writes guest memory by itself, which must then be on huge pages.
    fn needs_dma(&self) -> bool {
        false
    }

    /// Makes the half on the worker, there, when a session begins. It is dropped there when the session
    /// has ended and no request is outstanding.
    fn io(self: Arc<Self>) -> Self::Io;
}

/// The half of a device on the SPDK thread that polls its rings. It does not leave that thread.
pub(crate) trait Io: Sized + 'static {
    /// What a request needs beside its data. One in each slot of a ring, made once and reused as it is.
    type Context: Default + 'static;

    /// Whether the core takes requests from this queue by itself; otherwise [`Io::poll`] does.
    fn is_polled(&self, _queue: u16) -> bool {
        true
    }

    /// Begins a request, which ends by [`Request::complete`] on this thread, now or later.
    fn submit(&self, request: Request<Self>);

    /// Takes a turn after the rings, each time that they are polled. Whether there was something to do.
    fn poll(&self, _queues: &Queues<'_, Self>) -> bool {
        false
    }

    /// Ends what is outstanding as fast as it can: the process stops.
    fn abort(&self) {}
}
