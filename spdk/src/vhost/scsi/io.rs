//! Requests of a virtio-scsi device, on the worker.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use spdk_gate::vhost_user::chain::Segment;
use spdk_gate::vhost_user::scsi::{
    CDB, CONTROL_QUEUE, Command, Control, EVENT, EVENT_QUEUE, Event, HEADER, MAX_REPLY,
    NOTIFICATION, RESPONSE, Ranges, Sense, TARGETS, TASK_MANAGEMENT, answer, command, header,
    is_about_itself, is_task_management, no_unit_inquiry, reply, response, status, task_management,
    unreached,
};
use spdk_sys as sys;

use super::attached::{Attached, Removed, Target};
use super::parts::{as_iovecs, bytes, ranges, trim, zero};
use super::{Disks, Scsi};
use crate::log;
use crate::vhost::core::{Io, Queues, Request};

/// Events that wait for a driver's buffers. Further ones are dropped: a driver that far behind has to rescan anyway.
const MAX_EVENTS: usize = 32;

/// The worker's half of a device, with channels to its disks.
pub(crate) struct ScsiIo {
    device: Arc<Scsi>,
    seen: Cell<u32>,
    targets: RefCell<[Target; TARGETS as usize]>,
    removed: Removed,
    events: RefCell<VecDeque<Event>>,
}

/// Per-request state while SPDK processes the request.
pub(crate) struct Context {
    attached: RefCell<Option<Rc<Attached>>>,
    task: Cell<Task>,
    pub(super) ranges: Cell<Ranges>,
    /// Segments of a command whose buffers are longer than its data.
    pub(super) trimmed: RefCell<Vec<Segment>>,
    /// Used while SPDK is out of memory for the request (backpressure).
    wait: UnsafeCell<sys::spdk_bdev_io_wait_entry>,
}

/// The operation requested of SPDK.
#[derive(Clone, Copy)]
enum Task {
    /// The driver's command. An unmap covers this range first, then those in the context.
    Command(Command),
    Reset,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            attached: RefCell::default(),
            task: Cell::new(Task::Command(Command::Nothing)),
            ranges: Cell::default(),
            trimmed: RefCell::default(),
            // SAFETY: a C struct of nullable pointers, for which all zero is valid.
            wait: UnsafeCell::new(unsafe { std::mem::zeroed() }),
        }
    }
}

impl ScsiIo {
    pub(super) fn new(device: Arc<Scsi>) -> Self {
        let io = Self {
            seen: Cell::new(device.changes.load(Ordering::Acquire)),
            device,
            targets: RefCell::default(),
            removed: Removed::default(),
            events: RefCell::default(),
        };
        // The driver has not scanned yet, so existing disks are no events. If the app thread holds the lock right
        // now, the next turn catches up.
        let disks = io.device.disks.try_lock().map(|disks| disks.clone());
        match disks {
            Some(disks) => io.update(&disks),
            None => io.seen.set(io.seen.get().wrapping_sub(1)),
        }
        io.events.borrow_mut().clear();
        io
    }

    /// Adopts added, removed and resized disks, and queues events for them.
    fn update(&self, disks: &Disks) {
        let mut targets = self.targets.borrow_mut();
        for (number, (target, disk)) in (0_u8..).zip(targets.iter_mut().zip(disks)) {
            let is_same = match (&*target, disk) {
                (Target::Present(attached), Some(disk)) => Arc::ptr_eq(&attached.disk, disk),
                (Target::Empty | Target::Gone, None) => true,
                _ => false,
            };
            if is_same {
                if let Target::Present(attached) = &*target {
                    let blocks = attached.disk.bdev.blocks();
                    if attached.blocks.replace(blocks) != blocks {
                        attached.attention.set(true);
                        self.note(Event::Resized(number));
                    }
                }
                continue;
            }
            if let Target::Present(attached) = target {
                self.removed.note(attached);
                *target = Target::Gone;
                self.note(Event::Removed(number));
            }
            let Some(disk) = disk else { continue };
            if disk.needs_dma && self.device.ordinary_memory.load(Ordering::Acquire) {
                log::note(
                    sys::spdk_log_level_SPDK_LOG_WARN,
                    format!(
                        "the disk of target {number} is not shown: its device needs guest memory on huge pages"
                    ),
                );
                continue;
            }
            if let Some(attached) = Attached::new(disk) {
                *target = Target::Present(attached);
                self.note(Event::Added(number));
            }
        }
    }

