//! Requests of a virtio-blk device, on the worker.

use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

use spdk_gate::vhost_user::blk::{Command, HEADER, RANGE, command, range, status};
use spdk_gate::vhost_user::chain::Segment;
use spdk_sys as sys;

use super::Blk;
use crate::vhost::core::{Io, Queues, Request};

/// Bytes of a request's status.
const STATUS: u32 = 1;

/// The worker's half of a device, with a channel to its bdev.
pub(crate) struct BlkIo {
    blk: Arc<Blk>,
    /// Null without a lease.
    descriptor: Cell<*mut sys::spdk_bdev_desc>,
    channel: Cell<*mut sys::spdk_io_channel>,
}

/// Per-request state while SPDK processes the request.
pub(crate) struct Context {
    io: Cell<*const BlkIo>,
    task: Cell<Task>,
    /// Used while SPDK is out of memory for the request (backpressure).
    wait: UnsafeCell<sys::spdk_bdev_io_wait_entry>,
}

/// The operation requested of SPDK.
#[derive(Clone, Copy)]
enum Task {
    Read { offset: u64, length: u64 },
    Write { offset: u64, length: u64 },
    Discard { offset: u64, length: u64 },
    WriteZeroes { offset: u64, length: u64 },
    Flush,
}

impl Task {
    /// Returns the bytes of the volume that are read or changed.
    #[inline]
    fn bytes(self) -> u64 {
        match self {
            Self::Read { length, .. }
            | Self::Write { length, .. }
            | Self::Discard { length, .. }
            | Self::WriteZeroes { length, .. } => length,
            Self::Flush => 0,
        }
    }
}

impl Default for Context {
    fn default() -> Self {
        Self {
            io: Cell::new(std::ptr::null()),
            task: Cell::new(Task::Flush),
            // SAFETY: a C struct of nullable pointers, for which all zero is valid.
            wait: UnsafeCell::new(unsafe { std::mem::zeroed() }),
        }
    }
}

impl BlkIo {
    pub(super) fn new(blk: Arc<Blk>) -> Self {
        let io = Self {
            descriptor: Cell::new(std::ptr::null_mut()),
            channel: Cell::new(std::ptr::null_mut()),
            blk,
        };
        if let Some(descriptor) = io.blk.bdev.lease() {
            io.descriptor.set(descriptor);
            // SAFETY: runs on an SPDK thread; the lease keeps the descriptor open. A null channel (out of memory)
            // makes every request fail.
            io.channel
                .set(unsafe { sys::spdk_bdev_get_io_channel(descriptor) });
        }
        io
    }

    /// Releases the channel and the lease. No request may be outstanding.
    fn detach(&self) {
        let channel = self.channel.replace(std::ptr::null_mut());
        if !channel.is_null() {
            // SAFETY: taken by `new` on this thread, and released only here: the pointer was taken out above.
            unsafe { sys::spdk_put_io_channel(channel) };
        }
        if !self.descriptor.replace(std::ptr::null_mut()).is_null() {
            self.blk.bdev.release();
        }
    }

    /// Returns the size of the volume in bytes.
    #[inline]
    fn size(&self) -> u64 {
        let blocks = self.blk.bdev.blocks();
        blocks.saturating_mul(self.blk.block_size.into())
    }

    /// Submits a request to SPDK, which completes it now or later.
    #[inline]
    fn start(&self, mut request: Request<Self>) {
        let (descriptor, channel) = (self.descriptor.get(), self.channel.get());
        // While the bdev is being removed nothing new is submitted, so that outstanding requests drain.
        if channel.is_null() || self.blk.bdev.is_removed() {
            return finish(request, status::ERROR, 0);
        }
        let task = request.context().task.get();
        if let Task::Read { offset, length } = task {
            // Before the buffers count as written: SPDK would refuse it too.
            if offset.saturating_add(length) > self.size() {
                return finish(request, status::ERROR, 0);
            }
            request.touch(length);
        }
        let segments = match task {
            Task::Read { .. } => request.writable(),
            _ => request.readable(),
        };
        let (parts, count) = as_iovecs(segments);
        let raw = request.into_raw();
        let done = Some(on_done as unsafe extern "C" fn(_, _, _));
        // SAFETY: runs on the channel's thread; the lease keeps the descriptor open. The request's slot keeps the
        // segments, and the memory that they point to, until the request is completed. `on_done` does that, once,
        // if SPDK accepts it.
        let rc = unsafe {
            match task {
                Task::Read { offset, length } => sys::spdk_bdev_readv(
                    descriptor, channel, parts, count, offset, length, done, raw,
                ),
                Task::Write { offset, length } => sys::spdk_bdev_writev(
                    descriptor, channel, parts, count, offset, length, done, raw,
                ),
                Task::Discard { offset, length } => {
                    sys::spdk_bdev_unmap(descriptor, channel, offset, length, done, raw)
                }
                Task::WriteZeroes { offset, length } => {
                    sys::spdk_bdev_write_zeroes(descriptor, channel, offset, length, done, raw)
                }
                Task::Flush => sys::spdk_bdev_flush(descriptor, channel, 0, self.size(), done, raw),
            }
        };
        if rc != 0 {
            // SAFETY: SPDK refused the request, so ownership is still here.
            self.refused(unsafe { Request::from_raw(raw) }, rc);
        }
    }

