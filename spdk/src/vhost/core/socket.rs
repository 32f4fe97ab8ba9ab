//! The sockets of a device: where clients connect, and the messages of the one that has.
//!
//! Nothing here blocks. A message is handed on whole, with its fds; one that does not come whole in time
//! ends its client and disturbs nobody else.

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

/// How long a message may take from its first byte to its last.
pub(super) const MESSAGE_LIMIT: Duration = Duration::from_secs(5);

/// Clients that may wait to be let in.
const BACKLOG: libc::c_int = 16;

/// Who may connect, beside the owner.
#[derive(Debug, Clone, Copy, Default)]
pub struct Access {
    /// The socket's group, by its number.
    pub group: Option<u32>,
    /// The socket's permissions; the process's own umask decides where there are none.
    pub mode: Option<u32>,
}

/// A listening socket, removed with its file when it is dropped.
pub(super) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

impl Listener {
    /// Makes the socket at a path. EADDRNOTAVAIL if something else is there, or it cannot be made.
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
        // SAFETY: a bound socket.
        if unsafe { libc::listen(listener.socket.as_raw_fd(), BACKLOG) } != 0 {
            return Err(fail(last_error()));
        }
        Ok(listener)
    }

    /// The next client, if one waits.
    pub(super) fn accept(&self) -> Option<OwnedFd> {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: a listening socket; no address is asked for.
        let fd = unsafe { libc::accept4(self.socket.as_raw_fd(), address, length, flags) };
        // SAFETY: made by the call, and nobody else's.
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
        // Where it cannot be removed the next start does it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether this is a socket that nobody listens at.
fn is_left(path: &Path) -> bool {
    let is_socket = path
        .symlink_metadata()
        .is_ok_and(|about| about.file_type().is_socket());
    is_socket
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A socket that is bound and does not listen yet: its file gets its owner first.
fn bind(path: &Path) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: makes a new fd, owned at once.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: made above, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a C struct for which all zero is valid.
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
    // SAFETY: the address is a whole struct, terminated by the zeroes behind the path.
    let rc = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
    if rc != 0 {
        Err(last_error())
    } else {
        Ok(socket)
    }
}

/// What came of reading.
pub(super) enum Read {
    /// A message, its header and its fds.
    Whole(Header, Box<Message>, Payload, Vec<OwnedFd>),
    /// Not yet a whole one.
    More,
    /// The client has closed.
    Gone,
}

/// A payload as it came.
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

    /// By when the message that has begun must be whole.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (self.got > 0).then(|| self.begun + MESSAGE_LIMIT)
    }

    /// Reads what has come, up to one whole message. An error is what the client did wrong.
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
        // SAFETY: a C struct for which all zero is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        // Room for one fd more than a message may have: those behind it are closed by the kernel.
        // SAFETY: computes a size.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(4 * (MAX_FDS as u32 + 1)) } as usize;
        debug_assert!(message.msg_controllen <= SPACE);
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: all buffers outlive the call and are as long as said.
        let count = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &mut message, flags) };
        let count = usize::try_from(count).map_err(|_| last_error())?;
        // SAFETY: walks what the kernel wrote, by its own macros.
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

    /// Sends a reply. A client that does not read its replies gets none.
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

/// Sends bytes at once, or not at all.
pub(super) fn send(socket: RawFd, bytes: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
    let mut control = [0_u64; 4];
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: a C struct for which all zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    if let Some(fd) = fd {
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: the buffer has room for one fd, and is filled in by the kernel's own macros.
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
    // SAFETY: all buffers outlive the call and are as long as said.
    let sent = unsafe { libc::sendmsg(socket, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(last_error()),
    }
}

/// Waits until one of the fds has one of its events, or a time has come. Which events each has.
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
        // Rounded up, so that the time has come when it returns.
        i32::try_from(limit.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
    });
    // SAFETY: the list outlives the call and has N entries. An interrupted call has no events.
    let rc = unsafe { libc::poll(list.as_mut_ptr(), N as libc::nfds_t, millis) };
    if rc < 0 {
        return [0; N];
    }
    list.map(|entry| entry.revents)
}
