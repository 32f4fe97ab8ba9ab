//! Numbers of the NVMe specifications that several doors go by.

/// Fabrics commands, on any queue; their kind is a byte of its own ([`fabrics`]).
pub const FABRICS: u8 = 0x7f;

/// Opcodes of admin commands that move data.
#[expect(missing_docs, reason = "as in the specification")]
pub mod admin {
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const IDENTIFY: u8 = 0x06;
    pub const GET_FEATURES: u8 = 0x0a;
}

/// Opcodes of I/O commands that move data.
#[expect(missing_docs, reason = "as in the specification")]
pub mod io {
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    pub const RESERVATION_REPORT: u8 = 0x0e;
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    pub const RESERVATION_RELEASE: u8 = 0x15;
    pub const COPY: u8 = 0x19;
    pub const ZONE_APPEND: u8 = 0x7d;
}

/// Types of Fabrics commands.
pub mod fabrics {
    /// Connects a queue.
    pub const CONNECT: u8 = 0x01;
}

/// Types and subtypes of SGL descriptors.
pub mod sgl {
    /// Data inside the capsule, at an offset.
    pub const IN_CAPSULE: u8 = 0x01;
    /// Data that the transport moves: R2T and H2CData, or C2HData.
    pub const TRANSPORT: u8 = 0x5a;
}