    fn note(&self, event: Event) {
        let mut events = self.events.borrow_mut();
        if events.len() < MAX_EVENTS {
            events.push_back(event);
        }
    }

    fn target(&self, number: u8) -> Target {
        let targets = self.targets.borrow();
        targets
            .get(usize::from(number))
            .cloned()
            .unwrap_or_default()
    }

    fn control(&self, mut request: Request<Self>) {
        let mut kind = [0; 4];
        if !request.take(&mut kind) {
            return;
        }
        if !is_task_management(kind) {
            let mut rest = [0; NOTIFICATION - 4];
            // No notification type is supported: none is subscribed to, none has happened.
            if request.take(&mut rest) && request.reserve_front(5) {
                request.respond(&[0, 0, 0, 0, response::OK]);
                request.complete(5);
            }
            return;
        }
        let mut bytes = [0; TASK_MANAGEMENT];
        let Some(rest) = bytes.get_mut(4..) else {
            return;
        };
        if !request.take(rest) || !request.reserve_front(1) {
            return;
        }
        let result = match task_management(&bytes) {
            Control::Answer(response) => response,
            Control::Reset(number) => match self.target(number) {
                Target::Present(attached) => {
                    request.context().task.set(Task::Reset);
                    request.context().attached.replace(Some(attached));
                    return start(request);
                }
                _ => response::BAD_TARGET,
            },
        };
        request.respond(&[result]);
        request.complete(1);
    }

    fn command(&self, mut request: Request<Self>) -> u64 {
        let mut bytes = [0; HEADER];
        // Without a header, or room for a response, the request can only be returned unanswered.
        if !request.take(&mut bytes) || !request.reserve_front(RESPONSE) {
            return 0;
        }
        let (address, cdb) = header(&bytes);
        let target = address.map(|address| (address.unit, self.target(address.target)));
        match target {
            Some((0, Target::Present(attached))) => begin(request, attached, &cdb),
            Some((1.., Target::Present(_)) | (_, Target::Gone)) => no_unit(request, &cdb),
            Some((_, Target::Empty)) | None => {
                request.respond(&unreached(response::BAD_TARGET));
                request.complete(RESPONSE as u32);
                0
            }
        }
    }
}

impl Io for ScsiIo {
    type Context = Context;

    fn is_polled(&self, queue: u16) -> bool {
        queue != EVENT_QUEUE
    }

    #[inline]
    fn submit(&self, request: Request<Self>) -> u64 {
        match request.queue() {
            CONTROL_QUEUE => {
                self.control(request);
                0
            }
            _ => self.command(request),
        }
    }

    #[inline]
    fn poll(&self, queues: &Queues<'_, Self>) -> bool {
        let changes = self.device.changes.load(Ordering::Acquire);
        if changes != self.seen.get()
            && let Some(disks) = self.device.disks.try_lock()
        {
            self.update(&disks);
            self.seen.set(changes);
        }
        if self.events.borrow().is_empty() {
            return false;
        }
        let Some(mut request) = queues.pop(EVENT_QUEUE) else {
            return false;
        };
        if request.reserve_front(EVENT) {
            let event = self.events.borrow_mut().pop_front();
            if let Some(event) = event {
                request.respond(&event.encode());
                request.complete(EVENT as u32);
            }
        }
        true
    }

    fn abort(&self) {
        for target in self.targets.borrow().iter() {
            if let Target::Present(attached) = target {
                attached.reset();
            }
        }
        self.removed.reset();
    }
}

/// Responds to a command for a logical unit that does not exist, or not any more.
fn no_unit(mut request: Request<ScsiIo>, cdb: &[u8; CDB]) -> u64 {
    const INQUIRY: u8 = 0x12;
    if cdb.first() != Some(&INQUIRY) {
        return answered(request, Err(Sense::NO_UNIT), 0);
    }
    let written = request.write(0, &no_unit_inquiry());
    answered(request, Ok(status::GOOD), written as u64)
}

