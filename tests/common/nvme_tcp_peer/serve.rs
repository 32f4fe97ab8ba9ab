//! Serves one connection of the peer.

use std::collections::HashMap;
use std::io::{Read, Result, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::nvme_tcp::{flag, kind};
use super::{Ask, Resp, Shared, Turn, c2h_data, r2t};

/// Property offsets.
const CAP: u32 = 0x00;
const VS: u32 = 0x08;
const CC: u32 = 0x14;
const CSTS: u32 = 0x1c;

/// A write whose data has not been received completely.
struct Writing {
    at: usize,
    data: Vec<u8>,
    come: usize,
}

struct Connection {
    shared: Arc<Shared>,
    number: usize,
    stream: TcpStream,
    queue: u16,
    cc: u32,
    writing: HashMap<u16, Writing>,
}

/// Serves a connection until either side closes it.
pub(super) fn serve(shared: &Arc<Shared>, number: usize, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut connection = Connection {
        shared: Arc::clone(shared),
        number,
        stream,
        queue: 0,
        cc: 0,
        writing: HashMap::new(),
    };
    // An error here is the other side closing the connection.
    let _ = connection.run();
    let _ = connection.stream.shutdown(std::net::Shutdown::Both);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

impl Connection {
    fn run(&mut self) -> Result<()> {
        loop {
            let mut head = [0; 8];
            self.stream.read_exact(&mut head)?;
            let length = u32_at(&head, 4) as usize;
            let mut rest = vec![0; length.saturating_sub(8)];
            self.stream.read_exact(&mut rest)?;
            let pdu = [&head[..], &rest].concat();
            match head[0] {
                kind::IC_REQ => {
                    let greeting = self.shared.greeting.lock().clone();
                    self.send(&greeting)?;
                }
                kind::CAPSULE_CMD => {
                    if !self.command(&pdu)? {
                        return Ok(());
                    }
                }
                kind::H2C_DATA => self.data(&pdu)?,
                _ => return Ok(()),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        if self.shared.mute.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.stream.write_all(bytes)
    }

    /// Handles a command; returns false to close the connection.
    fn command(&mut self, pdu: &[u8]) -> Result<bool> {
        let sqe: [u8; 64] = pdu[8..72].try_into().expect("a whole command");
        if sqe[0] == 0x7f && sqe[4] == 1 {
            self.queue = u16::from_le_bytes([sqe[42], sqe[43]]);
        }
        let ask = Ask {
            connection: self.number,
            queue: self.queue,
            sqe,
        };
        self.shared.asked.lock().push((ask.queue, ask.opcode()));
        let turn = (self.shared.script.lock())(&ask);
        match turn {
            Turn::Right => self.right(&ask)?,
            Turn::Silent => {}
            Turn::Send(pdus) => self.send(&pdus.concat())?,
            Turn::First(pdus) => {
                self.send(&pdus.concat())?;
                self.right(&ask)?;
            }
            Turn::Fail(sct, sc) => self.send(&Resp::of(ask.cid()).failed(sct, sc).bytes())?,
            Turn::Close => return Ok(false),
        }
        Ok(true)
    }

    fn right(&mut self, ask: &Ask) -> Result<()> {
        if ask.opcode() == 0x7f {
            return self.fabrics(ask);
        }
        match ask.queue {
            0 => self.admin(ask),
            _ => self.io(ask),
        }
    }

    fn fabrics(&mut self, ask: &Ask) -> Result<()> {
        let resp = Resp::of(ask.cid());
        let offset = ask.dword(11);
        let answer = match ask.sqe[4] {
            // Connect returns the controller ID.
            1 => resp.with_cdw0(1),
            0 => {
                if offset == CC {
                    self.cc = ask.dword(12);
                }
                resp
            }
            4 => {
                let data = self.shared.data.lock();
                resp.with_value(match offset {
                    CAP => data.capabilities,
                    VS => data.version.into(),
                    CC => self.cc.into(),
                    // CSTS: RDY when enabled; SHST complete once CC.SHN is set.
                    CSTS if self.cc >> 14 & 3 != 0 => 0b1001,
                    CSTS => (self.cc & 1).into(),
                    _ => 0,
                })
            }
            _ => resp.failed(0, 1),
        };
        self.send(&answer.bytes())
    }

    fn admin(&mut self, ask: &Ask) -> Result<()> {
        let resp = Resp::of(ask.cid());
        match ask.opcode() {
            0x06 => {
                let page = self.shared.data.lock().identify(ask.sqe[40], ask.dword(1));
                match page {
                    Some(page) => self.reply(ask, &page),
                    None => self.send(&resp.failed(0, 2).bytes()),
                }
            }
            0x02 => {
                let mut page = match ask.sqe[40] {
                    0x0c => self.shared.data.lock().ana.clone(),
                    _ => Vec::new(),
                };
                page.resize(ask.length() as usize, 0);
                self.reply(ask, &page)
            }
            // Set and Get Features: Number of Queues (16), Keep Alive Timer (10 s).
            0x09 | 0x0a if ask.sqe[40] == 7 => self.send(&resp.with_cdw0(0x000f_000f).bytes()),
            0x0a if ask.sqe[40] == 0x0f => self.send(&resp.with_cdw0(10_000).bytes()),
            0x0c => {
                let stream = self.stream.try_clone()?;
                let waiting = (self.number, ask.cid(), stream);
                self.shared.waiting.lock().push(waiting);
                Ok(())
            }
            _ => self.send(&resp.bytes()),
        }
    }

    /// Sends data and a successful completion.
    fn reply(&mut self, ask: &Ask, data: &[u8]) -> Result<()> {
        let mut answer = c2h_data(ask.cid(), 0, data, flag::LAST, None);
        answer.extend(Resp::of(ask.cid()).bytes());
        self.send(&answer)
    }

    fn io(&mut self, ask: &Ask) -> Result<()> {
        let block = self.shared.data.lock().block(ask.dword(1)) as usize;
        let at = ask.dword(10) as usize * block;
        let length = ((ask.dword(12) & 0xffff) as usize + 1) * block;
        let end = at + length;
        let resp = Resp::of(ask.cid());
        if matches!(ask.opcode(), 1 | 2) && end > self.shared.disk.lock().len() {
            return self.send(&resp.failed(0, 0x80).bytes());
        }
        match ask.opcode() {
            2 => {
                let data = self.shared.disk.lock()[at..end].to_vec();
                self.reply(ask, &data)
            }
            1 => {
                let data = vec![0; length];
                let writing = Writing { at, data, come: 0 };
                self.writing.insert(ask.cid(), writing);
                let length = u32::try_from(length).expect("a small write");
                self.send(&r2t(ask.cid(), 1, 0, length))
            }
            0 => self.send(&resp.bytes()),
            _ => self.send(&resp.failed(0, 1).bytes()),
        }
    }

    fn data(&mut self, pdu: &[u8]) -> Result<()> {
        let data = pdu.get(usize::from(pdu[3])..).unwrap_or(&[]);
        let taken = data.len() as u64;
        self.shared.taken.fetch_add(taken, Ordering::Relaxed);
        let cid = u16::from_le_bytes([pdu[8], pdu[9]]);
        let offset = u32_at(pdu, 12) as usize;
        let Some(writing) = self.writing.get_mut(&cid) else {
            return Ok(());
        };
        // A scripted R2T may have requested more data than the command has.
        let Some(part) = writing.data.get_mut(offset..offset + data.len()) else {
            return Ok(());
        };
        part.copy_from_slice(data);
        writing.come += data.len();
        if writing.come < writing.data.len() {
            return Ok(());
        }
        let Writing { at, data, .. } = self.writing.remove(&cid).expect("the write is in the map");
        self.shared.disk.lock()[at..at + data.len()].copy_from_slice(&data);
        self.send(&Resp::of(cid).bytes())
    }
}
