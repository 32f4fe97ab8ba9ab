//! A connection to a vhost-user socket.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::message::{Message, flag};

/// Default timeout of sends and receives.
const LIMIT: Duration = Duration::from_secs(3);

/// SCM_MAX_FD: most file descriptors that Linux passes with one message.
const FDS: usize = 253;

/// A connection to a device; operations fail when the timeout expires.
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Connects to a device.
    pub fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self { stream })
    }

    /// Sets the receive timeout.
    pub fn set_limit(&self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit)).expect("a limit");
    }

    /// Sends a message.
    pub fn send(&mut self, message: &Message) -> io::Result<()> {
        self.send_bytes(&message.encode(), &message.borrowed())
    }

    /// Sends raw bytes; the file descriptors go with the first of them.
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(
                control.push(SendAncillaryMessage::ScmRights(fds)),
                "{} fds",
                fds.len()
            );
        }
        let flags = SendFlags::NOSIGNAL;
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, flags)?;
        self.stream.write_all(&bytes[sent..])
    }

    /// Receives a message.
    pub fn receive(&mut self) -> io::Result<Message> {
        let mut header = [0; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut header)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.stream, &mut parts, &mut control, flags)?.bytes;
        if received == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.stream.read_exact(&mut header[received..])?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let mut body = vec![0; word(8) as usize];
        self.stream.read_exact(&mut body)?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights.map(Arc::new));
            }
        }
        Ok(Message {
            request: word(0),
            flags: word(4),
            declared: None,
            body,
            fds,
        })
    }

    /// Sends a message and waits for its reply; fails if another message arrives.
    pub fn ask(&mut self, message: &Message) -> io::Result<Message> {
        self.send(message)?;
        let answer = self.receive()?;
        if answer.request != message.request || answer.flags & flag::REPLY == 0 {
            return Err(io::Error::other(format!("{answer:?} answers {message:?}")));
        }
        Ok(answer)
    }

    /// Sends a message with NEED_REPLY; returns the status: 0 is success.
    pub fn acknowledged(&mut self, message: &Message) -> io::Result<u64> {
        let message = message.clone().flags(flag::NEED_REPLY);
        Ok(self.ask(&message)?.number())
    }

    /// Returns whether the other side closes the connection before the timeout expires.
    pub fn is_ended(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
