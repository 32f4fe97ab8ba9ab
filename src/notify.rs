//! Notifies the service manager (sd_notify(3)) when the process serves and stops, and feeds its watchdog while the
//! data path accepts configuration.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

/// Connection to the service manager, if there is one.
pub struct Manager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// Connects as given by the environment.
    pub fn of_environment() -> Self {
        let variable = |name| std::env::var(name).ok();
        let for_us =
            variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let period = variable("WATCHDOG_USEC").and_then(|text| text.parse().ok());
        Self {
            socket: variable("NOTIFY_SOCKET").and_then(|name| connect(&name)),
            watchdog: period
                .filter(|period| for_us && *period > 0)
                .map(Duration::from_micros),
        }
    }

    /// Reports readiness, and from now on feeds the watchdog as long as the data path answers.
    pub fn ready(self, handle: spdk::Handle) -> Watched {
        self.send("READY=1\nSTATUS=serving");
        let feeding = match (&self.socket, self.watchdog) {
            (Some(socket), Some(period)) => {
                let socket = socket.try_clone().ok();
                socket.map(|socket| tokio::spawn(feed(socket, period / 2, handle)))
            }
            _ => None,
        };
        Watched {
            manager: self,
            feeding,
        }
    }

    /// Errors are ignored: the service manager may be gone.
    fn send(&self, text: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(text.as_bytes());
        }
    }
}

/// A running service.
pub struct Watched {
    manager: Manager,
    feeding: Option<JoinHandle<()>>,
}

impl Watched {
    /// Reports the stop. The watchdog is no longer fed: a stop is bounded to less than its period.
    pub fn stopping(self) {
        self.manager.send("STOPPING=1\nSTATUS=stopping");
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(feeding) = &self.feeding {
            feeding.abort();
        }
    }
}

fn connect(name: &str) -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    match name.strip_prefix('@') {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name).ok()?),
        None => socket.connect(name),
    }
    .ok()?;
    // Non-blocking, so that it cannot stall a control thread.
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// Feeds the watchdog whenever an empty step has passed through the data path.
async fn feed(socket: UnixDatagram, period: Duration, handle: spdk::Handle) {
    let mut ticks = interval(period);
    loop {
        ticks.tick().await;
        match timeout(period, handle.call(async |_| ())).await {
            // A full mailbox also counts as alive: it is full of work that the executor is processing.
            Ok(_) => {
                let _ = socket.send(b"WATCHDOG=1");
            }
            Err(_) => {
                tracing::error!(waited = ?period, "the data path does not answer the watchdog")
            }
        }
    }
}
