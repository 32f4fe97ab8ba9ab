//! Steps of a case: messages, rings and descriptor chains, mostly valid.

use serde::{Deserialize, Serialize};

use crate::bend::Bend;
use crate::draw::Draw;
use crate::vhost_user_client::{flag, request};

/// Number of attacked devices, each with one connection: blk and scsi.
pub const DEVICES: usize = 2;

/// How far a new connection's setup goes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum How {
    /// Connects.
    Open,
    /// Negotiates features.
    Negotiated,
    /// Sends the memory table.
    Shared,
    /// Sets up and starts the rings.
    Started,
}

/// The address of a descriptor.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Place {
    /// The request's header.
    Header,
    /// Data, at this offset.
    Data(u32),
    /// This many bytes before the end of memory.
    End(u32),
    /// The indirect table.
    Table,
    /// An arbitrary address.
    Any(u64),
}

/// A descriptor.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Part {
    pub place: Place,
    pub length: u32,
    /// Flags besides NEXT, which all but the last descriptor get.
    pub flags: u16,
}

/// A step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Action {
    /// Opens a new connection to a device.
    Open(usize, How),
    /// A message: request, flags, words of the payload, number of descriptors.
    Message(usize, u32, u32, Vec<u64>, u8, Bend),
    /// A regular message of a driver about a ring.
    Usual(usize, u8, u8, Bend),
    /// A request: queue, header, descriptor chain.
    Request(usize, u8, Vec<u8>, Vec<Part>),
    /// A valid read: sector, number of sectors.
    Right(usize, u32, u8),
    /// Writes a number into a ring: ring, part, offset, value.
    Poke(usize, u8, u8, u16, u16),
    /// Kicks a ring.
    Kick(usize, u8),
    /// Reads replies until the read timeout expires.
    Read(usize),
    /// Raw bytes in place of a message.
    Raw(usize, Vec<u8>),
    /// Truncates or extends the memory file.
    Resize(usize, u32),
    /// Closes the connection.
    Close(usize),
    /// An API call.
    Api(u8),
}

fn bend(draw: &mut Draw) -> Bend {
    match draw.below(12) {
        0 => Bend::Byte(draw.below(64) as u16, draw.next() as u8),
        1 => Bend::Byte(12 + draw.below(40) as u16, 1 << draw.below(8)),
        2 => Bend::Size(draw.edge()),
        3 => Bend::Cut(draw.below(60) as u16),
        _ => Bend::Nothing,
    }
}

fn word(draw: &mut Draw) -> u64 {
    match draw.below(6) {
        0 => u64::MAX - draw.below(8192) as u64,
        1 => 1 << draw.below(64),
        2 => 0x7000_0000_0000 + draw.below(9 << 20) as u64,
        3 => u64::from(draw.edge()) << 32 | draw.below(4) as u64,
        _ => u64::from(draw.edge()),
    }
}

fn message(draw: &mut Draw, at: usize) -> Action {
    const REQUESTS: [u32; 24] = [
        request::SET_FEATURES,
        request::SET_OWNER,
        request::RESET_OWNER,
        request::SET_MEM_TABLE,
        request::SET_LOG_BASE,
        request::SET_LOG_FD,
        request::SET_VRING_NUM,
        request::SET_VRING_ADDR,
        request::SET_VRING_BASE,
        request::GET_VRING_BASE,
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
        request::SET_PROTOCOL_FEATURES,
        request::SET_VRING_ENABLE,
        request::SET_BACKEND_REQ_FD,
        request::GET_CONFIG,
        request::SET_CONFIG,
        request::GET_INFLIGHT_FD,
        request::SET_INFLIGHT_FD,
        request::RESET_DEVICE,
        request::ADD_MEM_REG,
        request::REM_MEM_REG,
        request::SET_STATUS,
    ];
    let number = if draw.one_in(8) {
        draw.below(45) as u32
    } else {
        draw.of(&REQUESTS)
    };
    let flags = draw.of(&[
        1,
        1,
        1,
        1 | flag::NEED_REPLY,
        1 | flag::NEED_REPLY,
        0,
        5,
        0xffff_ffff,
    ]);
    let length = draw.below(10);
    let words = (0..length).map(|_| word(draw)).collect();
    let fds = draw.of(&[0, 0, 1, 1, 2, 8, 9]);
    Action::Message(at, number, flags, words, fds, bend(draw))
}

