//! A vhost-user client under the test's control: each message byte by byte, with any file descriptors,
//! and each descriptor of each queue.
//!
//! ```text
//! Connection   messages and file descriptors on the socket
//! Guest        memory of ordinary or 2 MiB pages, and its memory table
//! Queue        one split virtqueue: descriptors, kick, call
//! Session      a driver that negotiated and set up its queues; hostile tests change a step
//! Disk         verified I/O of virtio-blk and virtio-scsi over a session
//! Witness      another client's disk under continuous verified I/O
//! ```

mod connection;
mod disk;
mod guest;
mod message;
mod queue;
mod scsi;
mod session;
mod witness;

pub use connection::Connection;
pub use disk::{Disk, Kind, SECTOR, blk_header};
pub use guest::{Guest, Pages, Region, USER_BASE, memory_file, table};
pub use message::{Message, feature, flag, protocol, request};
pub use queue::{Descriptor, Queue, flags};
pub use scsi::{Command, RESPONSE, Tmf, lun};
pub use session::{Options, Session};
pub use witness::Witness;
