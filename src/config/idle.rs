//! What reactors without work do.

use serde::Deserialize;

/// What a reactor does while it has no work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Idle {
    /// It sleeps, at most a millisecond at a time, and is woken by sockets and other threads.
    #[default]
    Nap,
    /// It polls without end, and takes its whole core.
    Busy,
}
