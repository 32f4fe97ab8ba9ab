//! SIGHUP: the configuration is read again. The log's level, the TLS files and the roles of clients are taken
//! over without dropping a connection; of everything else that changed the log tells that it needs a restart.

use tokio::signal::unix::{SignalKind, signal};

use crate::access::Access;
use crate::config::{CommandLine, Config};
use crate::server::Tls;

/// Sets the filter of the log, or says why it cannot.
pub type SetLogLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What can be changed while the program runs.
pub struct Reload {
    line: CommandLine,
    running: Config,
    tls: Option<Tls>,
    access: Access,
    set_log_level: SetLogLevel,
}

impl Reload {
    /// Of a program that was started with this command line.
    pub fn new(
        line: CommandLine,
        running: Config,
        tls: Option<Tls>,
        access: Access,
        set_log_level: SetLogLevel,
    ) -> Self {
        Self {
            line,
            running,
            tls,
            access,
            set_log_level,
        }
    }

    /// Reloads at each SIGHUP, whose default would be to end the process.
    ///
    /// # Errors
    /// If the signal cannot be had.
    pub fn watch(mut self) -> Result<(), String> {
        let hangup = signal(SignalKind::hangup());
        let mut hangup = hangup.map_err(|error| format!("signals: {error}"))?;
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                self = match tokio::task::spawn_blocking(move || self.reload()).await {
                    Ok(this) => this,
                    Err(_) => return,
                };
            }
        });
        Ok(())
    }

    /// A configuration that is refused changes nothing.
    fn reload(mut self) -> Self {
        match self.apply() {
            Ok(()) => tracing::info!("configuration reloaded"),
            Err(error) => tracing::error!(%error, "configuration not reloaded: it stays as it was"),
        }
        self
    }

    fn apply(&mut self) -> Result<(), String> {
        let new = self.line.clone().resolve().map_err(|e| e.to_string())?;
        if let (Some(tls), Some(files)) = (&self.tls, &new.tls) {
            tls.reload(files)?;
        }
        self.access.reload()?;
        if self.running.log_level != new.log_level {
            (self.set_log_level)(&new.log_level)?;
            tracing::debug!("the level of the log is now {}", new.log_level);
            self.running.log_level = new.log_level.clone();
        }
        for setting in self.running.restart_settings(&new) {
            tracing::warn!(setting, "changed, and takes effect at the next start");
        }
        Ok(())
    }
}
