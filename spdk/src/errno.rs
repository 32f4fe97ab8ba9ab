//! The errno values that SPDK's errors carry and callers tell apart, as in errno(3).

/// Operation not permitted.
pub const EPERM: i32 = libc::EPERM;
/// There is no such thing.
pub const ENOENT: i32 = libc::ENOENT;
/// Input or output failed.
pub const EIO: i32 = libc::EIO;
/// There is no such device or address.
pub const ENXIO: i32 = libc::ENXIO;
/// It is in use.
pub const EBUSY: i32 = libc::EBUSY;
/// It exists already.
pub const EEXIST: i32 = libc::EEXIST;
/// There is no such device.
pub const ENODEV: i32 = libc::ENODEV;
/// A value is wrong.
pub const EINVAL: i32 = libc::EINVAL;
/// A number is out of range.
pub const ERANGE: i32 = libc::ERANGE;
/// It did not answer in time.
pub const ETIMEDOUT: i32 = libc::ETIMEDOUT;
/// There is no way to the host.
pub const EHOSTUNREACH: i32 = libc::EHOSTUNREACH;
/// There is no such key.
pub const ENOKEY: i32 = libc::ENOKEY;
