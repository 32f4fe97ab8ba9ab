//! A raw host over TLS: a tunnel whose near end is plain TCP on loopback, with any identity and key.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use openssl::ssl::SslStream;
use rustix::net::sockopt::set_socket_recv_buffer_size;

use crate::common::nvme_tcp::Identity;
use crate::common::{Psk, poll_blocking};

/// Poll period: one thread serves both ends.
const STEP: Duration = Duration::from_millis(1);

/// Timeout for the target to read what was sent to it.
const READ: Duration = Duration::from_secs(5);

/// A tunnel whose TLS handshake has succeeded.
pub struct Tunnel {
    /// Address at which the plain host connects.
    pub near: SocketAddr,
    /// The tunnel's local port towards the target.
    port: u16,
    /// Number of records received from the target.
    records: Arc<AtomicU64>,
    pump: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Opens a TLS connection; the error is that of the handshake.
    pub fn open(far: SocketAddr, psk: &Psk) -> std::result::Result<Self, String> {
        Self::open_over(far, psk, false, None)
    }

    /// As [`Tunnel::open`], with the kernel's receive buffer bounded to this many bytes.
    pub fn open_narrow(
        far: SocketAddr,
        psk: &Psk,
        bytes: usize,
    ) -> std::result::Result<Self, String> {
        Self::open_over(far, psk, false, Some(bytes))
    }

    /// As [`Tunnel::open`], with each record sent in two parts; the second is sent once the target has read the first.
    pub fn open_in_parts(far: SocketAddr, psk: &Psk) -> std::result::Result<Self, String> {
        Self::open_over(far, psk, true, None)
    }

    fn open_over(
        far: SocketAddr,
        psk: &Psk,
        parts: bool,
        narrow: Option<usize>,
    ) -> std::result::Result<Self, String> {
        let fault = |error: openssl::error::ErrorStack| error.to_string();
        let setup = psk.setup().map_err(fault)?;
        let stream = TcpStream::connect(far).map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        if let Some(bytes) = narrow {
            set_socket_recv_buffer_size(&stream, bytes).map_err(|error| error.to_string())?;
        }
        let port = stream
            .local_addr()
            .map_err(|error| error.to_string())?
            .port();
        let stream = Parts {
            stream,
            parts: false,
        };
        let mut tls = setup
            .connect("", stream)
            .map_err(|error| error.to_string())?;
        tls.get_mut().parts = parts;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let near = listener.local_addr().expect("a bound port");
        let records = Arc::<AtomicU64>::default();
        let pump = std::thread::spawn({
            let records = Arc::clone(&records);
            move || {
                let (plain, _) = listener.accept().expect("the host comes");
                let _ = pump(plain, tls, &records);
            }
        });
        Ok(Self {
            near,
            port,
            records,
            pump: Some(pump),
        })
    }

    /// Returns the number of records received from the target.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Returns the bytes for this host in the send buffer of the target's kernel.
    pub fn queued(&self) -> u64 {
        connections()
            .filter(|row| row.to == self.port)
            .map(|row| row.sent)
            .sum()
    }

    /// Returns this identity with the tunnel's near end as its address.
    pub fn carries(&self, identity: &Identity) -> Identity {
        Identity {
            address: self.near,
            ..identity.clone()
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // The pump may still wait for a host to connect.
        drop(TcpStream::connect(self.near));
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
    }
}

/// Relays bytes in both directions until one end closes.
fn pump(mut plain: TcpStream, mut tls: SslStream<Parts>, records: &AtomicU64) -> Result<()> {
    plain.set_nodelay(true)?;
    plain.set_read_timeout(Some(STEP))?;
    tls.get_ref().stream.set_read_timeout(Some(STEP))?;
    let mut bytes = vec![0; 64 << 10];
    loop {
        match plain.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => tls.write_all(&bytes[..read])?,
            Err(error) if is_quiet(&error) => {}
            Err(error) => return Err(error),
        }
        match tls.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => {
                // OpenSSL returns one record at a time; the buffer holds the largest.
                records.fetch_add(1, Ordering::Relaxed);
                plain.write_all(&bytes[..read])?;
            }
            Err(error) if is_quiet(&error) => {}
            Err(error) => {
                let _ = plain.shutdown(Shutdown::Both);
                return Err(error);
            }
        }
    }
    let _ = plain.shutdown(Shutdown::Both);
    let _ = tls.shutdown();
    Ok(())
}

fn is_quiet(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A TCP stream that may split each write in two.
#[derive(Debug)]
struct Parts {
    stream: TcpStream,
    parts: bool,
}

impl Read for Parts {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        self.stream.read(bytes)
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if !self.parts {
            return self.stream.write(bytes);
        }
        let (first, second) = bytes.split_at(bytes.len() / 2);
        self.stream.write_all(first)?;
        let from = self.stream.local_addr()?.port();
        let read = poll_blocking(READ, || (unread(from) == 0).then_some(()));
        read.ok_or(ErrorKind::TimedOut)?;
        self.stream.write_all(second)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        self.stream.flush()
    }
}

/// Returns how many bytes from this loopback port its peer has not received or not read.
fn unread(port: u16) -> u64 {
    let waiting = connections().map(|row| match row {
        Row { from, sent, .. } if from == port => sent,
        Row { to, received, .. } if to == port => received,
        _ => 0,
    });
    waiting.sum()
}

/// One end of a connection: its ports, and the bytes in its kernel's buffers.
struct Row {
    from: u16,
    to: u16,
    /// Bytes that the peer has not acknowledged.
    sent: u64,
    /// Bytes received but not read.
    received: u64,
}

/// Returns the kernel's table of IPv4 connections.
fn connections() -> impl Iterator<Item = Row> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let port = |end: &str| u16::from_str_radix(end.rsplit(':').next()?, 16).ok();
    let row = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (sent, received) = fields.get(4)?.split_once(':')?;
        Some(Row {
            from: port(fields.get(1)?)?,
            to: port(fields.get(2)?)?,
            sent: u64::from_str_radix(sent, 16).ok()?,
            received: u64::from_str_radix(received, 16).ok()?,
        })
    };
    let rows: Vec<_> = table.lines().skip(1).filter_map(row).collect();
    rows.into_iter()
}