fn part(draw: &mut Draw) -> Part {
    let place = match draw.below(8) {
        0 | 1 => Place::Header,
        2..5 => Place::Data(draw.below(1 << 20) as u32),
        5 => Place::End(draw.edge()),
        6 => Place::Table,
        _ => Place::Any(word(draw)),
    };
    let length = match draw.below(3) {
        0 => draw.edge(),
        _ => draw.of(&[1, 8, 16, 51, 108, 512, 4096, 65_536]),
    };
    let flags = match place {
        Place::Table => 4,
        _ => draw.of(&[0, 0, 2, 2, 4, 6]),
    };
    Part {
        place,
        length,
        flags,
    }
}

/// Generates a virtio-blk or virtio-scsi header, sometimes invalid.
fn header(draw: &mut Draw, at: usize) -> Vec<u8> {
    let mut header = vec![0_u8; 64];
    if at == 0 {
        let operation: u32 = draw.of(&[0, 0, 1, 1, 4, 8, 11, 13, 14, 255]);
        header[..4].copy_from_slice(&operation.to_le_bytes());
        let sector = draw.of(&[0, 8, 16_383, 16_384, u64::MAX, u64::MAX - 7]);
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        // For a discard, the next 16 bytes are the segment.
        header[16..24].copy_from_slice(&sector.to_le_bytes());
        header[24..28].copy_from_slice(&draw.edge().to_le_bytes());
    } else {
        let opcode = draw.of(&[
            0x00, 0x03, 0x12, 0x15, 0x1a, 0x25, 0x28, 0x2a, 0x2f, 0x35, 0x42, 0x4d, 0x55, 0x5a,
            0x5e, 0x88, 0x8a, 0x91, 0x93, 0x9e, 0xa0, 0xa3, 0xff,
        ]);
        header[..4].copy_from_slice(&[1, draw.of(&[0, 0, 0, 1, 255]), 0x40, 0]);
        header[19] = opcode;
        for byte in &mut header[20..35] {
            if draw.one_in(3) {
                *byte = draw.edge() as u8;
            }
        }
    }
    header
}

fn request_of(draw: &mut Draw, at: usize) -> Action {
    let queue = match (at, draw.below(4)) {
        (0, _) => 0,
        (_, 0) => draw.below(2) as u8,
        _ => 2,
    };
    let header = header(draw, at);
    let head = |length| Part {
        place: Place::Header,
        length,
        flags: 0,
    };
    let tail = |length| Part {
        place: Place::Data(0),
        length,
        flags: 2,
    };
    let mut chain = vec![head(if at == 0 { 16 } else { 51 })];
    let count = draw.below(5);
    chain.extend((0..count).map(|_| part(draw)));
    chain.push(tail(if at == 0 { 1 } else { 108 }));
    if draw.one_in(4) {
        let drop = draw.below(chain.len());
        chain.remove(drop);
    }
    Action::Request(at, queue, header, chain)
}

fn action(draw: &mut Draw) -> Action {
    const HOW: [How; 5] = [
        How::Open,
        How::Negotiated,
        How::Shared,
        How::Started,
        How::Started,
    ];
    let at = draw.below(DEVICES);
    match draw.below(24) {
        0 | 1 => Action::Open(at, draw.of(&HOW)),
        2..6 => message(draw, at),
        6..10 => Action::Usual(
            at,
            draw.below(14) as u8,
            draw.of(&[0, 0, 1, 2, 128, 255]),
            bend(draw),
        ),
        10..16 => request_of(draw, at),
        16 | 17 => Action::Right(at, draw.below(64) as u32, draw.of(&[1, 8, 16, 64])),
        18 => Action::Poke(
            at,
            draw.below(3) as u8,
            draw.below(3) as u8,
            draw.below(600) as u16,
            draw.edge() as u16,
        ),
        19 => Action::Kick(at, draw.below(3) as u8),
        20 => Action::Read(at),
        21 if draw.one_in(3) => Action::Resize(at, draw.of(&[0, 1, 4096, 1 << 20, 9 << 20])),
        21 => {
            let length = draw.below(100);
            Action::Raw(at, (0..length).map(|_| draw.next() as u8).collect())
        }
        22 => Action::Close(at),
        _ => Action::Api(draw.below(6) as u8),
    }
}

/// Generates the steps of a case.
pub fn case(draw: &mut Draw) -> Vec<Action> {
    let mut actions = match draw.below(4) {
        0 => vec![Action::Open(draw.below(DEVICES), How::Open)],
        1 => vec![Action::Open(draw.below(DEVICES), How::Negotiated)],
        _ => vec![Action::Open(0, How::Started), Action::Open(1, How::Started)],
    };
    let count = 3 + draw.below(20);
    actions.extend((0..count).map(|_| action(draw)));
    actions
}
