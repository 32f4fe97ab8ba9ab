//! Steps of a case, and the PDUs that the peer sends for them.

use serde::{Deserialize, Serialize};

use crate::bend::Bend;
use crate::common::nvme_tcp_peer::{Ask, Resp, Turn, c2h_data, ic_resp, r2t, term_req};
use crate::draw::Draw;

/// The commands that an answer is for: admin queue or not, opcode, and FCTYPE or CNS.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Asks(pub bool, pub u8, pub Option<u8>);

impl Asks {
    fn fits(self, ask: &Ask) -> bool {
        let Self(admin, opcode, which) = self;
        let found = if opcode == 0x7f {
            ask.sqe[4]
        } else {
            ask.sqe[40]
        };
        (ask.queue == 0) == admin
            && ask.opcode() == opcode
            && which.is_none_or(|which| which == found)
    }
}

/// A PDU that may be malformed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Form {
    pub what: What,
    /// Offset to the right command ID.
    pub cid: i16,
    pub bend: Bend,
}

/// The kind of PDU.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum What {
    /// A response: result, status code type, status code.
    Resp(u32, u8, u8),
    /// C2HData: offset, difference to the requested length, override of DATAL, flags.
    Data(u32, i32, Option<u32>, u8),
    /// R2T: TTAG, offset, length.
    Ask(u16, u32, u32),
    Term(u16),
    Greeting,
}

/// The peer's reaction in place of the regular answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    Silent,
    Close,
    Fail(u8, u8),
    Send(Vec<Form>),
    First(Vec<Form>),
}

/// A step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Action {
    /// Skips this many matching commands and answers the next one with the reply.
    Answer(Asks, u8, Reply),
    /// Mutates the answer to ICReq.
    Greet(Bend),
    /// Overwrites Identify data: of the controller (or the namespace), offset, bytes.
    Identify(bool, u16, Vec<u8>),
    /// Flips bits of the property CAP, and sets VS.
    Registers(u64, u32),
    /// Selects one of the namespace lists.
    List(u8),
    /// Sets the ANA log page.
    Ana(Vec<u8>),
    /// Adds or removes a namespace.
    Namespace(u32, bool),
    /// Creates the path, and exports its namespace to a host.
    Attach,
    /// I/O of that host: opcode, block, number of blocks, whether to wait for the completion.
    Io(u8, u32, u16, bool),
    /// Sends an asynchronous event: type and information.
    Tell(u8, u8),
    /// Closes all connections.
    CloseAll,
    /// Suppresses or resumes all output.
    Mute(bool),
    /// Sleeps, ms.
    Wait(u8),
    /// Deletes the path and creates it again.
    Again,
    /// Another API call.
    Api(u8),
}

fn bend(draw: &mut Draw) -> Bend {
    match draw.below(8) {
        0 => Bend::Byte(draw.below(32) as u16, draw.next() as u8),
        1 => Bend::Size(draw.edge()),
        2 => Bend::Cut(draw.below(64) as u16),
        _ => Bend::Nothing,
    }
}

fn form(draw: &mut Draw) -> Form {
    let what = match draw.below(8) {
        0 | 1 => What::Resp(
            draw.edge(),
            draw.of(&[0, 0, 1, 3, 7]),
            draw.of(&[0, 0, 1, 2, 8, 0xff]),
        ),
        2..5 => {
            let offset = draw.of(&[0, 0, 0, 512, 4096, 0xffff_fe00]);
            let more = draw.of(&[0, 0, 0, -512, 512, -4096, 4096, 1]);
            let told = draw.one_in(4).then(|| draw.edge());
            What::Data(offset, more, told, draw.of(&[0, 4, 4, 8, 12, 255]))
        }
        5 | 6 => {
            let offset = draw.of(&[0, 0, 0, 512, 0xffff_fe00]);
            What::Ask(draw.below(3) as u16, offset, draw.edge())
        }
        _ if draw.one_in(4) => What::Greeting,
        _ => What::Term(draw.below(9) as u16),
    };
    let cid = draw.of(&[0, 0, 0, 0, 0, 1, -1, i16::MAX]);
    let bend = bend(draw);
    Form { what, cid, bend }
}

fn reply(draw: &mut Draw) -> Reply {
    let count = 1 + draw.below(3);
    match draw.below(12) {
        0 if draw.one_in(3) => Reply::Silent,
        0 | 1 => Reply::Close,
        2 => Reply::Fail(draw.of(&[0, 1, 3]), draw.edge() as u8),
        3..8 => Reply::First((0..count).map(|_| form(draw)).collect()),
        _ => Reply::Send((0..count).map(|_| form(draw)).collect()),
    }
}

