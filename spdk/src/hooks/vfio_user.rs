//! Hooks of vfio-user (`spdk/changes/include/vfio_user.h`), called by `lib/nvmf/vfio_user.c` and libvfio-user.

use std::ffi::c_void;

use spdk_gate::vfio_user::{Region, Walk, is_message_right, is_queue_right, is_region_right, prps};

use crate::guest_memory::GuestMemory;

/// `struct opi_vfio_user_region`.
#[repr(C)]
pub struct RawRegion {
    addr: u64,
    size: u64,
    offset: u64,
    file_size: u64,
    mapped: u64,
    has_file: bool,
    readable: bool,
}

/// `struct opi_vfio_user_walk`.
#[repr(C)]
pub struct RawWalk {
    left: u64,
    room: u32,
    segments: u32,
    last: bool,
}

impl RawWalk {
    /// Runs a step of the gate's walk, and stores the new state.
    fn step<T>(&mut self, step: impl FnOnce(&mut Walk) -> T) -> T {
        let mut walk = Walk {
            left: self.left,
            room: self.room,
            segments: self.segments,
            is_last: self.last,
        };
        let result = step(&mut walk);
        *self = Self {
            left: walk.left,
            room: walk.room,
            segments: walk.segments,
            last: walk.is_last,
        };
        result
    }
}

/// Returns whether the region may be mapped.
///
/// # Safety
///
/// `region` is NULL or valid for reads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_vfio_user_region(region: *const RawRegion) -> bool {
    // SAFETY: by the caller's contract NULL or valid for reads.
    unsafe { region.as_ref() }.is_some_and(|raw| {
        is_region_right(&Region {
            addr: raw.addr,
            size: raw.size,
            offset: raw.offset,
            file_size: raw.has_file.then_some(raw.file_size),
            mapped: raw.mapped,
            is_readable: raw.readable,
        })
    })
}

/// Returns whether a message has what its command needs.
#[unsafe(no_mangle)]
pub extern "C" fn opi_vfio_user_message(command: u16, body: u64, fds: u64) -> bool {
    is_message_right(command, body, fds)
}

/// Returns whether a queue may be at this address.
#[unsafe(no_mangle)]
pub extern "C" fn opi_vfio_user_queue(addr: u64, entries: u64, entry_size: u64) -> bool {
    is_queue_right(addr, entries, entry_size)
}

/// Returns how many data pointers a transfer has in PRPs; 0 refuses.
#[unsafe(no_mangle)]
pub extern "C" fn opi_vfio_user_prps(prp1: u64, prp2: u64, length: u64, max: u32) -> u32 {
    prps(prp1, prp2, length, max)
}

/// Accounts for a data block of an SGL; false refuses.
///
/// # Safety
///
/// `walk` is NULL, or valid for reads and writes and accessed by nobody else.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_vfio_user_sgl_data(
    walk: *mut RawWalk,
    kind: u8,
    addr: u64,
    length: u32,
) -> bool {
    // SAFETY: by the caller's contract NULL, or valid with exclusive access.
    unsafe { walk.as_mut() }.is_some_and(|raw| raw.step(|walk| walk.data(kind, addr, length)))
}

/// Returns how many descriptors a segment of an SGL has; 0 refuses.
///
/// # Safety
///
/// `walk` is NULL, or valid for reads and writes and accessed by nobody else.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_vfio_user_sgl_segment(
    walk: *mut RawWalk,
    kind: u8,
    addr: u64,
    length: u32,
) -> u32 {
    // SAFETY: by the caller's contract NULL, or valid with exclusive access.
    unsafe { walk.as_mut() }.map_or(0, |raw| raw.step(|walk| walk.segment(kind, addr, length)))
}

/// Watches a mapping of a client's memory; NULL if the limit of watches is reached.
#[unsafe(no_mangle)]
pub extern "C" fn opi_guest_memory_add(
    base: *mut c_void,
    length: usize,
    page: usize,
) -> *mut c_void {
    GuestMemory::watch(base as usize, length, page).map_or(std::ptr::null_mut(), |memory| {
        Box::into_raw(Box::new(memory)).cast()
    })
}

/// Returns whether the mapping's file was truncated.
///
/// # Safety
///
/// `watch` is NULL, or comes from `opi_guest_memory_add` and has not been removed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_guest_memory_cut(watch: *const c_void) -> bool {
    // SAFETY: by the caller's contract NULL, or a live watch.
    unsafe { watch.cast::<GuestMemory>().as_ref() }.is_some_and(GuestMemory::is_cut)
}

/// Ends the watch. Call before the memory is unmapped.
///
/// # Safety
///
/// `watch` is NULL, or comes from `opi_guest_memory_add`, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_guest_memory_remove(watch: *mut c_void) {
    if !watch.is_null() {
        // SAFETY: not null, and by the caller's contract a box from `opi_guest_memory_add` that is taken back once.
        drop(unsafe { Box::from_raw(watch.cast::<GuestMemory>()) });
    }
}