/// Starts a command for a disk. Returns how many bytes of the disk it reads or changes.
#[inline]
fn begin(mut request: Request<ScsiIo>, attached: Rc<Attached>, cdb: &[u8; CDB]) -> u64 {
    if attached.disk.bdev.is_removed() {
        return no_unit(request, cdb);
    }
    if attached.attention.get() && !is_about_itself(cdb) {
        attached.attention.set(false);
        return answered(request, Err(Sense::CAPACITY_CHANGED), 0);
    }
    let disk = attached.disk.geometry();
    let (readable, writable) = (request.readable_len(), request.writable_len());
    let asked = match command(cdb, &disk, readable, writable) {
        Ok(asked) => asked,
        Err(sense) => return answered(request, Err(sense), 0),
    };
    let asked = match asked {
        Command::Read { length, .. } => {
            trim(request.context(), request.writable(), writable, length);
            asked
        }
        Command::Write { length, .. } => {
            trim(request.context(), request.readable(), readable, length);
            asked
        }
        Command::Zero { pattern, .. } if !zero(&mut request, pattern) => {
            return answered(request, Err(Sense::INVALID_FIELD), 0);
        }
        Command::Unmap { .. } | Command::Zero { .. } => asked,
        Command::Flush if attached.disk.flushes => asked,
        Command::UnmapList(length) => match ranges(&mut request, length, &disk) {
            Ok((offset, length)) => Command::Unmap { offset, length },
            Err(result) => return answered(request, result, 0),
        },
        Command::Reply => {
            let mut bytes = [0; MAX_REPLY];
            return match reply(cdb, &disk, &attached.disk.identity, &mut bytes) {
                Ok(length) => {
                    let written = request.write(0, bytes.get(..length).unwrap_or_default());
                    answered(request, Ok(status::GOOD), written as u64)
                }
                Err(sense) => answered(request, Err(sense), 0),
            };
        }
        Command::Nothing | Command::Flush => return answered(request, Ok(status::GOOD), 0),
    };
    request.context().task.set(Task::Command(asked));
    request.context().attached.replace(Some(attached));
    start(request);
    bytes(&asked)
}

/// Submits a request to SPDK, which completes it now or later.
#[inline]
fn start(mut request: Request<ScsiIo>) {
    if let Task::Command(Command::Read { length, .. }) = request.context().task.get() {
        request.touch(length);
    }
    let context = request.context();
    let task = context.task.get();
    let found = context
        .attached
        .borrow()
        .as_ref()
        .map(|attached| (attached.descriptor, attached.channel));
    let Some((descriptor, channel)) = found else {
        return finish(request, Err(Sense::NO_UNIT), 0);
    };
    let (parts, count) = match task {
        Task::Command(Command::Read { .. }) => as_iovecs(context, request.writable()),
        Task::Command(Command::Write { .. }) => as_iovecs(context, request.readable()),
        _ => (std::ptr::null_mut(), 0),
    };
    let raw = request.into_raw();
    let done = Some(on_done as unsafe extern "C" fn(_, _, _));
    // SAFETY: runs on the channel's thread; the lease keeps the descriptor open. The request's slot keeps the
    // segments, and the memory that they point to, until the request is completed. `on_done` does that, once, if
    // SPDK accepts it.
    let rc = unsafe {
        match task {
            Task::Command(Command::Read { offset, length }) => {
                sys::spdk_bdev_readv(descriptor, channel, parts, count, offset, length, done, raw)
            }
            Task::Command(Command::Write { offset, length }) => {
                sys::spdk_bdev_writev(descriptor, channel, parts, count, offset, length, done, raw)
            }
            Task::Command(Command::Unmap { offset, length }) => {
                sys::spdk_bdev_unmap(descriptor, channel, offset, length, done, raw)
            }
            Task::Command(Command::Zero { offset, length, .. }) => {
                sys::spdk_bdev_write_zeroes(descriptor, channel, offset, length, done, raw)
            }
            Task::Command(Command::Flush) => {
                let bdev = sys::spdk_bdev_desc_get_bdev(descriptor);
                let blocks = sys::spdk_bdev_get_num_blocks(bdev);
                let length = blocks.saturating_mul(sys::spdk_bdev_get_block_size(bdev).into());
                sys::spdk_bdev_flush(descriptor, channel, 0, length, done, raw)
            }
            Task::Reset => sys::spdk_bdev_reset(descriptor, channel, done, raw),
            // Handled in `begin`.
            Task::Command(Command::UnmapList(_) | Command::Reply | Command::Nothing) => {
                -libc::EINVAL
            }
        }
    };
    if rc != 0 {
        // SAFETY: SPDK refused the request, so ownership is still here.
        refused(unsafe { Request::from_raw(raw) }, rc, descriptor, channel);
    }
}