    #[cold]
    fn refused(&self, request: Request<Self>, rc: c_int) {
        if rc != -libc::ENOMEM {
            let answer = match rc == -libc::ENOTSUP {
                true => status::UNSUPPORTED,
                false => status::ERROR,
            };
            return finish(request, answer, 0);
        }
        let context = request.context();
        context.io.set(self);
        let entry = context.wait.get();
        let raw = request.into_raw();
        // SAFETY: runs on the channel's thread. The entry lives in the slot, which is busy until SPDK calls back.
        // It is not queued already: a request is submitted again only after that callback.
        let rc = unsafe {
            let bdev = sys::spdk_bdev_desc_get_bdev(self.descriptor.get());
            (*entry).bdev = bdev;
            (*entry).cb_fn = Some(on_memory);
            (*entry).cb_arg = raw;
            sys::spdk_bdev_queue_io_wait(bdev, self.channel.get(), entry)
        };
        if rc != 0 {
            // SAFETY: the entry was not queued, so ownership of the request is still here.
            finish(unsafe { Request::from_raw(raw) }, status::ERROR, 0);
        }
    }
}

impl Io for BlkIo {
    type Context = Context;

    #[inline]
    fn submit(&self, mut request: Request<Self>) -> u64 {
        let mut header = [0; HEADER];
        // Without room for a status the request can only be returned unanswered.
        if !request.reserve_back(STATUS as usize) {
            return 0;
        }
        if !request.take(&mut header) {
            return answered(request, status::ERROR, 0);
        }
        let (readable, writable) = (request.readable_len(), request.writable_len());
        let task = match command(&header, readable, writable) {
            Ok(Command::Read { offset, length }) => Task::Read { offset, length },
            Ok(Command::Write { offset, length }) => Task::Write { offset, length },
            Ok(Command::Flush) => Task::Flush,
            Ok(Command::Id) => {
                let written = request.write(0, &self.blk.id);
                return answered(request, status::OK, u32::try_from(written).unwrap_or(0));
            }
            Ok(Command::Discard) => match ranged(&mut request, true) {
                Ok((offset, length)) => Task::Discard { offset, length },
                Err(answer) => return answered(request, answer, 0),
            },
            Ok(Command::WriteZeroes) => match ranged(&mut request, false) {
                Ok((offset, length)) => Task::WriteZeroes { offset, length },
                Err(answer) => return answered(request, answer, 0),
            },
            Err(answer) => return answered(request, answer, 0),
        };
        request.context().task.set(task);
        self.start(request);
        task.bytes()
    }

    #[inline]
    fn poll(&self, queues: &Queues<'_, Self>) -> bool {
        let goes = self.blk.bdev.is_removed();
        if goes && !self.descriptor.get().is_null() && queues.outstanding() == 0 {
            self.detach();
        }
        false
    }

    fn abort(&self) {
        if self.channel.get().is_null() {
            return;
        }
        let (descriptor, channel) = (self.descriptor.get(), self.channel.get());
        // SAFETY: runs on the channel's thread; the lease keeps the descriptor open. If SPDK is out of memory for
        // the reset, requests complete on their own.
        unsafe { sys::spdk_bdev_reset(descriptor, channel, Some(on_reset), std::ptr::null_mut()) };
    }
}

impl Drop for BlkIo {
    fn drop(&mut self) {
        self.detach();
    }
}

fn ranged(request: &mut Request<BlkIo>, discard: bool) -> Result<(u64, u64), u8> {
    let mut payload = [0; RANGE];
    if !request.take(&mut payload) {
        return Err(status::ERROR);
    }
    range(&payload, discard)
}

#[inline]
fn as_iovecs(segments: &[Segment]) -> (*mut sys::iovec, c_int) {
    let first = segments.as_ptr().cast_mut().cast();
    (first, c_int::try_from(segments.len()).unwrap_or_default())
}

/// Completes a request with a status, after `written` bytes of data.
#[inline]
fn finish(mut request: Request<BlkIo>, answer: u8, written: u32) {
    request.respond(&[answer]);
    request.complete(written.saturating_add(STATUS));
}

/// As [`finish`], for a request that needs no I/O: its bytes are 0.
fn answered(request: Request<BlkIo>, answer: u8, written: u32) -> u64 {
    finish(request, answer, written);
    0
}

/// SPDK's completion callback of a request.
unsafe extern "C" fn on_done(bdev_io: *mut sys::spdk_bdev_io, success: bool, raw: *mut c_void) {
    // SAFETY: SPDK passes the request that `start` handed over, once, on the same thread, and an I/O that the
    // callback owns and must free.
    let request = unsafe {
        sys::spdk_bdev_free_io(bdev_io);
        Request::<BlkIo>::from_raw(raw)
    };
    let written = match request.context().task.get() {
        Task::Read { length, .. } if success => u32::try_from(length).unwrap_or(u32::MAX),
        _ => 0,
    };
    let answer = if success { status::OK } else { status::ERROR };
    finish(request, answer, written);
}

/// Callback when SPDK has memory for the request: submits it again.
unsafe extern "C" fn on_memory(raw: *mut c_void) {
    // SAFETY: SPDK passes the request that `refused` queued, once, on the same thread; the device's half outlives
    // its outstanding requests.
    let (request, io) = unsafe {
        let request = Request::<BlkIo>::from_raw(raw);
        let io = &*request.context().io.get();
        (request, io)
    };
    io.start(request);
}

unsafe extern "C" fn on_reset(bdev_io: *mut sys::spdk_bdev_io, _: bool, _: *mut c_void) {
    // SAFETY: an I/O that the callback owns and must free.
    unsafe { sys::spdk_bdev_free_io(bdev_io) };
}
