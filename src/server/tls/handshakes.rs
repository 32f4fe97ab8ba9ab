//! TLS handshakes on their own threads: verifying a stranger's certificates takes milliseconds.

use rustix::process::setpriority_process;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Tls;
use crate::server::limits::{HANDSHAKE, HANDSHAKE_NICE, HANDSHAKE_THREADS};

/// The handshake threads. A stream stays registered with the runtime that accepted it, wherever it is polled.
pub struct Handshakes(Option<Runtime>);

impl Handshakes {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(HANDSHAKE_THREADS)
            .max_blocking_threads(1)
            .thread_name("tls-handshake")
            .on_thread_start(|| {
                // On Linux this affects the calling thread only. Failing is harmless: the thread keeps its priority.
                if let Err(error) = setpriority_process(None, HANDSHAKE_NICE) {
                    tracing::debug!(%error, "niceness of a handshake thread");
                }
            })
            .enable_time()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Performs a handshake.
    ///
    /// # Errors
    /// The handshake failed or timed out.
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
        // Aborts the handshake if the connection is abandoned.
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