#[cold]
fn refused(
    request: Request<ScsiIo>,
    rc: c_int,
    descriptor: *mut sys::spdk_bdev_desc,
    channel: *mut sys::spdk_io_channel,
) {
    if rc != -libc::ENOMEM {
        return end(request, false);
    }
    let entry = request.context().wait.get();
    let raw = request.into_raw();
    // SAFETY: runs on the channel's thread. The entry lives in the slot, which is busy until SPDK calls back. It is
    // not queued already: a request is submitted again only after that callback.
    let rc = unsafe {
        let bdev = sys::spdk_bdev_desc_get_bdev(descriptor);
        (*entry).bdev = bdev;
        (*entry).cb_fn = Some(on_memory);
        (*entry).cb_arg = raw;
        sys::spdk_bdev_queue_io_wait(bdev, channel, entry)
    };
    if rc != 0 {
        // SAFETY: the entry was not queued, so ownership of the request is still here.
        end(unsafe { Request::from_raw(raw) }, false);
    }
}

/// Handles the end of SPDK's operation: continues with the next range of an unmap, or completes the request.
#[inline]
fn end(mut request: Request<ScsiIo>, success: bool) {
    let context = request.context();
    let (result, moved) = match context.task.get() {
        Task::Reset => {
            let response = if success {
                response::OK
            } else {
                response::FAILURE
            };
            context.attached.take();
            request.respond(&[response]);
            return request.complete(1);
        }
        Task::Command(Command::Unmap { .. }) if success => {
            let mut ranges = context.ranges.get();
            let next = ranges.take();
            context.ranges.set(ranges);
            if let Some((offset, length)) = next {
                let next = Command::Unmap { offset, length };
                context.task.set(Task::Command(next));
                return start(request);
            }
            (Ok(status::GOOD), 0)
        }
        Task::Command(Command::Read { length, .. }) if success => (Ok(status::GOOD), length),
        Task::Command(Command::Read { .. }) => (Err(Sense::READ_ERROR), 0),
        Task::Command(Command::Write { length, .. }) if success => (Ok(status::GOOD), length),
        _ if success => (Ok(status::GOOD), 0),
        _ => (Err(Sense::WRITE_ERROR), 0),
    };
    finish(request, result, moved);
}

/// Completes a command, after `moved` bytes of data.
#[inline]
fn finish(mut request: Request<ScsiIo>, result: Result<u8, Sense>, moved: u64) {
    let context = request.context();
    context.attached.take();
    // The remaining ranges must not leak into the slot's next request.
    context.ranges.set(Ranges::default());
    let total = request
        .readable_len()
        .saturating_add(request.writable_len());
    let residual = u32::try_from(total.saturating_sub(moved)).unwrap_or(u32::MAX);
    let written = if request.writable_len() > 0 { moved } else { 0 };
    request.respond(&answer(result, residual));
    let written = u32::try_from(written).unwrap_or(u32::MAX);
    request.complete(written.saturating_add(RESPONSE as u32));
}

/// As [`finish`], for a command that needs no I/O: its bytes are 0.
fn answered(request: Request<ScsiIo>, result: Result<u8, Sense>, moved: u64) -> u64 {
    finish(request, result, moved);
    0
}

/// SPDK's completion callback of a request.
unsafe extern "C" fn on_done(bdev_io: *mut sys::spdk_bdev_io, success: bool, raw: *mut c_void) {
    // SAFETY: SPDK passes the request that `start` handed over, once, on the same thread, and an I/O that the
    // callback owns and must free.
    let request = unsafe {
        sys::spdk_bdev_free_io(bdev_io);
        Request::<ScsiIo>::from_raw(raw)
    };
    end(request, success);
}

/// Callback when SPDK has memory for the request: submits it again.
unsafe extern "C" fn on_memory(raw: *mut c_void) {
    // SAFETY: SPDK passes the request that `refused` queued, once, on the same thread.
    start(unsafe { Request::<ScsiIo>::from_raw(raw) });
}
