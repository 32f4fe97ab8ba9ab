//! A TCP relay to a loopback port that can drop all traffic, like a network that loses packets:
//! connections stay open and new ones are accepted, but nothing is delivered.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// A connection that the relay accepted, and its first bytes.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The peer's address.
    pub from: SocketAddr,
    /// The bytes of the first read.
    pub greeting: Vec<u8>,
}

/// The directions in which nothing is delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Silence {
    /// Towards the port.
    there: bool,
    /// From the port.
    back: bool,
}

/// A running relay; stops accepting on drop.
pub struct Relay {
    /// The relay's own port.
    pub port: u16,
    silent: watch::Sender<Silence>,
    seen: Arc<Mutex<Vec<Arrival>>>,
    accepting: AbortHandle,
}

impl Relay {
    /// Starts a relay to this port.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (silent, is_silent) = watch::channel(Silence::default());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let arrivals = Arc::clone(&seen);
        let here = listener.local_addr().expect("an address").port();
        let accepting = tokio::spawn(async move {
            let mut relayed = JoinSet::new();
            while let Ok((stream, from)) = listener.accept().await {
                let (arrivals, is_silent) = (Arc::clone(&arrivals), is_silent.clone());
                relayed.spawn(async move {
                    let mut greeting = vec![0; 1 << 12];
                    let read = stream.peek(&mut greeting).await.unwrap_or(0);
                    greeting.truncate(read);
                    arrivals.lock().push(Arrival { from, greeting });
                    relay(stream, port, is_silent).await;
                });
            }
        });
        Self {
            port: here,
            silent,
            seen,
            accepting: accepting.abort_handle(),
        }
    }

    /// Stops or resumes delivery in both directions.
    pub fn fall_silent(&self, silent: bool) {
        let (there, back) = (silent, silent);
        self.silent.send_replace(Silence { there, back });
    }

    /// Holds back traffic towards the port, or delivers it late; traffic from the port passes.
    pub fn hold_requests(&self, there: bool) {
        self.silent.send_replace(Silence { there, back: false });
    }

    /// Returns the connections that have sent something.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.seen.lock().clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn relay(near: TcpStream, port: u16, silent: watch::Receiver<Silence>) {
    if heard(&silent, |silent| silent.there || silent.back)
        .await
        .is_none()
    {
        return;
    }
    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let there = pass_on(near_in, far_out, silent.clone(), |silent| silent.there);
    tokio::join!(
        there,
        pass_on(far_in, near_out, silent, |silent| silent.back)
    );
}

/// Waits until `which` direction is not silent; returns `None` when the relay has been dropped.
async fn heard(silent: &watch::Receiver<Silence>, which: fn(&Silence) -> bool) -> Option<()> {
    silent
        .clone()
        .wait_for(|silent| !which(silent))
        .await
        .ok()?;
    Some(())
}

async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    silent: watch::Receiver<Silence>,
    which: fn(&Silence) -> bool,
) {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        // A silent relay does not deliver the end of a connection either.
        if heard(&silent, which).await.is_none() || read == 0 {
            return;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
