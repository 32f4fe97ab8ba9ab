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

/// Between two looks at both ends, of which one thread takes care.
const STEP: Duration = Duration::from_millis(1);

/// How long the target may take to read what is there for it.
const READ: Duration = Duration::from_secs(5);

/// A handshake that has succeeded.
pub struct Tunnel {
    /// Where a plain host comes in.
    pub near: SocketAddr,
    /// Its port towards the target.
    port: u16,
    /// Records that came with data of the target.
    records: Arc<AtomicU64>,
    pump: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Opens TLS to an address; the error is the handshake's.
    pub fn open(far: SocketAddr, psk: &Psk) -> std::result::Result<Self, String> {
        Self::open_over(far, psk, false, None)
    }

    /// The same, and the kernel takes no more than so many bytes that have not been read.
    pub fn open_narrow(
        far: SocketAddr,
        psk: &Psk,
        bytes: usize,
    ) -> std::result::Result<Self, String> {
        Self::open_over(far, psk, false, Some(bytes))
    }

    /// The same, and each record goes out in two parts, of which the target has read the first before
    /// the second is sent.
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

    /// Records in which the target's data came so far.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Bytes for this host that the target's kernel holds.
    pub fn queued(&self) -> u64 {
        connections()
            .filter(|row| row.to == self.port)
            .map(|row| row.sent)
            .sum()
    }

    /// This host, by way of the tunnel.
    pub fn carries(&self, identity: &Identity) -> Identity {
        Identity {
            address: self.near,
            ..identity.clone()
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // Nobody may have come: the pump waits for one.
        drop(TcpStream::connect(self.near));
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
    }
}

/// Carries bytes both ways until one end closes.
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
                // OpenSSL gives one record at a time, and the buffer holds any.
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

/// A TCP connection whose writes may go out in two parts.
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

/// How many bytes from this port of loopback its peer has not read, or has not received yet.
fn unread(port: u16) -> u64 {
    let waiting = connections().map(|row| match row {
        Row { from, sent, .. } if from == port => sent,
        Row { to, received, .. } if to == port => received,
        _ => 0,
    });
    waiting.sum()
}

/// One end of a connection: its ports, and what its kernel holds.
struct Row {
    from: u16,
    to: u16,
    /// Bytes that the peer has not acknowledged.
    sent: u64,
    /// Bytes that nobody has read.
    received: u64,
}

/// The kernel's table of IPv4 connections.
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
