//! NvmeRemoteController: an NVMe controller on another machine or on the local PCI bus. It holds the connection
//! settings; its paths connect, and bring its namespaces as bdevs `<id>n<nsid>`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spdk::bdev::nvme;
use spdk::{Handle, bdev, errno, keyring};

use super::volume_stats;
use crate::api::storage::{NvmeMultipath, NvmeRemoteController, TcpController, VolumeStats};
use crate::error::{Error, Violations};
use crate::interchange;
use crate::resource::volume_ref::remote_bdevs;
use crate::resource::{CallContext, Change, Claims, Collection, Key, Kind, Name, Shared, Stage};

/// NVMe base specification: queue counts and sizes are 16 bits, and a queue has two entries at least.
const MAX_QUEUES: i64 = 65_535;
const QUEUE_SIZES: std::ops::RangeInclusive<i64> = 2..=65_535;

/// Grace period after the deadline of the paths, so that their own error is returned rather than a plain timeout.
const LAST_WORD: Duration = Duration::from_millis(20);

/// The kind of NvmeRemoteController.
pub struct NvmeRemoteControllers {
    spdk: Handle,
    shared: Arc<Shared>,
}

impl NvmeRemoteControllers {
    /// Creates the kind for controllers that this SPDK attaches.
    pub fn new(spdk: Handle, shared: Arc<Shared>) -> Self {
        Self { spdk, shared }
    }

    /// Returns whether a controller has paths that were made here. A controller that SPDK has without any is foreign.
    pub(super) fn is_attached(&self, controller: &Name) -> bool {
        self.paths(controller).next().is_some()
    }

    /// Returns the paths of a controller, including those being created.
    pub(super) fn paths(&self, controller: &Name) -> impl Iterator<Item = Name> + use<> {
        let users = self.shared.registry.users_of(controller).into_iter();
        let name = controller.key().clone();
        users.filter(move |user| is_path(&name, user))
    }

    /// Returns a user of any of the controller's bdevs.
    pub(super) fn user_of_bdevs(&self, controller: &Name) -> Option<Name> {
        let mut users = self.shared.registry.users_of(controller).into_iter();
        users.find(|user| !is_path(controller.key(), user) && !is_credential(user))
    }

    /// Disconnects and reconnects a controller, path by path. Returns at once if it has no path.
    ///
    /// # Errors
    /// NOT_FOUND, UNAVAILABLE that names the paths that have not reconnected before the deadline.
    pub async fn reset(
        all: &Arc<Collection<Self>>,
        call: CallContext,
        name: &str,
    ) -> Result<(), Error> {
        let controller = all.meta().parse("name", name)?;
        if all.object(controller.key()).is_none() {
            return Err(Error::not_found(&controller));
        }
        // Without a path there is nothing to reset, so do not queue behind other changes.
        if !all.kind().is_attached(&controller) {
            return Ok(());
        }
        let give_up = call.answer_by();
        let done = all.with(call, name, async move |all, name| {
            let id = name.id().to_owned();
            let left = give_up.saturating_duration_since(Instant::now());
            let reset = async move |spdk| nvme::reset(spdk, &id, left).await;
            match all.kind().spdk.call(reset).await? {
                Err(error) if error.errno.0 == errno::ENODEV => Ok(()),
                result => result.map_err(unreachable),
            }
        });
        // The deadline is extended so that the paths' own error, which names those that failed, wins the race.
        let deadline = tokio::time::Instant::from_std(give_up) + LAST_WORD;
        tokio::time::timeout_at(deadline, done)
            .await
            .unwrap_or_else(|_| {
                Err(Error::Unavailable(format!(
                    "{controller}: another change of it has not ended in time"
                )))
            })
    }
}

impl Kind for NvmeRemoteControllers {
    type Object = NvmeRemoteController;

    const STAGE: Stage = Stage::Base;

    fn check(&self, object: &NvmeRemoteController, violations: &mut Violations) {
        check(object, violations);
    }

    fn claims(&self, name: &Name, object: &NvmeRemoteController) -> Claims {
        let claims = Claims::new().owns(remote_bdevs(name.id()));
        match object.multipath() {
            // Multipath disabled: admits one path only.
            NvmeMultipath::Disable => claims.admits_one(name.key().clone()),
            _ => claims,
        }
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        object: NvmeRemoteController,
    ) -> Result<NvmeRemoteController, Error> {
        let is_known = !object.name.is_empty();
        let id = name.id().to_owned();
        let is_there = async move |spdk| nvme::paths(spdk, &id).is_ok();
        if !is_known && self.spdk.call(is_there).await? {
            return Err(Error::AlreadyExists {
                name: name.into(),
                message: format!(
                    "SPDK has a controller {:?} that was not made here: choose another ID",
                    name.id()
                ),
            });
        }
        match self.exchange_key(name, Vec::new(), key_of(&object)).await {
            Err(Error::AlreadyExists { .. }) if is_known => Ok(object),
            added => added.map(|()| object),
        }
    }

