//! What stands between a volume and who uses it: limits and encryption.

mod encrypted_volume;
pub mod limits;
mod qos_volume;

pub use encrypted_volume::EncryptedVolumes;
pub use qos_volume::QosVolumes;
