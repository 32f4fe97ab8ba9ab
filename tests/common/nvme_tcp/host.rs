//! One connection of a raw NVMe/TCP host: a regular session takes a few calls, and each step can be
//! varied by hostile tests.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::pdu::{Command, Digests, Pdu, Sgl, connect_data, crc32c, flag, kind};

/// Default timeout of an answer.
pub const ANSWER: Duration = Duration::from_secs(5);

/// Offset of the property CC.
pub const CC: u32 = 0x14;
/// Offset of the property CSTS.
pub const CSTS: u32 = 0x1c;
/// CC of an enabled controller: queue entries of 64 and 16 bytes.
pub const CC_ENABLED: u32 = 0x0046_0001;

/// Host and subsystem of a connection.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The subsystem's listen address.
    pub address: SocketAddr,
    /// The subsystem's NQN.
    pub subnqn: String,
    /// The host's NQN.
    pub hostnqn: String,
    /// The host's ID.
    pub hostid: [u8; 16],
}

impl Identity {
    /// The default raw host, for a subsystem on a loopback port.
    pub fn new(port: u16, subnqn: &str) -> Self {
        Self {
            address: (IpAddr::V4(Ipv4Addr::LOCALHOST), port).into(),
            subnqn: subnqn.into(),
            hostnqn: "nqn.2022-09.io.spdk:raw-host".into(),
            hostid: *b"raw-host-of-test",
        }
    }

    /// Changes the host's NQN and ID.
    pub fn named(mut self, name: &str) -> Self {
        self.hostnqn = format!("nqn.2022-09.io.spdk:{name}");
        self.hostid = [0x5a; 16];
        for (to, from) in self.hostid.iter_mut().zip(name.bytes().rev()) {
            *to = from;
        }
        self
    }

    /// Builds Connect's data, for a new controller (0xffff) or an existing one.
    pub fn connect_data(&self, cntlid: u16) -> Vec<u8> {
        connect_data(self.hostid, cntlid, &self.subnqn, &self.hostnqn)
    }

    /// Opens a TCP connection without sending anything.
    pub fn dial(&self) -> Result<Host> {
        Host::dial(self.address)
    }

    /// Opens a connection and exchanges ICReq and ICResp.
    pub fn negotiated(&self, digests: Digests) -> Host {
        let mut host = self.dial().expect("the port takes connections");
        host.negotiate(digests).expect("ICResp");
        host
    }

    /// Connects an admin queue and enables its controller.
    pub fn admin(&self, digests: Digests) -> Host {
        let mut host = self.negotiated(digests);
        host.connect(self, 0, 0xffff)
            .expect("Connect of the admin queue");
        host.enable().expect("the controller becomes ready");
        host
    }

    /// Connects an I/O queue of the admin queue's controller.
    pub fn io(&self, admin: &Host, qid: u16) -> Host {
        let mut host = self.negotiated(admin.digests);
        host.connect(self, qid, admin.cntlid)
            .expect("Connect of an I/O queue");
        host
    }

    /// Connects so many hosts, `host-0` and on, each with an admin and an I/O queue.
    pub fn hosts(&self, number: u16) -> Vec<(Host, Host)> {
        let connect = |number| {
            let identity = self.clone().named(&format!("host-{number}"));
            let admin = identity.admin(Digests::OFF);
            let io = identity.io(&admin, 1);
            (admin, io)
        };
        (0..number).map(connect).collect()
    }
}

/// A received PDU: complete header, data without digest and padding.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The PDU type, one of `kind`.
    pub kind: u8,
    /// Flags of the common header.
    pub flags: u8,
    /// The header, common part included.
    pub header: Vec<u8>,
    /// The data.
    pub data: Vec<u8>,
}

impl Answer {
    /// Returns 16 bits of the header.
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.header[at], self.header[at + 1]])
    }

    /// Returns 32 bits of the header.
    pub fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    /// Returns a completion's status without the phase bit: SCT in bits 8 to 10, SC in bits 0 to 7.
    pub fn status(&self) -> u16 {
        assert_eq!(self.kind, kind::CAPSULE_RESP, "not a completion: {self:?}");
        self.u16(22) >> 1
    }

    /// Returns a completion's command ID.
    pub fn cid(&self) -> u16 {
        assert_eq!(self.kind, kind::CAPSULE_RESP, "not a completion: {self:?}");
        self.u16(20)
    }

    /// Returns transfer tag, offset and length of an R2T.
    pub fn r2t(&self) -> (u16, u32, u32) {
        assert_eq!(self.kind, kind::R2T, "not an R2T: {self:?}");
        (self.u16(10), self.u32(12), self.u32(16))
    }

    /// Returns the fatal error status of a C2HTermReq.
    pub fn fes(&self) -> u16 {
        assert_eq!(self.kind, kind::C2H_TERM_REQ, "not a TermReq: {self:?}");
        self.u16(8)
    }
}

