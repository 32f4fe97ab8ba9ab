//! Steps of a case: messages, register accesses, doorbells and commands, mostly valid.

use serde::{Deserialize, Serialize};

use crate::bend::Bend;
use crate::draw::Draw;

/// Number of attacked devices, each with one client.
pub const DEVICES: usize = 2;

/// How far a new client's setup goes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum How {
    /// Connects.
    Open,
    /// Negotiates the version.
    Attached,
    /// Enables the controller.
    Booted,
    /// Creates an I/O queue.
    Started,
}

/// The data pointer of a command.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Data {
    /// Two PRPs: valid, or these.
    Right,
    Prps(u64, u64),
    /// A PRP list in memory with arbitrary entries.
    List(u64),
    /// An SGL descriptor: address, length, type byte.
    Sgl(u64, u32, u8),
    /// An SGL segment in memory: length, type byte.
    Segment(u32, u8),
}

/// A command.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Entry {
    pub opcode: u8,
    pub fused: u8,
    pub nsid: u32,
    pub words: [u32; 6],
    pub data: Data,
}

/// A step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Action {
    /// Connects a new client to a device.
    Open(usize, How),
    /// A message: command, flags, body, number of descriptors.
    Message(usize, u16, u32, Vec<u8>, u8, Bend),
    /// Writes or reads a region: region, offset, bytes.
    Region(usize, bool, u32, u64, Vec<u8>),
    /// Maps memory: guest address, size, offset, flags.
    Map(usize, u64, u64, u64, u32),
    /// Unmaps memory: guest address, size.
    Unmap(usize, u64, u64),
    /// Commands for the admin or I/O queue, with or without ringing the doorbell.
    Commands(usize, bool, Vec<Entry>, bool),
    /// Words in memory, at the place of lists and segments.
    Lists(usize, Vec<u64>),
    /// A doorbell: queue, completion queue or not, value.
    Bell(usize, u16, bool, u32),
    /// Polls for completions.
    Read(usize),
    /// Disables and enables the controller.
    Reset(usize),
    /// Raw bytes in place of a message.
    Raw(usize, Vec<u8>),
    /// Truncates or extends the memory file.
    Resize(usize, u64),
    /// Closes the connection.
    Close(usize),
    /// An API call.
    Api(u8),
}

/// Guest addresses at which a client's memory begins and ends.
const BASE: u64 = 0x4000_0000;
const END: u64 = BASE + (4 << 20);

fn address(draw: &mut Draw) -> u64 {
    match draw.below(8) {
        0 => u64::MAX - u64::from(draw.edge()),
        1 => END.wrapping_sub(draw.edge().into()),
        2 => draw.next(),
        3 => BASE.wrapping_add(draw.edge().into()),
        _ => BASE + 0x10_0000 + u64::from(draw.of(&[0_u32, 4, 512, 2048, 4096, 8192, 1 << 20])),
    }
}

fn bend(draw: &mut Draw) -> Bend {
    match draw.below(12) {
        0 => Bend::Byte(draw.below(16) as u16, draw.next() as u8),
        1 => Bend::Byte(16 + draw.below(40) as u16, 1 << draw.below(8)),
        2 => Bend::Size(draw.edge()),
        3 => Bend::Cut(draw.below(60) as u16),
        _ => Bend::Nothing,
    }
}

fn message(draw: &mut Draw, at: usize) -> Action {
    let command = draw.of(&[
        1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 8, 9, 9, 10, 10, 11, 12, 13, 13, 14, 15, 16, 17, 18, 19,
    ]);
    let words = draw.below(12);
    let mut body = Vec::new();
    for n in 0..words {
        let word = match (n, draw.below(3)) {
            (0, 0) => draw.of(&[16, 20, 24, 32, 40]),
            (_, 0) => address(draw) as u32,
            _ => draw.edge(),
        };
        body.extend(word.to_le_bytes());
    }
    if draw.one_in(4) {
        body.truncate(draw.below(60));
    }
    let flags = draw.of(&[0, 0, 0, 0, 0x10, 1, 2, 0xffff_ffff]);
    Action::Message(
        at,
        command,
        flags,
        body,
        draw.of(&[0, 0, 1, 2, 8, 9]),
        bend(draw),
    )
}

