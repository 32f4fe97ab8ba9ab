//! A vfio-user client that builds each message byte by byte, and an NVMe host on top of it. Guest memory
//! is a memfd accessed by read and write rather than mapped, so that all code is safe.
//!
//! ```text
//! Link    socket: messages, descriptors, replies       link.rs
//! Memory  a memfd at a guest address                   memory.rs
//! Guest   a controller with an admin and an I/O queue  guest.rs, nvme.rs
//! ```

mod guest;
mod link;
mod memory;
mod nvme;

pub use guest::{DATA, Guest, LISTS, Queue, Which};
pub use link::{Header, Link, Reply, command};
pub use memory::{BASE, Memory, PAGE, READ, SIZE, WRITE, map_at};
pub use nvme::{Command, Completion, admin, io};
