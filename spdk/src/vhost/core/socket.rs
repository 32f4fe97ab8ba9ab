//! Sockets of a device: the one where clients connect, and the connected client's, with its messages.
//!
//! Nothing here blocks. A message is delivered whole, with its fds. A client whose message is not complete by its
//! deadline is disconnected, and does not affect others.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use spdk_gate::vhost_user::message::{HEADER, Header, MAX_FDS, MAX_PAYLOAD, Message};

use crate::error::Error;

/// Timeout of a message from its first byte to its last.
pub(super) const MESSAGE_LIMIT: Duration = Duration::from_secs(5);

/// Clients that may wait to be accepted.
const BACKLOG: libc::c_int = 16;

/// Who may connect besides the owner.
#[derive(Debug, Clone, Copy, Default)]
pub struct Access {
    /// Group ID of the socket; `None` keeps the process's.
    pub group: Option<u32>,
    /// Mode of the socket; `None` leaves it to the process's umask.
    pub mode: Option<u32>,
}

/// A listening socket. Dropping it closes it and removes its file.
pub(super) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

impl Listener {
    /// Creates the socket at a path, replacing a stale one. EADDRNOTAVAIL if something else is there, or the socket
    /// cannot be created.
    pub(super) fn bind(path: &Path, access: Access) -> Result<Self, Error> {
        let bound = match bind(path) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) && is_left(path) => {
                std::fs::remove_file(path).and_then(|()| bind(path))
            }
            bound => bound,
        };
        let fail = |error: io::Error| {
            Error::new("make vhost-user socket", libc::EADDRNOTAVAIL).with_detail(format!(
                "no socket can be made at {path:?}: something else is there, or the directory takes no \
                 files ({error})"
            ))
        };
        let listener = Self {
            socket: bound.map_err(fail)?,
            path: path.to_owned(),
        };
        if let Some(group) = access.group {
            std::os::unix::fs::chown(path, None, Some(group)).map_err(fail)?;
        }
        if let Some(mode) = access.mode {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(path, mode).map_err(fail)?;
        }
        // SAFETY: the fd is an open, bound socket.
        if unsafe { libc::listen(listener.socket.as_raw_fd(), BACKLOG) } != 0 {
            return Err(fail(last_error()));
        }
        Ok(listener)
    }

    /// Accepts the next client, if one waits.
    pub(super) fn accept(&self) -> Option<OwnedFd> {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the fd is an open, listening socket; null pointers request no address.
        let fd = unsafe { libc::accept4(self.socket.as_raw_fd(), address, length, flags) };
        // SAFETY: created by the call and owned by nobody else.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A file that remains is replaced by the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Returns whether this is a stale socket, on which nobody listens.
fn is_left(path: &Path) -> bool {
    let is_socket = path
        .symlink_metadata()
        .is_ok_and(|about| about.file_type().is_socket());
    is_socket
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Creates a socket that is bound but does not listen, so that owner and mode are set before anybody can connect.
fn bind(path: &Path) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes plain values; a valid descriptor is new.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: created above and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a C struct of integers, for which all zero is valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address is a whole struct of the length passed, NUL-terminated by the zeros after the path.
    let rc = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
    if rc != 0 {
        Err(last_error())
    } else {
        Ok(socket)
    }
}

/// The result of reading.
pub(super) enum Read {
    /// A whole message with its header and fds.
    Whole(Header, Box<Message>, Payload, Vec<OwnedFd>),
    /// The message is not complete yet.
    More,
    /// The client has closed the connection.
    Gone,
}

/// A payload as received.
pub(super) type Payload = Box<[u8]>;

/// The connection of a client.
pub(super) struct Connection {
    socket: OwnedFd,
    bytes: [u8; HEADER + MAX_PAYLOAD],
    got: usize,
    header: Option<Header>,
    fds: Vec<OwnedFd>,
    begun: Instant,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            bytes: [0; HEADER + MAX_PAYLOAD],
            got: 0,
            header: None,
            fds: Vec::new(),
            begun: Instant::now(),
        }
    }

    /// Returns the deadline of the message that is being received.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (self.got > 0).then(|| self.begun + MESSAGE_LIMIT)
    }

    /// Reads up to one whole message. The error is the client's violation.
    pub(super) fn read(&mut self) -> Result<Read, String> {
        loop {
            let wanted = HEADER + self.header.map_or(0, |header| header.size);
            if self.got < wanted {
                match self.receive(wanted) {
                    Ok(0) => return Ok(Read::Gone),
                    Ok(count) => self.got += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Read::More);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        return Err(error.to_string());
                    }
                    Err(_) => return Ok(Read::Gone),
                }
                continue;
            }
            let Some(header) = self.header else {
                let mut bytes = [0; HEADER];
                bytes.copy_from_slice(&self.bytes[..HEADER]);
                self.header = Some(Header::parse(&bytes).map_err(|fault| fault.to_string())?);
                continue;
            };
            self.header = None;
            self.got = 0;
            let fds = std::mem::take(&mut self.fds);
            let payload = &self.bytes[HEADER..wanted];
            let message = Message::parse(&header, payload, fds.len());
            let message = Box::new(message.map_err(|fault| fault.to_string())?);
            return Ok(Read::Whole(header, message, payload.into(), fds));
        }
    }

    /// Receives bytes of the message up to `wanted`, and the fds that come with them.
    fn receive(&mut self, wanted: usize) -> io::Result<usize> {
        const SPACE: usize = 8 * 32;
        let mut control = MaybeUninit::<[u64; SPACE / 8]>::zeroed();
        let mut part = libc::iovec {
            iov_base: self.bytes[self.got..wanted].as_mut_ptr().cast(),
            iov_len: wanted - self.got,
        };
        // SAFETY: a C struct of integers and nullable pointers, for which all zero is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        // Room for one fd more than a message may have, so that an excess is detected; the kernel closes any
        // further ones.
        // SAFETY: computes a size.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(4 * (MAX_FDS as u32 + 1)) } as usize;
        debug_assert!(message.msg_controllen <= SPACE);
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: all buffers are valid for writes of the lengths in `message`, and outlive the call.
        let count = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &mut message, flags) };
        let count = usize::try_from(count).map_err(|_| last_error())?;
        // SAFETY: walks the control messages that the kernel wrote, with the platform's macros; each received fd is
        // new and owned by nobody else.
        unsafe {
            let mut part = libc::CMSG_FIRSTHDR(&message);
            while let Some(about) = part.as_ref() {
                if (about.cmsg_level, about.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                    let bytes = about.cmsg_len - libc::CMSG_LEN(0) as usize;
                    let fds = libc::CMSG_DATA(part).cast::<RawFd>();
                    for at in 0..bytes / size_of::<RawFd>() {
                        let fd = fds.add(at).read_unaligned();
                        self.fds.push(OwnedFd::from_raw_fd(fd));
                    }
                }
                part = libc::CMSG_NXTHDR(&message, part);
            }
        }
        if message.msg_flags & libc::MSG_CTRUNC != 0 || self.fds.len() > MAX_FDS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a message may bring 8 fds",
            ));
        }
        if self.got == 0 {
            self.begun = Instant::now();
        }
        Ok(count)
    }

    /// Sends a reply. Fails if the client does not read its replies.
    pub(super) fn send(
        &self,
        header: [u8; HEADER],
        payload: &[u8],
        fd: Option<&OwnedFd>,
    ) -> io::Result<()> {
        send(self.socket.as_raw_fd(), &[&header, payload].concat(), fd)
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Sends all bytes at once, without blocking, or fails.
pub(super) fn send(socket: RawFd, bytes: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
    let mut control = [0_u64; 4];
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: a C struct of integers and nullable pointers, for which all zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    if let Some(fd) = fd {
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: the buffer is zeroed, aligned, and has room for one fd; the platform's macros compute the places
        // in it.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(4) as usize;
            let about = libc::CMSG_FIRSTHDR(&message);
            (*about).cmsg_level = libc::SOL_SOCKET;
            (*about).cmsg_type = libc::SCM_RIGHTS;
            (*about).cmsg_len = libc::CMSG_LEN(4) as usize;
            let place = libc::CMSG_DATA(about).cast::<RawFd>();
            place.write_unaligned(fd.as_raw_fd());
        }
    }
    // SAFETY: all buffers are valid for reads of the lengths in `message`, and outlive the call.
    let sent = unsafe { libc::sendmsg(socket, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(last_error()),
    }
}

/// Waits until an fd has one of its events, or until the timeout. Returns the events of each fd.
pub(super) fn wait<const N: usize>(
    fds: [(Option<RawFd>, i16); N],
    limit: Option<Duration>,
) -> [i16; N] {
    let mut list = fds.map(|(fd, events)| libc::pollfd {
        fd: fd.unwrap_or(-1),
        events,
        revents: 0,
    });
    let millis = limit.map_or(-1, |limit| {
        // Rounded up, so that the deadline has passed when poll returns.
        i32::try_from(limit.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
    });
    // SAFETY: the list has N entries and outlives the call. An interrupted call reports no events.
    let rc = unsafe { libc::poll(list.as_mut_ptr(), N as libc::nfds_t, millis) };
    if rc < 0 {
        return [0; N];
    }
    list.map(|entry| entry.revents)
}
