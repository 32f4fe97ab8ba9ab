//! Steps of a case, and what the peer sends for them.

use serde::{Deserialize, Serialize};

use crate::bend::Bend;
use crate::common::nvme_tcp_peer::{Ask, Resp, Turn, c2h_data, ic_resp, r2t, term_req};
use crate::draw::Draw;

/// Which commands an answer is for: of the admin queue or not, opcode, and type or kind.
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

/// A PDU that need not be right.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Form {
    pub what: What,
    /// Off by this.
    pub cid: i16,
    pub bend: Bend,
}

/// What it is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum What {
    /// A response: result, status code type, status code.
    Resp(u32, u8, u8),
    /// Data: offset, bytes more or fewer than asked for, the length that it tells, flags.
    Data(u32, i32, Option<u32>, u8),
    /// R2T: tag, offset, length.
    Ask(u16, u32, u32),
    Term(u16),
    Greeting,
}

/// What the peer does in place of the right answer.
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
    /// After so many of these commands, the next one is answered so.
    Answer(Asks, u8, Reply),
    /// How it answers ICReq.
    Greet(Bend),
    /// Bytes of its identify data, of the controller or of its namespace.
    Identify(bool, u16, Vec<u8>),
    /// Registers CAP (some bits turned) and VS.
    Registers(u64, u32),
    /// One of several lists of namespaces.
    List(u8),
    /// Its ANA log page.
    Ana(Vec<u8>),
    /// A namespace comes or goes.
    Namespace(u32, bool),
    /// Makes the path, and shows the namespace to a host.
    Attach,
    /// I/O of that host: opcode, block, blocks, and whether it waits.
    Io(u8, u32, u16, bool),
    /// An event: type and information.
    Tell(u8, u8),
    /// Closes all connections.
    CloseAll,
    /// Says nothing any more.
    Mute(bool),
    /// Waits, milliseconds.
    Wait(u8),
    /// Takes the path away, and makes it again.
    Again,
    /// Another call.
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

/// A wrong answer.
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

/// What it says of itself.
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
            // Those that are read: MDTS, CNTLID, VER, OAES, SQES, NN, SGLS, IOCCSZ; NSZE, FLBAS, LBAF.
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

/// Any step of a path that has been made.
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

/// In place of the list of active namespaces.
pub fn list(which: u8) -> Option<fn(u32) -> Vec<u32>> {
    match which {
        0 => None,
        // Nothing, one without end, the same one again, and numbers out of order.
        1 => Some(|_| Vec::new()),
        2 => Some(|after| (1..=1024).map(|n| after.saturating_add(n)).collect()),
        3 => Some(|_| vec![1; 1024]),
        _ => Some(|_| vec![3, 1, 0xffff_ffff, 2, 0, 1]),
    }
}

/// What the peer does with a command.
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

/// The PDU, made wrong.
pub fn bent(pdu: Vec<u8>, bend: Bend) -> Vec<u8> {
    // PLEN.
    bend.bent(pdu, 4)
}