fn entry(draw: &mut Draw, is_admin: bool) -> Entry {
    let opcode = if is_admin {
        draw.of(&[
            0, 1, 2, 4, 5, 6, 6, 8, 9, 0x0a, 0x0c, 0x0d, 0x11, 0x15, 0x18, 0x19, 0x1a, 0x7c, 0x7f,
            0x80, 0xc0, 0xff,
        ])
    } else {
        draw.of(&[
            0, 1, 1, 2, 2, 2, 4, 5, 8, 9, 0x0d, 0x0e, 0x11, 0x15, 0x18, 0x7f, 0x80, 0xc1, 0xff,
        ])
    };
    let mut words = [0; 6];
    if is_admin {
        for word in &mut words {
            if draw.one_in(2) {
                let choices = [draw_pair(draw), draw.edge()];
                *word = draw.of(&choices);
            }
        }
    } else {
        words[0] = draw.of(&[0, 8, 16_376, 16_383, 16_384, u32::MAX]);
        words[2] = draw.of(&[0, 0, 7, 7, 15, 31, 255, 0xffff, 0x4000_0007]);
        if draw.one_in(6) {
            words[draw.below(6)] = draw.edge();
        }
    }
    let data = match draw.below(10) {
        0..3 => Data::Right,
        3 | 4 => Data::Prps(address(draw), address(draw)),
        5 => Data::List(address(draw)),
        6 | 7 => Data::Sgl(
            address(draw),
            draw.edge(),
            draw.of(&[0, 0, 0x10, 0x20, 0x30, 0x5a, 0xff]),
        ),
        _ => Data::Segment(
            draw.of(&[0, 8, 16, 16, 32, 48, 512, 528, u32::MAX]),
            draw.of(&[0x20, 0x30, 0x30]),
        ),
    };
    Entry {
        opcode,
        fused: draw.of(&[0, 0, 0, 0, 0, 1, 2, 3]),
        nsid: draw.of(&[1, 1, 1, 0, 2, 0xffff_fffe, 0xffff_ffff]),
        words,
        data,
    }
}

/// Returns a queue ID with a size or flags, as in Create Queue commands.
fn draw_pair(draw: &mut Draw) -> u32 {
    let low = draw.of(&[0, 1, 1, 2, 2, 3, 0xffff]);
    draw.of(&[0, 1, 3, 15, 31, 0xffff]) << 16 | low
}

fn lists(draw: &mut Draw, at: usize) -> Action {
    let count = 2 + draw.below(40);
    let words = (0..count).map(|n| {
        // Valid as a PRP list, and as an SGL: an address, then length and type.
        if n % 2 == 0 || draw.one_in(3) {
            match draw.below(4) {
                0 => BASE + 0x2_0000 + 16 * draw.below(40) as u64,
                _ => address(draw),
            }
        } else {
            let kind = draw.of(&[0_u64, 0, 0x10, 0x20, 0x30, 0x30]);
            let choices = [0, 16, 32, 512, 4096, draw.edge()];
            kind << 56 | u64::from(draw.of(&choices))
        }
    });
    Action::Lists(at, words.collect())
}

fn region(draw: &mut Draw, at: usize) -> Action {
    let region = draw.of(&[0, 0, 0, 7, 7, 4, 5, 1, 8, 9, u32::MAX]);
    let offset = match draw.below(6) {
        0 => draw.next(),
        1 => u64::from(draw.edge()),
        2 => 0x1000 + draw.below(40) as u64,
        _ => draw.below(256) as u64 & !3,
    };
    let length = draw.of(&[4, 4, 4, 8, 8, 1, 2, 3, 12, 64, 4096]);
    let bytes = (0..length).map(|_| draw.edge() as u8).collect();
    Action::Region(at, draw.one_in(2), region, offset, bytes)
}

fn action(draw: &mut Draw) -> Action {
    const HOW: [How; 5] = [
        How::Open,
        How::Attached,
        How::Booted,
        How::Started,
        How::Started,
    ];
    let at = draw.below(DEVICES);
    match draw.below(24) {
        0 => Action::Open(at, draw.of(&HOW)),
        1..4 => message(draw, at),
        4 | 5 => region(draw, at),
        6 => {
            let size = draw.of(&[0, 1, 4096, 2 << 20, 4 << 20, u64::MAX, 1 << 42]);
            let offset = draw.of(&[0, 0, 0, 1, 4096, u64::MAX]);
            Action::Map(
                at,
                address(draw),
                size,
                offset,
                draw.of(&[3, 3, 1, 2, 0, 0xff]),
            )
        }
        7 => Action::Unmap(
            at,
            draw.of(&[BASE, BASE, 0, END]),
            draw.of(&[4 << 20, 4 << 20, 0, 4096, u64::MAX]),
        ),
        8..15 => {
            let is_admin = draw.one_in(3);
            let count = draw.of(&[1, 1, 1, 2, 4, 31]);
            let entries = (0..count).map(|_| entry(draw, is_admin)).collect();
            Action::Commands(at, is_admin, entries, !draw.one_in(6))
        }
        15 | 16 => lists(draw, at),
        17 => {
            let value = draw.of(&[0, 1, 5, 31, 32, 0xffff, u32::MAX]);
            Action::Bell(at, draw.of(&[0, 1, 2, 64, 511]), draw.one_in(2), value)
        }
        18 | 19 => Action::Read(at),
        20 => Action::Reset(at),
        21 if draw.one_in(2) => Action::Resize(at, draw.of(&[0, 4096, 1 << 20, 8 << 20])),
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
    let mut actions = match draw.below(5) {
        0 => vec![Action::Open(draw.below(DEVICES), How::Open)],
        1 => vec![Action::Open(draw.below(DEVICES), How::Attached)],
        2 => vec![Action::Open(0, How::Started), Action::Open(1, How::Booted)],
        _ => vec![Action::Open(draw.below(DEVICES), How::Started)],
    };
    let count = 3 + draw.below(20);
    actions.extend((0..count).map(|_| action(draw)));
    actions
}
