//! Validates a command capsule: its place in the session, and that its data is transferred as its SGL says.

use super::{CONNECT_DATA, Connection, Fatal, Phase, Refusal, Verdict};
use crate::nvme::fabrics::{AUTH_RECEIVE, CONNECT};
use crate::nvme::{FABRICS, sgl};

/// The reserved value of the FUSE field.
const FUSE_RESERVED: u8 = 3;

/// Field offsets from the beginning of the PDU.
mod at {
    pub const OPCODE: u8 = 8;
    pub const FUSE: u8 = 9;
    pub const SGL_ADDRESS: u8 = 32;
    pub const SGL_LENGTH: u8 = 40;
    pub const SGL_TYPE: u8 = 47;
    pub const PLEN: u8 = 4;
}

/// The direction of a command's data: the lowest two bits of its opcode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    None,
    FromHost,
    ToHost,
    Both,
}

/// Validates a command of 64 bytes whose capsule has `inside` bytes of data.
///
/// # Errors
/// The command is out of sequence, or its data is too long or not where its SGL says.
#[inline]
pub fn capsule(connection: &Connection, command: &[u8; 64], inside: u32) -> Verdict {
    let command = Command::of(command);
    let is_connect = command.opcode == FABRICS && command.fctype == CONNECT;
    let is_in_order = match connection.phase {
        Phase::Connected | Phase::Authenticating | Phase::Discovering => true,
        Phase::Unadmitted => is_connect,
        Phase::New | Phase::Closed => false,
    };
    if !is_in_order {
        return Err(Refusal::new(Fatal::Sequence, at::OPCODE));
    }
    let is_control = connection.is_admin || command.opcode == FABRICS;
    if command.fuse == FUSE_RESERVED || (command.fuse != 0 && is_control) {
        return Err(Refusal::new(Fatal::Unsupported, at::FUSE));
    }
    if is_connect && command.length != CONNECT_DATA {
        return Err(Refusal::new(Fatal::Unsupported, at::SGL_LENGTH));
    }
    let direction = command.direction();
    // Bidirectional commands are refused by the target with a status, which needs no data.
    if matches!(direction, Direction::None | Direction::Both) || command.length == 0 {
        return nothing_inside(inside);
    }
    match command.sgl {
        sgl::IN_CAPSULE => {
            if direction != Direction::FromHost {
                return Err(Refusal::new(Fatal::Unsupported, at::SGL_TYPE));
            }
            if command.address != 0 {
                return Err(Refusal::new(Fatal::Unsupported, at::SGL_ADDRESS));
            }
            if command.length != inside {
                return Err(Refusal::new(Fatal::InvalidField, at::PLEN));
            }
            if inside > connection.in_capsule_limit(is_control) {
                return Err(Refusal::new(Fatal::LimitExceeded, at::SGL_LENGTH));
            }
            Ok(())
        }
        sgl::TRANSPORT => {
            nothing_inside(inside)?;
            // It would hold a buffer that all hosts of the discovery service share, for as long as its data does not come.
            if connection.phase == Phase::Discovering && direction == Direction::FromHost {
                return Err(Refusal::new(Fatal::Unsupported, at::SGL_TYPE));
            }
            // The target sends one message of at most 4 KiB, whatever length the host allocates for it.
            let is_bounded = command.opcode == FABRICS && command.fctype == AUTH_RECEIVE;
            if !is_bounded && command.length > connection.transfer_limit() {
                return Err(Refusal::new(Fatal::LimitExceeded, at::SGL_LENGTH));
            }
            Ok(())
        }
        _ => Err(Refusal::new(Fatal::Unsupported, at::SGL_TYPE)),
    }
}

fn nothing_inside(inside: u32) -> Verdict {
    if inside == 0 {
        Ok(())
    } else {
        Err(Refusal::new(Fatal::InvalidField, at::PLEN))
    }
}

struct Command {
    opcode: u8,
    fuse: u8,
    fctype: u8,
    address: u64,
    length: u32,
    sgl: u8,
}

impl Command {
    #[rustfmt::skip]
    fn of(bytes: &[u8; 64]) -> Self {
        let [
            opcode, flags, _, _, fctype, _, _, _,
            _, _, _, _, _, _, _, _,
            _, _, _, _, _, _, _, _,
            a0, a1, a2, a3, a4, a5, a6, a7,
            l0, l1, l2, l3, _, _, _, sgl,
            ..
        ] = *bytes;
        Self {
            opcode,
            fuse: flags & 3,
            fctype,
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            sgl,
        }
    }

    fn direction(&self) -> Direction {
        let bits = if self.opcode == FABRICS {
            self.fctype
        } else {
            self.opcode
        };
        match bits & 3 {
            0 => Direction::None,
            1 => Direction::FromHost,
            2 => Direction::ToHost,
            _ => Direction::Both,
        }
    }
}
