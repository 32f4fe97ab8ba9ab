//! Reactor time accounting and liveness. Read from any thread, without involving the reactors.

use std::time::Duration;

use spdk_sys as sys;

use crate::hooks::idle;

/// A reactor's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reactor {
    /// Processor core.
    pub core: u32,
    /// Time in turns with work.
    pub busy: Duration,
    /// Time in turns without work, asleep included.
    pub idle: Duration,
    /// Time asleep between turns.
    pub asleep: Duration,
    /// Time since its last turn ended.
    pub last_turn: Duration,
}

/// Reads all reactors. SPDK must be running, and the caller must keep it from stopping.
pub(crate) fn read() -> Vec<Reactor> {
    let mut reactors = Vec::new();
    // SAFETY: reads the core list of the environment, which is initialized while SPDK runs.
    let mut core = unsafe { sys::spdk_env_get_first_core() };
    while core != u32::MAX {
        let mut time = sys::opi_reactor_time {
            busy_ticks: 0,
            idle_ticks: 0,
            last_turn: 0,
        };
        // SAFETY: SPDK runs, so reactors exist; `time` is valid for writes and outlives the call.
        if unsafe { sys::opi_reactor_read(core, &mut time) } {
            // SAFETY: reads a counter; the environment is initialized.
            let now = unsafe { sys::spdk_get_ticks() };
            reactors.push(Reactor {
                core,
                busy: duration(time.busy_ticks),
                idle: duration(time.idle_ticks),
                asleep: duration(idle::asleep_ticks(core)),
                last_turn: duration(now.saturating_sub(time.last_turn)),
            });
        }
        // SAFETY: as for the first core above.
        core = unsafe { sys::spdk_env_get_next_core(core) };
    }
    reactors
}

/// Converts time to ticks.
pub(crate) fn ticks(time: Duration) -> u64 {
    // SAFETY: reads a value that is constant once SPDK runs.
    let per_second = unsafe { sys::spdk_get_ticks_hz() };
    let ticks = time.as_nanos() * u128::from(per_second) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// Converts ticks to time.
pub(crate) fn duration(ticks: u64) -> Duration {
    // SAFETY: reads a value that is constant once SPDK runs.
    let per_second = unsafe { sys::spdk_get_ticks_hz() };
    let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(per_second.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
