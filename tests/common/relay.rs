//! A way to a port of loopback that can fall silent, as a network does that swallows packets: who is
//! connected stays so, and who connects is, but nothing arrives.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// It relays for as long as it is kept.
pub struct Relay {
    /// Where it listens.
    pub port: u16,
    silent: watch::Sender<bool>,
    from: Arc<Mutex<Vec<SocketAddr>>>,
    accepting: AbortHandle,
}

impl Relay {
    /// To this port.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (silent, is_silent) = watch::channel(false);
        let from = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&from);
        let here = listener.local_addr().expect("an address").port();
        let accepting = tokio::spawn(async move {
            let mut relayed = JoinSet::new();
            while let Ok((stream, peer)) = listener.accept().await {
                seen.lock().push(peer);
                relayed.spawn(relay(stream, port, is_silent.clone()));
            }
        });
        Self {
            port: here,
            silent,
            from,
            accepting: accepting.abort_handle(),
        }
    }

    /// Swallows what comes, or passes it on again.
    pub fn fall_silent(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    /// Who has connected, in order.
    pub fn from(&self) -> Vec<SocketAddr> {
        self.from.lock().clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn relay(near: TcpStream, port: u16, silent: watch::Receiver<bool>) {
    if heard(&silent).await.is_none() {
        return;
    }
    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let there = pass_on(near_in, far_out, silent.clone());
    tokio::join!(there, pass_on(far_in, near_out, silent));
}

/// Returns once it is not silent; `None` when it has gone.
async fn heard(silent: &watch::Receiver<bool>) -> Option<()> {
    silent.clone().wait_for(|silent| !silent).await.ok()?;
    Some(())
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, silent: watch::Receiver<bool>) {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        // The end of a connection is not heard of either.
        if heard(&silent).await.is_none() || read == 0 {
            return;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
