//! A host of a subsystem in SPDK as its NvmeHost says: admitted, changed in place, replaced, revoked.

use spdk::nvmf::host::{self, Keys};
use spdk::nvmf::{View, subsystem};
use spdk::{Spdk, errno};

use super::is_gone;

/// The host that the subsystem itself names, `spec.hostnqn`, and its keys. While there is an NvmeHost of that NQN, its keys
/// and list of namespaces are those of the NvmeHost; without it the host is admitted as the subsystem says.
#[derive(Debug, Clone, Default)]
pub(super) struct FirstHost {
    /// Host NQN; empty for none.
    pub(super) hostnqn: String,
    pub(super) keys: Keys,
}

impl FirstHost {
    fn is(&self, host: &str) -> bool {
        !host.is_empty() && self.hostnqn == host
    }

    /// Revokes what an NvmeHost has admitted. Idempotent: a host that went with its subsystem, or through SPDK's own
    /// commands, counts as revoked.
    pub(super) async fn revoke(
        &self,
        spdk: Spdk,
        nqn: &str,
        host: &str,
    ) -> Result<(), spdk::Error> {
        let revoked = match self.is(host) {
            true => self.admit(spdk, nqn).await,
            false => host::disallow(spdk, nqn, host).await,
        };
        match revoked {
            Err(error) if is_gone(&error) => Ok(()),
            revoked => revoked,
        }
    }

    /// Admits the host as the subsystem says, instead of as its NvmeHost did. Keys go last: after an error the host still
    /// needs those that it had.
    async fn admit(&self, spdk: Spdk, nqn: &str) -> Result<(), spdk::Error> {
        if !host::is_allowed(spdk, nqn, &self.hostnqn)? {
            return host::allow(spdk, nqn, &self.hostnqn, &self.keys, &View::All).await;
        }
        host::show(spdk, nqn, &self.hostnqn, &View::All).await?;
        host::set_keys(spdk, nqn, &self.hostnqn, &self.keys).await
    }
}

/// SPDK's settings of a host that has passed the checks.
pub(super) struct Recipe {
    pub(super) host: String,
    pub(super) keys: Keys,
    pub(super) view: View,
    pub(super) first: FirstHost,
}

impl Recipe {
    /// Admits the host; one that is admitted by its subsystem is admitted as the NvmeHost says from now on.
    async fn allow(&self, spdk: Spdk, nqn: &str) -> Result<(), spdk::Error> {
        if self.first.is(&self.host) && host::is_allowed(spdk, nqn, &self.host)? {
            let before = Self {
                host: self.host.clone(),
                keys: self.first.keys.clone(),
                view: View::All,
                first: self.first.clone(),
            };
            return self.change(spdk, nqn, &before).await;
        }
        host::allow(spdk, nqn, &self.host, &self.keys, &self.view).await
    }

    /// Admits the host, or repairs what is known.
    pub(super) async fn ensure(
        &self,
        spdk: Spdk,
        nqn: &str,
        is_known: bool,
    ) -> Result<(), spdk::Error> {
        if is_known && host::is_allowed(spdk, nqn, &self.host)? {
            host::set_keys(spdk, nqn, &self.host, &self.keys).await?;
            host::show(spdk, nqn, &self.host, &self.view).await?;
        } else {
            self.allow(spdk, nqn).await?;
        }
        // The first admitted host closes the subsystem to all others.
        let is_open = subsystem::info(spdk, nqn)?.is_some_and(|info| info.allow_any_host);
        if !is_open {
            return Ok(());
        }
        match host::allow_any(spdk, nqn, false).await {
            Err(error) => {
                let undone = async {
                    self.first.revoke(spdk, nqn, &self.host).await?;
                    open(spdk, nqn).await
                };
                Err(error.after_undo(undone.await))
            }
            closed => closed,
        }
    }

    /// Replaces what `old` says.
    pub(super) async fn replace(
        &self,
        spdk: Spdk,
        nqn: &str,
        old: &Self,
    ) -> Result<(), spdk::Error> {
        if !host::is_allowed(spdk, nqn, &old.host)? {
            // The old host was removed through SPDK's own commands.
            self.allow(spdk, nqn).await?;
            return match self.host == old.host {
                true => Ok(()),
                false => self.first.revoke(spdk, nqn, &old.host).await,
            };
        }
        if self.host == old.host {
            return self.change(spdk, nqn, old).await;
        }
        self.allow(spdk, nqn).await?;
        match self.first.revoke(spdk, nqn, &old.host).await {
            Err(error) if error.errno.0 != errno::ENOENT => {
                Err(error.after_undo(self.first.revoke(spdk, nqn, &self.host).await))
            }
            _ => Ok(()),
        }
    }

    /// Changes keys and view of the host.
    async fn change(&self, spdk: Spdk, nqn: &str, old: &Self) -> Result<(), spdk::Error> {
        if self.keys != old.keys {
            host::set_keys(spdk, nqn, &self.host, &self.keys).await?;
        }
        if self.view == old.view {
            return Ok(());
        }
        let Err(error) = host::show(spdk, nqn, &self.host, &self.view).await else {
            return Ok(());
        };
        let undone = host::set_keys(spdk, nqn, &old.host, &old.keys);
        Err(error.after_undo(undone.await))
    }
}

/// Opens the subsystem to any host again, once its last one has been revoked. Idempotent.
pub(super) async fn open(spdk: Spdk, nqn: &str) -> Result<(), spdk::Error> {
    match host::allow_any(spdk, nqn, true).await {
        Err(error) if is_gone(&error) => Ok(()),
        opened => opened,
    }
}
