//! vfio-user messages over a Unix socket.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Commands of the protocol.
pub mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_INFO: u16 = 4;
    pub const GET_REGION_INFO: u16 = 5;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const RESET: u16 = 13;
}

/// Timeout of every reply: a hang is a failure of the program under test.
const BOUND: Duration = Duration::from_secs(8);

/// The header of a message, 16 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub id: u16,
    pub command: u16,
    /// Size of the whole message.
    pub size: u32,
    pub flags: u32,
    pub error: u32,
}

impl Header {
    /// The header of a command with `body` bytes after the header.
    pub fn new(command: u16, body: usize) -> Self {
        Self {
            id: 1,
            command,
            size: u32::try_from(body + 16).expect("a small message"),
            flags: 0,
            error: 0,
        }
    }

    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.id.to_le_bytes());
        bytes.extend(self.command.to_le_bytes());
        for word in [self.size, self.flags, self.error] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }
}

/// A reply.
#[derive(Debug)]
pub struct Reply {
    pub id: u16,
    /// 0 on success.
    pub errno: u32,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// A connection to a device's socket.
pub struct Link {
    stream: UnixStream,
    next: u16,
    fds: VecDeque<OwnedFd>,
}

impl Link {
    /// Connects without sending anything.
    pub fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(BOUND))?;
        stream.set_write_timeout(Some(BOUND))?;
        Ok(Self {
            stream,
            next: 1,
            fds: VecDeque::new(),
        })
    }

    /// Connects and negotiates the version; fails if the device rejects the client.
    pub fn attach(socket: &Path) -> io::Result<Self> {
        let mut link = Self::open(socket)?;
        let mut version = vec![0, 0, 1, 0];
        version.extend(br#"{"capabilities":{"max_msg_fds":8}}"#);
        version.push(0);
        let reply = link.ask(command::VERSION, &version, &[])?;
        if reply.errno != 0 {
            return Err(io::Error::from_raw_os_error(reply.errno.cast_signed()));
        }
        Ok(link)
    }

    /// Retries [`attach`](Self::attach) until the device accepts the client; panics when the timeout
    /// expires.
    pub fn attach_within(socket: &Path, within: Duration) -> Self {
        let end = Instant::now() + within;
        loop {
            match Self::attach(socket) {
                Ok(link) => return link,
                Err(error) => assert!(
                    Instant::now() < end,
                    "{}: accepts no client within {within:?}: {error}",
                    socket.display()
                ),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sets the timeout of sends and receives.
    pub fn set_limit(&self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit)).expect("a limit");
        self.stream.set_write_timeout(Some(limit)).expect("a limit");
    }

    /// Sends raw bytes, with file descriptors.
    pub fn send_raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let sent = sendmsg(
            self.stream.as_fd(),
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        self.stream.write_all(&bytes[sent..])
    }

    /// Sends a command; returns its message ID.
    pub fn send(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<u16> {
        let mut header = Header::new(command, body.len());
        header.id = self.next;
        self.next = self.next.wrapping_add(1);
        let mut bytes = header.bytes();
        bytes.extend(body);
        self.send_raw(&bytes, fds)?;
        Ok(header.id)
    }

    /// Receives a reply.
    pub fn receive(&mut self) -> io::Result<Reply> {
        let mut header = [0; 16];
        self.read(&mut header)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let (size, errno) = (word(4), word(12));
        let mut body = vec![0; (size as usize).saturating_sub(16)];
        self.read(&mut body)?;
        Ok(Reply {
            id: u16::from_le_bytes([header[0], header[1]]),
            errno,
            body,
            fds: self.fds.drain(..).collect(),
        })
    }

    /// Sends a command and waits for its reply.
    pub fn ask(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<Reply> {
        let id = self.send(command, body, fds)?;
        let reply = self.receive()?;
        assert_eq!(reply.id, id, "a reply to another command");
        Ok(reply)
    }

    /// Sends a command whose reply must carry no error.
    pub fn ok(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Reply {
        let reply = self.ask(command, body, fds);
        let reply = reply.unwrap_or_else(|error| panic!("command {command}: {error}"));
        assert_eq!(reply.errno, 0, "command {command}");
        reply
    }

    /// Returns whether the other side closes the connection in time; drops data received before.
    pub fn is_closed_within(&mut self, within: Duration) -> bool {
        self.stream
            .set_read_timeout(Some(within))
            .expect("a timeout");
        let mut rest = [0; 4096];
        let closed = loop {
            match self.stream.read(&mut rest) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(error) => break error.kind() == ErrorKind::ConnectionReset,
            }
        };
        self.stream
            .set_read_timeout(Some(BOUND))
            .expect("a timeout");
        closed
    }

    /// Reads from a region (0 is BAR 0, 7 the configuration space).
    pub fn read_region(&mut self, region: u32, offset: u64, count: u32) -> io::Result<Reply> {
        self.ask(command::REGION_READ, &access(region, offset, count), &[])
    }

    /// Writes to a region.
    pub fn write_region(&mut self, region: u32, offset: u64, bytes: &[u8]) -> io::Result<Reply> {
        let count = u32::try_from(bytes.len()).expect("a small write");
        let mut body = access(region, offset, count);
        body.extend(bytes);
        self.ask(command::REGION_WRITE, &body, &[])
    }

    /// Sets eventfds as interrupt triggers of an index (2 is MSI-X) from vector `start` on; returns the
    /// errno.
    pub fn set_irqs(&mut self, index: u32, start: u32, fds: &[BorrowedFd<'_>]) -> u32 {
        let count = u32::try_from(fds.len()).expect("few descriptors");
        // VFIO_IRQ_SET_DATA_EVENTFD and VFIO_IRQ_SET_ACTION_TRIGGER.
        let flags = 0x24;
        let body: Vec<u8> = [20, flags, index, start, count]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        let reply = self.ask(command::SET_IRQS, &body, fds);
        reply.expect("SET_IRQS is answered").errno
    }

    fn read(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(buffer)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let read = recvmsg(self.stream.as_fd(), &mut slices, &mut control, flags)?.bytes;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    self.fds.extend(fds);
                }
            }
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            buffer = &mut buffer[read..];
        }
        Ok(())
    }
}

fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    let mut body = offset.to_le_bytes().to_vec();
    body.extend(region.to_le_bytes());
    body.extend(count.to_le_bytes());
    body
}
