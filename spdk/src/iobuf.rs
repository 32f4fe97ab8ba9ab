//! SPDK's I/O buffers (iobuf): two pools with one buffer size each. Every SPDK thread keeps a cache of both for each
//! module that moves data.

use std::ffi::c_void;

use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::completion::{Callback, Promise, call};
use crate::cstr::string;
use crate::error::{Error, check};

/// A module's requests to one pool since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gets {
    /// Buffers taken from a thread's cache.
    pub kept: u64,
    /// Batches taken from the pool.
    pub pool: u64,
    /// I/Os that were queued because the pool was empty.
    pub waits: u64,
}

/// The state of one pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pool {
    /// Buffer size in bytes.
    pub buffer_bytes: u64,
    /// Total number of buffers; 0 if SPDK does not expose it.
    pub buffers: u64,
    /// Free buffers in the pool.
    pub free: u64,
    /// Free buffers in the caches of threads.
    pub kept: u64,
    /// Requests by module.
    pub gets: Vec<(String, Gets)>,
}

impl Pool {
    /// Returns the number of buffers in use by I/O.
    pub fn used(&self) -> u64 {
        // Saturating: the counts are not an atomic snapshot.
        let free = self.free.saturating_add(self.kept);
        self.buffers.saturating_sub(free)
    }
}

/// Reads both pools: small buffers, then large buffers.
///
/// # Errors
/// SPDK is out of memory.
pub async fn pools(_: Spdk) -> Result<[Pool; 2], Error> {
    call::<Counters>(
        "read the counters of the pools of buffers",
        |callback, argument| {
            // SAFETY: on the app thread; the callback takes the argument back, once.
            unsafe { sys::spdk_iobuf_get_stats(callback, argument) }
        },
    )
    .await
}

/// The callback that reports the counters of both pools.
struct Counters;

// SAFETY: `on_stats` takes the argument back once.
unsafe impl Callback for Counters {
    type Report = [Pool; 2];
    type Function = sys::spdk_iobuf_get_stats_cb;
    const FUNCTION: Self::Function = Some(on_stats);
}

unsafe extern "C" fn on_stats(
    modules: *mut sys::spdk_iobuf_module_stats,
    number: u32,
    argument: *mut c_void,
) {
    // SAFETY: the argument of a `call::<Counters>`; SPDK calls once, on the app thread.
    let promise = unsafe { Promise::<[Pool; 2]>::from_raw(argument) };
    let none = sys::opi_iobuf_state {
        buffer_bytes: 0,
        buffers: 0,
        free: 0,
        kept: 0,
    };
    let mut states = [none; 2];
    let [small, large] = &mut states;
    // SAFETY: runs on the app thread; both outputs are valid for writes and outlive the call.
    unsafe { sys::opi_iobuf_state(small, large) };
    let mut pools = states.map(|state| Pool {
        buffer_bytes: state.buffer_bytes,
        buffers: state.buffers,
        free: state.free,
        kept: state.kept,
        gets: Vec::with_capacity(number as usize),
    });
    for index in 0..number as usize {
        // SAFETY: SPDK passes an array of `number` modules with NUL-terminated names, valid during this callback.
        let (module, name) = unsafe {
            let module = &*modules.add(index);
            (module, string(module.module))
        };
        for (pool, of) in pools
            .iter_mut()
            .zip([&module.small_pool, &module.large_pool])
        {
            let gets = Gets {
                kept: of.cache,
                pool: of.main,
                waits: of.retry,
            };
            pool.gets.push((name.clone(), gets));
        }
    }
    promise.complete(pools);
}

/// The sizes of both pools, in buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iobuf {
    /// Buffers of 8 KiB.
    pub small: u64,
    /// Buffers of 132 KiB.
    pub large: u64,
}

