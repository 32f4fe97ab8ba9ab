//! Layers between a volume and its users: limits, encryption and delays.

mod delay_volume;
mod encrypted_volume;
pub mod limits;
mod qos_volume;

pub use delay_volume::DelayVolumes;
pub use encrypted_volume::EncryptedVolumes;
pub use qos_volume::QosVolumes;
