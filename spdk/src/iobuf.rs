//! SPDK's buffers for I/O (iobuf): two pools of pieces of one size, of which every SPDK thread keeps some
//! for itself for each module that moves data.

use std::ffi::c_void;

use spdk_sys as sys;

use crate::completion::{Callback, Promise, call};
use crate::cstr::string;
use crate::error::{Error, check};
use crate::runtime::Spdk;

/// What a module has asked one of the pools for since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gets {
    /// Buffers that its threads had kept for themselves.
    pub kept: u64,
    /// Batches that came from the pool.
    pub pool: u64,
    /// I/O that waited, because there was none.
    pub waits: u64,
}

/// One of the two pools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pool {
    /// Bytes of a buffer.
    pub buffer_bytes: u64,
    /// Buffers in all; 0 where SPDK does not tell.
    pub buffers: u64,
    /// Those in the pool.
    pub free: u64,
    /// Those that threads keep for themselves, free too.
    pub kept: u64,
    /// By the module that asked.
    pub gets: Vec<(String, Gets)>,
}

impl Pool {
    /// Buffers with I/O in them.
    pub fn used(&self) -> u64 {
        // The three are not read at one instant.
        let free = self.free.saturating_add(self.kept);
        self.buffers.saturating_sub(free)
    }
}

/// Reads the pools: that of small buffers, and that of large ones.
///
/// # Errors
/// SPDK has no memory for it.
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
    // SAFETY: on the app thread; the output outlives the call.
    unsafe { sys::opi_iobuf_state(small, large) };
    let mut pools = states.map(|state| Pool {
        buffer_bytes: state.buffer_bytes,
        buffers: state.buffers,
        free: state.free,
        kept: state.kept,
        gets: Vec::with_capacity(number as usize),
    });
    for index in 0..number as usize {
        // SAFETY: so many are there, for the call, each with its name.
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

/// How many buffers the pools have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iobuf {
    /// Of 8 KiB.
    pub small: u64,
    /// Of 132 KiB.
    pub large: u64,
}

impl Iobuf {
    /// What SPDK's own programs have, for one reactor.
    const DEFAULT: Self = Self {
        small: 8192,
        large: 1024,
    };
    /// What each further reactor keeps for itself: bdev and accel 128 and 16 each, and NVMe/TCP.
    const PER_REACTOR: Self = Self {
        small: 512,
        large: 64,
    };
    /// The least and the most that can be asked for.
    pub const SMALL: std::ops::RangeInclusive<u64> = 64..=1 << 22;
    /// The least and the most that can be asked for.
    pub const LARGE: std::ops::RangeInclusive<u64> = 8..=1 << 18;

    /// Enough for so many reactors.
    pub fn for_reactors(reactors: usize) -> Self {
        let further = (reactors as u64).saturating_sub(1);
        Self {
            small: Self::DEFAULT.small + further * Self::PER_REACTOR.small,
            large: Self::DEFAULT.large + further * Self::PER_REACTOR.large,
        }
    }

    /// What the pools take of SPDK's memory, MiB.
    pub fn mib(self) -> u64 {
        let kib = self.small.saturating_mul(8) + self.large.saturating_mul(132);
        kib.div_ceil(1024)
    }

    /// Has SPDK make the pools so; before it starts.
    pub(crate) fn set(self) -> Result<(), Error> {
        // SAFETY: a C struct for which all zero is a valid value; SPDK fills in what is of the size given.
        let mut options: sys::spdk_iobuf_opts = unsafe { std::mem::zeroed() };
        // SAFETY: the size is that of the struct given.
        unsafe { sys::spdk_iobuf_get_opts(&mut options, size_of::<sys::spdk_iobuf_opts>()) };
        options.small_pool_count = self.small;
        options.large_pool_count = self.large;
        options.opts_size = size_of::<sys::spdk_iobuf_opts>();
        // SAFETY: SPDK copies the struct; it has not started.
        check("size the pools of buffers", unsafe {
            sys::spdk_iobuf_set_opts(&options)
        })
    }
}
