//! Where clients come in: a TCP port, or a socket in the file system for those of this machine.

use std::fmt;
use std::io::Result;
use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// What accepts connections.
pub enum Listener {
    /// A port, with TLS where that is on.
    Tcp(TcpListener),
    /// A socket, always in the clear. Its mode has the kernel admit its owner and root alone.
    Local(UnixListener),
}

/// A connection that was accepted.
pub(super) enum Stream {
    Tcp(TcpStream),
    Local(UnixStream),
}

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// At the other end of a network.
    Network(SocketAddr),
    /// On this machine: the user that runs it, as the kernel tells.
    User(u32),
}

impl Listener {
    /// The next connection.
    ///
    /// # Errors
    /// The system's.
    pub(super) async fn accept(&self) -> Result<(Stream, Address)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Address::Network(address)))
            }
            Self::Local(listener) => {
                let (stream, _) = listener.accept().await?;
                let user = stream.peer_cred()?.uid();
                Ok((Stream::Local(stream), Address::User(user)))
            }
        }
    }
}

impl Address {
    /// The address of a client in a network.
    pub fn network(self) -> Option<SocketAddr> {
        match self {
            Self::Network(address) => Some(address),
            Self::User(_) => None,
        }
    }

    /// The address that a client is held to; all of this machine's are one.
    pub fn ip(self) -> IpAddr {
        match self {
            Self::Network(address) => address.ip(),
            Self::User(_) => IpAddr::from([127, 0, 0, 1]),
        }
    }
}

/// `192.0.2.1:50051`, or `uid:1000`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::User(user) => write!(f, "uid:{user}"),
        }
    }
}
