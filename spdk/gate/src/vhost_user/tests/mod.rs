//! Exhaustive tests of small inputs, and property tests of large ones.

mod blk;
mod chain;
mod frontend;
mod inflight;
mod memory;
mod message;
mod ring;
mod room;
mod scsi;
mod turn;
