//! What stands between a volume and who uses it: limits and encryption.

mod encrypted_volume;
pub mod limits;
mod qos_volume;

use crate::error::Error;

pub use encrypted_volume::EncryptedVolumes;
pub use qos_volume::QosVolumes;

/// errno(3), as SPDK's errors carry it.
mod errno {
    pub const ENOENT: i32 = 2;
    pub const EBUSY: i32 = 16;
    pub const ENODEV: i32 = 19;
}

/// What SPDK found wrong with the volume beneath, told of the field that names it.
fn at_fault(volume_name_ref: &str, error: spdk::Error) -> Error {
    match error.errno.0 {
        errno::ENODEV => Error::NotFound {
            name: volume_name_ref.into(),
            message: format!("volume_name_ref: there is no volume {volume_name_ref:?}"),
        },
        _ => error.into(),
    }
}