/// Generates an answer that differs from the regular one.
pub fn answer(draw: &mut Draw) -> Action {
    const ASKS: [Asks; 18] = [
        Asks(true, 0x7f, Some(0)),
        Asks(true, 0x7f, Some(1)),
        Asks(false, 0x7f, Some(1)),
        Asks(true, 0x7f, Some(4)),
        Asks(true, 0x06, Some(0)),
        Asks(true, 0x06, Some(1)),
        Asks(true, 0x06, Some(2)),
        Asks(true, 0x06, Some(3)),
        Asks(true, 0x02, None),
        Asks(true, 0x09, None),
        Asks(true, 0x0a, None),
        Asks(true, 0x0c, None),
        Asks(true, 0x18, None),
        Asks(false, 0x00, None),
        Asks(false, 0x01, None),
        Asks(false, 0x01, None),
        Asks(false, 0x02, None),
        Asks(false, 0x02, None),
    ];
    let asks = draw.of(&ASKS);
    Action::Answer(asks, draw.of(&[0, 0, 0, 1, 2, 5]), reply(draw))
}

/// Generates a change of what the peer reports.
pub fn told(draw: &mut Draw) -> Action {
    match draw.below(8) {
        0 => Action::Greet(bend(draw)),
        1 => Action::Registers(1 << draw.below(64), draw.of(&[0, 0x0001_0000, 0x0001_0400])),
        2 => Action::List(draw.below(5) as u8),
        3 => {
            let length = draw.below(96);
            Action::Ana((0..length).map(|_| draw.edge() as u8).collect())
        }
        _ => {
            // Fields that the initiator reads: MDTS, CNTLID, VER, OAES, SQES, NN, SGLS, IOCCSZ; NSZE,
            // FLBAS, LBAF.
            let controller = draw.one_in(2);
            let at = if controller {
                draw.of(&[
                    76, 77, 78, 80, 92, 96, 259, 320, 342, 512, 516, 520, 536, 768, 1792,
                ])
            } else {
                draw.of(&[0, 8, 16, 24, 25, 26, 30, 92, 104, 120, 128, 130, 132])
            };
            let word = draw.edge().to_le_bytes();
            let length = 1 + draw.below(4);
            Action::Identify(controller, at, word[..length].to_vec())
        }
    }
}

/// Generates any step for an existing path.
pub fn action(draw: &mut Draw) -> Action {
    match draw.below(20) {
        0..5 => answer(draw),
        5 | 6 => told(draw),
        7..13 => {
            let opcode = draw.of(&[1, 1, 2, 2, 2, 0, 8, 9]);
            let blocks = draw.of(&[1, 8, 8, 16, 256]);
            Action::Io(opcode, draw.below(64) as u32, blocks, !draw.one_in(3))
        }
        13 | 14 => Action::Tell(draw.of(&[2, 2, 2, 1, 0, 7]), draw.of(&[0, 0, 3, 4, 0xff])),
        15 => Action::CloseAll,
        16 if draw.one_in(3) => Action::Mute(draw.one_in(2)),
        16 => Action::Wait(draw.below(60) as u8),
        17 if draw.one_in(2) => Action::Again,
        17 => Action::Namespace(draw.of(&[1, 2, 3, 1024, 0xffff_ffff]), draw.one_in(2)),
        _ => Action::Api(draw.below(5) as u8),
    }
}

/// Returns an override of the Active Namespace ID list.
pub fn list(which: u8) -> Option<fn(u32) -> Vec<u32>> {
    match which {
        0 => None,
        // Empty, endless, duplicates, and out of order.
        1 => Some(|_| Vec::new()),
        2 => Some(|after| (1..=1024).map(|n| after.saturating_add(n)).collect()),
        3 => Some(|_| vec![1; 1024]),
        _ => Some(|_| vec![3, 1, 0xffff_ffff, 2, 0, 1]),
    }
}

/// Returns the peer's reaction to a command.
pub fn turn(answers: &mut Vec<(Asks, u8, Reply)>, ask: &Ask) -> Turn {
    let Some(at) = answers.iter().position(|(asks, _, _)| asks.fits(ask)) else {
        return Turn::Right;
    };
    if answers[at].1 > 0 {
        answers[at].1 -= 1;
        return Turn::Right;
    }
    let pdus = |forms: &[Form]| forms.iter().map(|form| formed(*form, ask)).collect();
    match answers.remove(at).2 {
        Reply::Silent => Turn::Silent,
        Reply::Close => Turn::Close,
        Reply::Fail(sct, sc) => Turn::Fail(sct & 7, sc),
        Reply::Send(forms) => Turn::Send(pdus(&forms)),
        Reply::First(forms) => Turn::First(pdus(&forms)),
    }
}

fn formed(form: Form, ask: &Ask) -> Vec<u8> {
    let cid = ask.cid().wrapping_add_signed(form.cid);
    let pdu = match form.what {
        What::Resp(result, sct, sc) => Resp::of(cid).with_cdw0(result).failed(sct & 7, sc).bytes(),
        What::Data(offset, more, told, flags) => {
            let length = ask.length().min(131_072).saturating_add_signed(more);
            c2h_data(cid, offset, &vec![0x77; length as usize], flags, told)
        }
        What::Ask(ttag, offset, length) => r2t(cid, ttag, offset, length),
        What::Term(fes) => term_req(fes),
        What::Greeting => ic_resp(),
    };
    bent(pdu, form.bend)
}

/// Applies a mutation to a PDU.
pub fn bent(pdu: Vec<u8>, bend: Bend) -> Vec<u8> {
    // Offset of PLEN.
    bend.bent(pdu, 4)
}