impl Iobuf {
    /// The defaults of SPDK's own programs, enough for one reactor.
    const DEFAULT: Self = Self {
        small: 8192,
        large: 1024,
    };
    /// The caches of each further reactor: its two threads may keep 128 small and 16 large buffers for bdev, and as many for
    /// accel; see [`kept`](Self::kept).
    const PER_REACTOR: Self = Self {
        small: 512,
        large: 64,
    };
    /// The allowed range for `small`.
    pub const SMALL: std::ops::RangeInclusive<u64> = 64..=1 << 22;
    /// The allowed range for `large`.
    pub const LARGE: std::ops::RangeInclusive<u64> = 8..=1 << 18;

    /// Returns sizes that suffice for this number of reactors.
    pub fn for_reactors(reactors: usize) -> Self {
        let further = (reactors as u64).saturating_sub(1);
        Self {
            small: Self::DEFAULT.small + further * Self::PER_REACTOR.small,
            large: Self::DEFAULT.large + further * Self::PER_REACTOR.large,
        }
    }

    /// Returns what the pools take of SPDK's memory, in MiB.
    pub fn mib(self) -> u64 {
        let kib = self.small.saturating_mul(8) + self.large.saturating_mul(132);
        kib.div_ceil(1024)
    }

    /// Returns how many buffers of each pool a thread keeps for each module, so that the threads of all reactors leave a
    /// quarter of the pools to those that need more: a thread that does not get its part serves no device.
    fn kept(self, reactors: usize) -> [u32; 2] {
        /// The defaults of SPDK.
        const DEFAULT: [u32; 2] = [128, 16];
        /// bdev and accel.
        const MODULES: u64 = 2;
        // Of each reactor the poll group of NVMe-oF and the worker of vhost-user, and the app thread.
        let threads = (reactors as u64).saturating_mul(2).saturating_add(1);
        let shares = threads.saturating_mul(MODULES);
        let part = |pool: u64, default: u32| {
            let part = (pool - pool / 4) / shares;
            u32::try_from(part).unwrap_or(default).min(default)
        };
        let [small, large] = DEFAULT;
        [part(self.small, small), part(self.large, large)]
    }

    /// Sets the sizes of SPDK's pools, and of the caches of the threads of so many reactors. Only before SPDK starts.
    pub(crate) fn set(self, reactors: usize) -> Result<(), Error> {
        let [small, large] = self.kept(reactors);
        // SAFETY: SPDK has not started: no thread has a cache yet.
        check("size the threads' caches of buffers", unsafe {
            sys::opi_iobuf_keep(small, large)
        })?;
        // SAFETY: a C struct of integers, for which all zero is valid; SPDK fills in the fields within the size
        // passed.
        let mut options: sys::spdk_iobuf_opts = unsafe { std::mem::zeroed() };
        // SAFETY: `options` is valid for writes of the size passed.
        unsafe { sys::spdk_iobuf_get_opts(&mut options, size_of::<sys::spdk_iobuf_opts>()) };
        options.small_pool_count = self.small;
        options.large_pool_count = self.large;
        options.opts_size = size_of::<sys::spdk_iobuf_opts>();
        // SAFETY: SPDK copies the struct, whose size is in it; SPDK has not started, so no thread uses the pools.
        check("size the pools of buffers", unsafe {
            sys::spdk_iobuf_set_opts(&options)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_keep_a_part_of_the_pools_at_most() {
        assert_eq!(Iobuf::for_reactors(1).kept(1), [128, 16]);
        assert_eq!(Iobuf::for_reactors(8).kept(8), [128, 16]);
        let least = Iobuf {
            small: *Iobuf::SMALL.start(),
            large: *Iobuf::LARGE.start(),
        };
        assert_eq!(least.kept(1), [8, 1]);
        for reactors in 1..1024 {
            let pools = Iobuf::for_reactors(reactors);
            let [small, large] = pools.kept(reactors).map(u64::from);
            let shares = 2 * (2 * reactors as u64 + 1);
            assert!(small * shares <= pools.small * 3 / 4, "{reactors}");
            assert!(large * shares <= pools.large * 3 / 4, "{reactors}");
            assert!(small >= 64 && large >= 8, "{reactors}: {small} {large}");
        }
    }
}