/// An NVMe/TCP connection.
pub struct Host {
    stream: TcpStream,
    /// The negotiated digests.
    pub digests: Digests,
    /// The controller's ID once Connect has succeeded.
    pub cntlid: u16,
    next_cid: u16,
}

impl Host {
    /// Opens a TCP connection to an address.
    pub fn dial(address: SocketAddr) -> Result<Self> {
        Self::over(TcpStream::connect_timeout(&address, ANSWER)?)
    }

    /// Wraps an open TCP connection.
    pub fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(ANSWER))?;
        Ok(Self {
            stream,
            digests: Digests::OFF,
            cntlid: 0xffff,
            next_cid: 0,
        })
    }

    /// Returns the socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Returns the next command ID; IDs repeat after 65536.
    pub fn cid(&mut self) -> u16 {
        self.next_cid = self.next_cid.wrapping_add(1);
        self.next_cid
    }

    /// Sends raw bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a PDU with the negotiated digests.
    pub fn send(&mut self, pdu: &Pdu) -> Result<()> {
        let bytes = pdu.bytes(self.digests);
        self.send_bytes(&bytes)
    }

    /// Sends several PDUs in one write.
    pub fn send_all(&mut self, pdus: &[Pdu]) -> Result<()> {
        let bytes: Vec<_> = pdus
            .iter()
            .flat_map(|pdu| pdu.bytes(self.digests))
            .collect();
        self.send_bytes(&bytes)
    }

    /// Sends a PDU in two writes, split after `at` bytes.
    pub fn send_cut(&mut self, pdu: &Pdu, at: usize) -> Result<()> {
        let bytes = pdu.bytes(self.digests);
        let (head, tail) = bytes.split_at(at.min(bytes.len()));
        self.send_bytes(head)?;
        self.send_bytes(tail)
    }

    /// Receives the next PDU.
    pub fn receive(&mut self) -> Result<Answer> {
        self.receive_within(ANSWER)
    }

    /// Receives the next PDU; fails with `TimedOut` when the timeout expires.
    pub fn receive_within(&mut self, within: Duration) -> Result<Answer> {
        let end = Instant::now() + within;
        let mut header = vec![0; 8];
        self.fill(&mut header, end)?;
        let (kind, flags, hlen) = (header[0], header[1], usize::from(header[2]));
        let plen = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let mut rest = vec![0; (plen as usize).saturating_sub(8)];
        self.fill(&mut rest, end)?;
        let mut data = rest.split_off(hlen.saturating_sub(8).min(rest.len()));
        header.append(&mut rest);
        let mut begin = 0;
        if flags & flag::HDGST != 0 {
            check(&header, data.get(..4).unwrap_or(&[]))?;
            begin = 4;
        }
        if kind == kind::C2H_DATA {
            begin = usize::from(header[3]).saturating_sub(hlen);
        }
        data.drain(..begin.min(data.len()));
        if kind == kind::C2H_DATA && flags & flag::DDGST != 0 {
            let digest = data.split_off(data.len().saturating_sub(4));
            let mut padded = data.clone();
            padded.resize(data.len().next_multiple_of(4), 0);
            check(&padded, &digest)?;
        }
        Ok(Answer {
            kind,
            flags,
            header,
            data,
        })
    }

    fn fill(&mut self, mut bytes: &mut [u8], end: Instant) -> Result<()> {
        while !bytes.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => bytes = &mut bytes[read..],
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Waits until the target closes the connection; returns the PDUs received before.
    pub fn closed_within(&mut self, within: Duration) -> Result<Vec<Answer>> {
        let end = Instant::now() + within;
        let mut before = Vec::new();
        loop {
            match self.receive_within(end.saturating_duration_since(Instant::now())) {
                Ok(answer) => before.push(answer),
                Err(e) if e.kind() == ErrorKind::TimedOut => return Err(e),
                Err(_) => return Ok(before),
            }
        }
    }

    /// Exchanges ICReq and ICResp.
    pub fn negotiate(&mut self, digests: Digests) -> Result<Answer> {
        self.send(&Pdu::ic_req(digests))?;
        let answer = self.receive()?;
        if answer.kind != kind::IC_RESP {
            return Err(Error::other(format!("no ICResp: {answer:?}")));
        }
        self.digests = digests;
        Ok(answer)
    }

    /// Sends Connect with in-capsule data; stores the controller's ID.
    pub fn connect(&mut self, identity: &Identity, qid: u16, cntlid: u16) -> Result<()> {
        let cid = self.cid();
        let command = Command::connect(cid, qid, 31, Sgl::InCapsule(1024));
        let answer = self.call(command, &identity.connect_data(cntlid))?;
        if answer.status() != 0 {
            let status = answer.status();
            return Err(Error::other(format!("Connect: status {status:#x}")));
        }
        self.cntlid = answer.u16(8);
        Ok(())
    }

    /// Sends a command and returns its completion. R2Ts are answered from `data`; received data is
    /// dropped.
    pub fn call(&mut self, command: Command, data: &[u8]) -> Result<Answer> {
        let in_capsule = command.0[39] == 0x01;
        let inside = if in_capsule { data } else { &[] };
        self.send(&Pdu::capsule(command, inside))?;
        Ok(self.completion(command.cid(), data)?.0)
    }

    /// Waits for a command's completion; returns it with the received data. R2Ts are answered from
    /// `data`.
    pub fn completion(&mut self, cid: u16, data: &[u8]) -> Result<(Answer, Vec<u8>)> {
        let mut received = Vec::new();
        loop {
            let mut answer = self.receive()?;
            match answer.kind {
                kind::R2T => {
                    let (ttag, offset, length) = answer.r2t();
                    let part = &data[offset as usize..][..length as usize];
                    self.send(&Pdu::h2c_data(answer.u16(8), ttag, offset, part))?;
                }
                kind::C2H_DATA => {
                    received.append(&mut answer.data);
                    if answer.flags & flag::SUCCESS != 0 {
                        answer.kind = kind::CAPSULE_RESP;
                        answer.header = vec![0; 24];
                        answer.header[20..22].copy_from_slice(&cid.to_le_bytes());
                        return Ok((answer, received));
                    }
                }
                kind::CAPSULE_RESP if answer.cid() == cid => return Ok((answer, received)),
                _ => return Err(Error::other(format!("not of command {cid}: {answer:?}"))),
            }
        }
    }

    /// Enables the controller and waits until it is ready.
    pub fn enable(&mut self) -> Result<()> {
        let cid = self.cid();
        self.call(Command::property_set(cid, CC, CC_ENABLED), &[])?;
        let end = Instant::now() + ANSWER;
        while Instant::now() < end {
            let cid = self.cid();
            let answer = self.call(Command::property_get(cid, CSTS), &[])?;
            if answer.u32(8) & 1 == 1 {
                return Ok(());
            }
        }
        Err(ErrorKind::TimedOut.into())
    }

    /// Writes 512-byte blocks: in-capsule below 4 KiB, else by R2T.
    pub fn write(&mut self, nsid: u32, lba: u64, data: &[u8]) -> Result<Answer> {
        let length = u32::try_from(data.len()).expect("a length");
        let blocks = u16::try_from(length / 512).expect("a few blocks");
        let sgl = if length < 4096 {
            Sgl::InCapsule(length)
        } else {
            Sgl::Transport(length)
        };
        let cid = self.cid();
        self.call(Command::io(1, cid, nsid, lba, blocks).sgl(sgl), data)
    }

    /// Reads 512-byte blocks.
    pub fn read(&mut self, nsid: u32, lba: u64, blocks: u16) -> Result<Vec<u8>> {
        let cid = self.cid();
        let command =
            Command::io(2, cid, nsid, lba, blocks).sgl(Sgl::Transport(u32::from(blocks) * 512));
        self.send(&Pdu::capsule(command, &[]))?;
        let (answer, data) = self.completion(cid, &[])?;
        match answer.status() {
            0 => Ok(data),
            status => Err(Error::other(format!("READ: status {status:#x}"))),
        }
    }
}

fn check(bytes: &[u8], digest: &[u8]) -> Result<()> {
    if crc32c(bytes).to_le_bytes() == digest {
        Ok(())
    } else {
        Err(Error::other("a wrong digest"))
    }
}
