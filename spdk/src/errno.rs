//! The errno values that callers distinguish in SPDK's errors; see errno(3).

/// Operation not permitted.
pub const EPERM: i32 = libc::EPERM;
/// No such object.
pub const ENOENT: i32 = libc::ENOENT;
/// Input/output error.
pub const EIO: i32 = libc::EIO;
/// No such device or address.
pub const ENXIO: i32 = libc::ENXIO;
/// Device or resource busy.
pub const EBUSY: i32 = libc::EBUSY;
/// Already exists.
pub const EEXIST: i32 = libc::EEXIST;
/// No such device.
pub const ENODEV: i32 = libc::ENODEV;
/// Invalid argument.
pub const EINVAL: i32 = libc::EINVAL;
/// Out of range.
pub const ERANGE: i32 = libc::ERANGE;
/// Timed out.
pub const ETIMEDOUT: i32 = libc::ETIMEDOUT;
/// No route to host.
pub const EHOSTUNREACH: i32 = libc::EHOSTUNREACH;
/// No such key.
pub const ENOKEY: i32 = libc::ENOKEY;