    /// All fields are connection settings, so they can change only while there is no path.
    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<NvmeRemoteController>,
    ) -> Result<NvmeRemoteController, Error> {
        change.unused_but(name, is_credential)?;
        self.exchange_key(name, key_of(&change.old), key_of(&change.wanted))
            .await?;
        Ok(change.wanted)
    }

    /// The key, whichever it is; it is added again.
    async fn withdraw(
        &self,
        call: &CallContext,
        name: &Name,
        back: &Change<NvmeRemoteController>,
    ) -> Result<(), Error> {
        back.unused_but(name, is_credential)?;
        self.remove(call, name, &back.old).await?;
        self.remove(call, name, &back.wanted).await
    }

    async fn remove(
        &self,
        _: &CallContext,
        name: &Name,
        object: &NvmeRemoteController,
    ) -> Result<(), Error> {
        self.exchange_key(name, key_of(object), Vec::new()).await
    }

    async fn stats(&self, name: &Name, _: &NvmeRemoteController) -> Result<VolumeStats, Error> {
        if !self.is_attached(name) {
            return Ok(VolumeStats::default());
        }
        let id = name.id().to_owned();
        let all = self.spdk.call(async move |spdk| {
            let mut all = Vec::new();
            for namespace in namespaces(spdk, &id)? {
                match bdev::stats(spdk, &namespace.bdev).await {
                    // Race: the namespace was removed while the others were queried.
                    Err(error) if error.errno.0 == errno::ENODEV => {}
                    stats => all.push(stats?),
                }
            }
            Ok::<_, spdk::Error>(all)
        });
        Ok(volume_stats(all.await??))
    }

    fn hide_secrets(object: &mut NvmeRemoteController) {
        if let Some(tcp) = &mut object.tcp {
            tcp.psk.clear();
        }
    }
}

impl NvmeRemoteControllers {
    /// Replaces the key that SPDK's keyring holds for a controller; an empty key means none.
    async fn exchange_key(&self, name: &Name, old: Vec<u8>, new: Vec<u8>) -> Result<(), Error> {
        if old == new {
            return Ok(());
        }
        let name = key_name(name.id());
        let exchanged = self.spdk.call(async move |spdk| {
            if !old.is_empty() {
                match keyring::remove(spdk, &name) {
                    Err(error) if error.errno.0 != errno::ENOKEY => return Err(error),
                    _ => {}
                }
            }
            if new.is_empty() {
                return Ok(());
            }
            let added = keyring::add(spdk, &name, &new);
            added.map_err(|error| match old.is_empty() {
                true => error,
                false => error.after_undo(keyring::add(spdk, &name, &old)),
            })
        });
        Ok(exchanged.await??)
    }
}

fn is_path(controller: &Key, user: &Name) -> bool {
    let inside = user.key().as_str().strip_prefix(controller.as_str());
    inside.is_some_and(|rest| rest.starts_with("/nvmePaths/"))
}

/// Credentials do not depend on how the controller's paths connect.
fn is_credential(user: &Name) -> bool {
    user.key().as_str().contains("/nvmeCredentials/")
}

fn check(object: &NvmeRemoteController, violations: &mut Violations) {
    let (queues, size) = (object.io_queues_count, object.queue_size);
    if !(0..=MAX_QUEUES).contains(&queues) {
        let what = format!("{queues}: 1 to {MAX_QUEUES}, or 0 for SPDK's choice");
        violations.add("io_queues_count", what);
    }
    if size != 0 && !QUEUE_SIZES.contains(&size) {
        let (least, most) = (QUEUE_SIZES.start(), QUEUE_SIZES.end());
        violations.add(
            "queue_size",
            format!("{size}: {least} to {most}, or 0 for SPDK's choice"),
        );
    }
    if let Some(TcpController { psk, .. }) = &object.tcp
        && !psk.is_empty()
        && let Err(reason) = interchange::check_psk(psk)
    {
        violations.add("tcp.psk", reason);
    }
}

/// Returns the name of the controller's key in SPDK's keyring.
pub(super) fn key_name(id: &str) -> String {
    format!("nvmeRemoteControllers/{id}")
}

/// Returns the TLS pre-shared key of the controller; empty for none.
pub(super) fn key_of(object: &NvmeRemoteController) -> Vec<u8> {
    let tcp = object.tcp.as_ref();
    tcp.map(|tcp| tcp.psk.clone()).unwrap_or_default()
}

/// Returns the namespaces of the controller with this ID; none if it has no path.
pub(super) fn namespaces(spdk: spdk::Spdk, id: &str) -> Result<Vec<nvme::Namespace>, spdk::Error> {
    match nvme::namespaces(spdk, id) {
        Err(error) if error.errno.0 == errno::ENODEV => Ok(Vec::new()),
        result => result,
    }
}

/// Translates the errors of an unreachable peer into UNAVAILABLE.
pub(super) fn unreachable(error: spdk::Error) -> Error {
    Error::of(error, |error| match error.errno.0 {
        errno::ETIMEDOUT | errno::EHOSTUNREACH | errno::EIO | errno::ENODEV => {
            Error::Unavailable(error.to_string())
        }
        _ => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_counts_that_nvme_has() {
        let broken = |io_queues_count, queue_size| {
            let mut violations = Violations::default();
            let object = NvmeRemoteController {
                io_queues_count,
                queue_size,
                ..Default::default()
            };
            check(&object, &mut violations);
            violations.to_string()
        };
        assert_eq!(broken(0, 0), "");
        assert_eq!(broken(4, 128), "");
        assert!(broken(-1, 0).starts_with("io_queues_count: -1"));
        assert!(broken(65_536, 0).starts_with("io_queues_count: 65536"));
        assert!(broken(0, 1).starts_with("queue_size: 1: 2 to 65535"));
    }
}
