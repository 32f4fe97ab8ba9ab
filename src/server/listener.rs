//! Listeners: a TCP port, or a Unix socket for clients on this machine.

use std::fmt;
use std::io::Result;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// A listening socket.
pub enum Listener {
    /// A TCP port, with TLS if it is configured.
    Tcp(TcpListener),
    /// A Unix socket, without TLS. The kernel tells which user a client is.
    Local(UnixListener),
}

/// An accepted connection.
pub(super) enum Stream {
    Tcp(TcpStream),
    Local(UnixStream),
}

/// Address of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// A network address.
    Network(SocketAddr),
    /// A user of this machine, authenticated by the kernel (SO_PEERCRED).
    User(u32),
}

impl Listener {
    /// Accepts the next connection.
    ///
    /// # Errors
    /// The system's error.
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
    /// The client's network address, if it has one.
    pub fn network(self) -> Option<SocketAddr> {
        match self {
            Self::Network(address) => Some(address),
            Self::User(_) => None,
        }
    }
}

/// Formats as `192.0.2.1:50051` or `uid:1000`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::User(user) => write!(f, "uid:{user}"),
        }
    }
}
