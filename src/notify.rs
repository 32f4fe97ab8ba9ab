//! Tells the service manager that started the process how it is (sd_notify(3)): that it serves, that it
//! stops, and, as its watchdog, that the data path still takes configuration.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

/// The service manager's socket, if there is one.
pub struct Manager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// As the environment tells.
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

    /// Everything is served. From now on the watchdog is fed, as long as the data path answers.
    pub fn ready(self, handle: spdk::Handle) -> Watched {
        self.say("READY=1\nSTATUS=serving");
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

    /// A manager that has gone has no use for it.
    fn say(&self, text: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(text.as_bytes());
        }
    }
}

/// A service that is up.
pub struct Watched {
    manager: Manager,
    feeding: Option<JoinHandle<()>>,
}

impl Watched {
    /// It stops: that takes no longer than a stop may, so the watchdog has an end.
    pub fn stopping(self) {
        self.manager.say("STOPPING=1\nSTATUS=stopping");
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
    // It must not hold up a control thread.
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// A step that does nothing goes through the data path, and comes back.
async fn feed(socket: UnixDatagram, period: Duration, handle: spdk::Handle) {
    let mut ticks = interval(period);
    loop {
        ticks.tick().await;
        match timeout(period, handle.call(async |_| ())).await {
            // A mailbox that is full of work is not stuck: the executor takes from it.
            Ok(_) => {
                let _ = socket.send(b"WATCHDOG=1");
            }
            Err(_) => {
                tracing::error!(waited = ?period, "the data path does not answer the watchdog")
            }
        }
    }
}
