//! Constants of the NVMe specifications that several modules share.

/// Opcode of Fabrics commands on any queue; their type is a separate byte ([`fabrics`]).
pub const FABRICS: u8 = 0x7f;

/// Opcodes of admin commands that transfer data.
#[expect(missing_docs, reason = "as in the specification")]
pub mod admin {
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const IDENTIFY: u8 = 0x06;
    pub const GET_FEATURES: u8 = 0x0a;
}

/// Opcodes of I/O commands that transfer data.
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
    /// Connect: associates a queue with a controller.
    pub const CONNECT: u8 = 0x01;
    /// Authentication Receive: asks for the next message of an authentication.
    pub const AUTH_RECEIVE: u8 = 0x06;
}

/// SGL descriptor types and subtypes.
pub mod sgl {
    /// Data block with an offset inside the capsule.
    pub const IN_CAPSULE: u8 = 0x01;
    /// Transport data block: data by R2T and H2CData, or by C2HData.
    pub const TRANSPORT: u8 = 0x5a;
}
