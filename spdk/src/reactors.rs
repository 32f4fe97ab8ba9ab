//! What the reactors have done with their time, and whether they turn. Read from any thread, without their
//! help.

use std::time::Duration;

use spdk_sys as sys;

/// A reactor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reactor {
    /// Its core.
    pub core: u32,
    /// Time of turns that had work.
    pub busy: Duration,
    /// Time of turns that had none.
    pub idle: Duration,
    /// How long ago its last turn ended.
    pub last_turn: Duration,
}

/// All reactors. While SPDK runs: the caller keeps it from stopping.
pub(crate) fn read() -> Vec<Reactor> {
    let mut reactors = Vec::new();
    // SAFETY: lists cores of the environment, which is up.
    let mut core = unsafe { sys::spdk_env_get_first_core() };
    while core != u32::MAX {
        let mut time = sys::opi_reactor_time {
            busy_ticks: 0,
            idle_ticks: 0,
            last_turn: 0,
        };
        // SAFETY: SPDK runs; the output outlives the call.
        if unsafe { sys::opi_reactor_read(core, &mut time) } {
            // SAFETY: the environment is up.
            let now = unsafe { sys::spdk_get_ticks() };
            reactors.push(Reactor {
                core,
                busy: duration(time.busy_ticks),
                idle: duration(time.idle_ticks),
                last_turn: duration(now.saturating_sub(time.last_turn)),
            });
        }
        // SAFETY: as above.
        core = unsafe { sys::spdk_env_get_next_core(core) };
    }
    reactors
}

/// Time as ticks.
pub(crate) fn ticks(time: Duration) -> u64 {
    // SAFETY: reads a value that is fixed once SPDK runs.
    let per_second = unsafe { sys::spdk_get_ticks_hz() };
    let ticks = time.as_nanos() * u128::from(per_second) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// Ticks as time.
pub(crate) fn duration(ticks: u64) -> Duration {
    // SAFETY: reads a value that is fixed once SPDK runs.
    let per_second = unsafe { sys::spdk_get_ticks_hz() };
    let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(per_second.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
