//! The rules against everything that is small enough to try, and much that is not.

mod blk;
mod chain;
mod frontend;
mod inflight;
mod memory;
mod message;
mod ring;
mod scsi;
