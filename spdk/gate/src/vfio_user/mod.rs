//! vfio-user: DMA regions, PRPs, SGLs and queues of a virtual machine, and the messages of its client.
//!
//! Guest addresses are 64 bits and untrusted: no end is computed by an addition that can overflow. SPDK maps
//! nothing, and passes nothing to a controller, that these functions refuse.

mod memory;
mod message;
mod queue;
mod transfer;

pub use memory::{MEMORY_MAX, Region, is_region_right};
pub use message::{FDS_MAX, is_message_right};
pub use queue::{QUEUE_BYTES_MAX, is_queue_right};
pub use transfer::{SEGMENTS_MAX, Walk, prps};

/// The smallest page of guests, and the only one of NVMe here (CAP.MPSMIN and MPSMAX are 0). Bytes.
pub const PAGE: u64 = 4096;

/// Returns whether a guest address is page-aligned.
fn is_page(address: u64) -> bool {
    address.is_multiple_of(PAGE)
}
