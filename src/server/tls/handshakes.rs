//! Handshakes, on threads of their own: verifying what a stranger sends costs milliseconds.

use rustix::process::setpriority_process;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Tls;
use crate::server::limits::{HANDSHAKE, HANDSHAKE_NICE, HANDSHAKE_THREADS};

/// Threads that do handshakes. A stream belongs to the runtime that accepted it, wherever it is polled.
pub struct Handshakes(Option<Runtime>);

impl Handshakes {
    /// Starts them.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(HANDSHAKE_THREADS)
            .max_blocking_threads(1)
            .thread_name("tls-handshake")
            .on_thread_start(|| {
                // In Linux of the calling thread alone. Without it they are just not so polite.
                if let Err(error) = setpriority_process(None, HANDSHAKE_NICE) {
                    tracing::debug!(%error, "niceness of a handshake thread");
                }
            })
            .enable_time()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Does one.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn accept(
        &self,
        tls: &Tls,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, String> {
        let Some(runtime) = &self.0 else {
            return Err("handshakes have ended".to_owned());
        };
        let accept = TlsAcceptor::from(tls.current()).accept(stream);
        let task = runtime.spawn(async move { timeout(HANDSHAKE, accept).await });
        // A connection that is given up takes its handshake with it.
        let mut task = AbortOnDrop(task);
        match (&mut task.0).await {
            Ok(Ok(Ok(stream))) => Ok(stream),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(_)) => Err(format!("it was not complete within {HANDSHAKE:?}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
