//! The data of commands: what is copied out of it, and how much of it is passed to SPDK.

use std::ffi::c_int;

use spdk_gate::vhost_user::chain::Segment;
use spdk_gate::vhost_user::scsi::{Command, Geometry, PARAMETERS, Sense, status, unmap_ranges};
use spdk_sys as sys;

use super::io::{Context, ScsiIo};
use crate::vhost::core::Request;

/// Stores the segments cut to `length` bytes in the context, if they are longer.
#[inline]
pub(super) fn trim(context: &Context, segments: &[Segment], total: u64, length: u64) {
    let mut trimmed = context.trimmed.borrow_mut();
    trimmed.clear();
    if total == length {
        return;
    }
    let mut left = usize::try_from(length).unwrap_or(0);
    for segment in segments {
        if left == 0 {
            break;
        }
        let len = segment.len.min(left);
        trimmed.push(Segment { len, ..*segment });
        left -= len;
    }
}

/// Returns how many bytes of the disk a command reads or changes. Of an unmap list this is the first range: the others
/// follow one by one.
#[inline]
pub(super) fn bytes(command: &Command) -> u64 {
    match *command {
        Command::Read { length, .. }
        | Command::Write { length, .. }
        | Command::Unmap { length, .. }
        | Command::Zero { length, .. } => length,
        Command::UnmapList(_) | Command::Flush | Command::Reply | Command::Nothing => 0,
    }
}

/// Returns whether the pattern block sent with a command is all zero.
pub(super) fn zero(request: &mut Request<ScsiIo>, pattern: u32) -> bool {
    let mut left = pattern as usize;
    let mut bytes = [0; 512];
    while left > 0 {
        let length = left.min(bytes.len());
        let Some(part) = bytes.get_mut(..length) else {
            return false;
        };
        if !request.take(part) || part.iter().any(|byte| *byte != 0) {
            return false;
        }
        left -= length;
    }
    true
}

/// Returns the first range of an unmap list, and stores the others in the context. The error is the command's result
/// if there is no range to unmap.
pub(super) fn ranges(
    request: &mut Request<ScsiIo>,
    length: usize,
    disk: &Geometry,
) -> Result<(u64, u64), Result<u8, Sense>> {
    let mut list = [0; PARAMETERS];
    let Some(list) = list.get_mut(..length) else {
        return Err(Err(Sense::PARAMETER_LENGTH));
    };
    if !request.take(list) {
        return Err(Err(Sense::PARAMETER_LENGTH));
    }
    let mut ranges = unmap_ranges(list, disk).map_err(Err)?;
    let first = ranges.take();
    request.context().ranges.set(ranges);
    first.ok_or(Ok(status::GOOD))
}

#[inline]
pub(super) fn as_iovecs(context: &Context, segments: &[Segment]) -> (*mut sys::iovec, c_int) {
    let trimmed = context.trimmed.borrow();
    let segments = if trimmed.is_empty() {
        segments
    } else {
        &trimmed
    };
    let first = segments.as_ptr().cast_mut().cast();
    (first, c_int::try_from(segments.len()).unwrap_or_default())
}
