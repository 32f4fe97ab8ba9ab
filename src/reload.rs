//! Reloads the configuration on SIGHUP. Log level, TLS files and roles of clients are applied without dropping
//! connections; other changed settings are logged as needing a restart.

use std::time::{Duration, Instant, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use crate::access::Access;
use crate::config::{CommandLine, Config};
use crate::preflight::open_to_users;
use crate::server::{CRL, Expiry, Stamps, Tls};

/// Sets the log filter, or returns why it cannot.
pub type SetLogLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// The settings that can change while the program runs.
pub struct Reload {
    line: CommandLine,
    running: Config,
    tls: Option<Tls>,
    access: Access,
    /// Whether all users may connect to listen-uds.
    is_open: bool,
    set_log_level: SetLogLevel,
    /// Stamps of the TLS files at the last check.
    seen: Option<Stamps>,
    /// Stamps of the last attempt to apply them.
    tried: Option<Stamps>,
    /// Time of the last warning about expiring certificates and lists.
    warned: Option<Instant>,
}

/// Interval of the checks of the TLS files.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Interval of warnings about expiring certificates and lists.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

fn expiring(tls: &Tls) -> impl Iterator<Item = Expiry> {
    let now = SystemTime::now();
    let all = tls.expiries().into_iter();
    all.filter(move |expiry| expiry.days_left(now).is_some())
}

impl Reload {
    /// For a program started with this command line.
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
            is_open: access.has_users(),
            access,
            set_log_level,
            seen: None,
            tried: None,
            warned: None,
        }
    }

    /// Reloads on each SIGHUP (whose default action would end the process), and reloads the TLS files when they
    /// change.
    ///
    /// # Errors
    /// The signal handler cannot be installed.
    pub fn watch(mut self) -> Result<(), String> {
        let hangup = signal(SignalKind::hangup());
        let mut hangup = hangup.map_err(|error| format!("signals: {error}"))?;
        tokio::spawn(async move {
            let mut check = interval(CHECK_INTERVAL);
            check.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let has_tls = self.tls.is_some();
                let next = tokio::select! {
                    got = hangup.recv() => match got {
                        Some(()) => tokio::task::spawn_blocking(move || self.reload()),
                        None => return,
                    },
                    _ = check.tick(), if has_tls => tokio::task::spawn_blocking(move || self.check()),
                };
                self = match next.await {
                    Ok(this) => this,
                    Err(_) => return,
                };
            }
        });
        Ok(())
    }

    /// Reloads changed TLS files once two checks see the same version, since certificate and key are rarely written at
    /// the same time. Warns of expiring certificates and lists.
    fn check(mut self) -> Self {
        let (Some(tls), Some(files)) = (&self.tls, &self.running.tls) else {
            return self;
        };
        let now = Stamps::of(files);
        let stays = self.seen.as_ref() == Some(&now) && self.tried.as_ref() != Some(&now);
        if stays && tls.stamps() != now {
            match tls.reload(files) {
                Ok(()) => tracing::info!("the files of tls have changed: new connections use them"),
                Err(error) => {
                    tracing::error!(%error, "the files of tls have changed and cannot be used: all stays as it was");
                }
            }
            self.tried = Some(now.clone());
            self.warned = None;
        }
        self.seen = Some(now);
        if self
            .warned
            .is_none_or(|at| at.elapsed() >= WARNING_INTERVAL)
        {
            self.warned = Some(Instant::now());
            for Expiry {
                file,
                subject,
                not_after,
                ..
            } in expiring(tls)
            {
                if file == CRL {
                    tracing::warn!(
                        file,
                        issuer = subject,
                        next_update = not_after,
                        "a list of tls-crl is old, or its next update is overdue: it applies until it is replaced"
                    );
                    continue;
                }
                tracing::warn!(
                    file,
                    subject,
                    not_after,
                    "a certificate of tls ends soon, or has ended: renew it"
                );
            }
        }
        self
    }

    /// Reloads the configuration. A rejected one changes nothing.
    fn reload(mut self) -> Self {
        match self.apply() {
            Ok(()) => tracing::info!("configuration reloaded"),
            Err(error) => tracing::error!(%error, "configuration not reloaded: it stays as it was"),
        }
        self
    }

    fn apply(&mut self) -> Result<(), String> {
        let new = self.line.clone().resolve_running();
        let (new, shortage) = new.map_err(|error| error.to_string())?;
        // Whatever can be refused is read before the first of it is taken over.
        let files = new.tls.as_ref().filter(|_| self.tls.is_some());
        let tls = files.map(Tls::read).transpose()?;
        self.access.reload()?;
        // Otherwise the socket keeps the group and mode that an operator may have given it.
        if self.access.has_users() != self.is_open {
            match open_to_users(&self.running, &self.access) {
                Ok(()) => self.is_open = self.access.has_users(),
                Err(error) => {
                    tracing::warn!(%error, "the access of users to listen-uds stays as it was");
                }
            }
        }
        if let (Some(in_force), Some(tls)) = (&self.tls, tls) {
            in_force.replace(&tls);
            self.running.tls = new.tls.clone();
            self.warned = None;
        }
        if self.running.log_level != new.log_level {
            (self.set_log_level)(&new.log_level)?;
            tracing::debug!("the level of the log is now {}", new.log_level);
            self.running.log_level = new.log_level.clone();
        }
        if let Some(reason) = shortage {
            tracing::warn!(
                setting = "cores",
                reason,
                "the next start would fail; the reactors stay as they are"
            );
        }
        for setting in self.running.restart_settings(&new) {
            tracing::warn!(setting, "changed, and takes effect at the next start");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use clap::Parser;

    use super::*;

    /// Files of TLS, each time other ones.
    fn issue(dir: &Path) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap();
        let certificate = certificate.self_signed(&key).unwrap().pem();
        for (name, text) in [
            ("crt", &certificate),
            ("key", &key.serialize_pem()),
            ("ca", &certificate),
        ] {
            std::fs::write(dir.join(name), text).unwrap();
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(dir.join(name), private).unwrap();
        }
    }

    /// As after a cpuset has shrunk: the file asks for more cores than there are.
    #[test]
    fn cores_that_the_cpuset_lacks_keep_no_other_setting_from_being_reloaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("opi-spdk.toml");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write("cores = \"last:1\"\n");
        let flags = ["opi-spdk", "--config", &file.display().to_string()];
        let line = CommandLine::try_parse_from(flags).unwrap();
        let config = line.clone().resolve().unwrap();
        let (sender, levels) = std::sync::mpsc::channel();
        let set = Box::new(move |level: &str| {
            sender.send(level.to_owned()).unwrap();
            Ok(())
        });
        let access = Access::default();
        let mut reload = Reload::new(line.clone(), config, None, access, set);

        write("cores = \"last:1000\"\nlog-level = \"debug\"\n");
        assert!(line.clone().resolve().is_err());
        reload.apply().unwrap();
        assert_eq!(levels.try_recv().as_deref(), Ok("debug"));
        write("cores = \"last:none\"\nlog-level = \"info\"\n");
        assert!(reload.apply().unwrap_err().contains("last:none"));
        assert!(levels.try_recv().is_err());
    }

    #[test]
    fn grants_that_cannot_be_used_leave_the_certificate_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.toml");
        let grants = "[[grant]]\nrole = \"admin\"\nuid = 0\n";
        std::fs::write(&file, grants).unwrap();
        issue(dir.path());
        let at = |name: &str| dir.path().join(name).display().to_string();
        let files = format!("{}:{}:{}", at("crt"), at("key"), at("ca"));
        let flags = [
            "opi-spdk",
            "--tls",
            &files,
            "--access-file",
            &at("access.toml"),
        ];
        let line = CommandLine::try_parse_from(flags).unwrap();
        let config = line.clone().resolve().unwrap();
        let tls = Tls::read(config.tls.as_ref().unwrap()).unwrap();
        let access = Access::read(&file).unwrap();
        let before = tls.stamps();
        let mut reload = Reload::new(
            line,
            config,
            Some(tls.clone()),
            access,
            Box::new(|_| Ok(())),
        );

        issue(dir.path());
        std::fs::write(&file, "[[grant]]\nrole = \"root\"\nuid = 0\n").unwrap();
        assert!(reload.apply().unwrap_err().contains("access-file"));
        assert!(tls.stamps() == before, "the new certificate was taken over");
        std::fs::write(&file, grants).unwrap();
        reload.apply().unwrap();
        assert!(tls.stamps() != before, "it was not taken over");
    }
}
