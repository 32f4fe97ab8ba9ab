//! QosVolume: limits another volume. It holds no data: its name is an alias of the volume below, and the limits apply
//! to every name of that volume.

use spdk::bdev::{self, alias, qos};
use spdk::{Handle, Spdk, errno};

use super::limits;
use crate::api::storage::{Limits, QosVolume, VolumeStats};
use crate::backend::{stats_of, volume_at_fault};
use crate::error::{Error, Violations};
use crate::health::{Presences, Replaced};
use crate::resource::volume_ref::VolumeRef;
use crate::resource::{CallContext, Change, Claims, Key, Kind, Name, Stage};

/// The kind.
pub struct QosVolumes {
    spdk: Handle,
    /// The limited volume of each object.
    volumes: Presences,
}

impl QosVolumes {
    /// Creates the kind for volumes of this SPDK.
    pub fn new(spdk: Handle) -> Self {
        Self {
            spdk,
            volumes: Presences::default(),
        }
    }

    /// Limits a volume that has no limits yet.
    async fn apply(&self, name: &Name, object: &QosVolume) -> Result<(), Error> {
        let (base, limits, alias) = (base(object), max(object), name.id().to_owned());
        let limited = self
            .spdk
            .call(move |spdk| async move { limit(spdk, &base, &alias, limits).await });
        let limited = limited.await?;
        let volume = limited
            .map_err(|error| volume_at_fault("volume_name_ref", &object.volume_name_ref, error))?;
        self.volumes.note(name, volume);
        Ok(())
    }
}

impl Kind for QosVolumes {
    type Object = QosVolume;

    const STAGE: Stage = Stage::Layer;

    fn check(&self, object: &QosVolume, violations: &mut Violations) {
        check(object, violations);
    }

    fn claims(&self, name: &Name, object: &QosVolume) -> Claims {
        let own = Key::bdev(name.id());
        match VolumeRef::parse(&object.volume_name_ref) {
            Ok(volume) => volume
                .shared_in(Claims::new())
                .owns(limits::key(volume.bdev()))
                .owns(limits::key(name.id()))
                .owns_alias(own, Key::bdev(volume.bdev())),
            Err(_) => Claims::new().owns(own),
        }
    }

    fn volume_ref<'a>(&self, object: &'a QosVolume) -> Option<&'a str> {
        Some(&object.volume_name_ref)
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        object: QosVolume,
    ) -> Result<QosVolume, Error> {
        let is_known = !object.name.is_empty();
        if !is_known || self.is_lost(name, &object) {
            self.apply(name, &object).await?;
            return Ok(object);
        }
        let (base, limits) = (base(&object), max(&object));
        let repaired = self
            .spdk
            .call(async move |spdk| qos::ensure(spdk, &base, limits).await);
        let volume = &object.volume_name_ref;
        let repaired = repaired.await?;
        repaired.map_err(|error| volume_at_fault("volume_name_ref", volume, error))?;
        Ok(object)
    }

    /// Limits and alias of the other volume; nobody uses the alias then.
    async fn withdraw(
        &self,
        call: &CallContext,
        name: &Name,
        back: &Change<QosVolume>,
    ) -> Result<(), Error> {
        match base(&back.old) == base(&back.wanted) {
            true => Ok(()),
            false => self.remove(call, name, &back.old).await,
        }
    }

    /// The limits and the alias disappear with the volume below.
    fn is_lost(&self, name: &Name, _: &QosVolume) -> bool {
        !self.volumes.is_there(name)
    }

    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<QosVolume>,
    ) -> Result<QosVolume, Error> {
        let (from, to) = (base(&change.old), base(&change.wanted));
        let (before, after) = (max(&change.old), max(&change.wanted));
        if from != to {
            change.unused(name)?;
        }
        let alias = name.id().to_owned();
        if from == to && !self.volumes.is_there(name) {
            // The volume has returned, without its limits.
            self.apply(name, &change.wanted).await?;
            return Ok(change.wanted);
        }
        let changed = self.spdk.call(move |spdk| async move {
            if from == to {
                return qos::set(spdk, &to, after).await.map(|()| None);
            }
            lift(spdk, &from, &alias).await?;
            let limited = limit(spdk, &to, &alias, after).await;
            let undo = limit(spdk, &from, &alias, before);
            Ok(Some(Replaced::by(limited, undo).await))
        });
        let changed = self.volumes.settle(name, changed.await?);
        let volume = &change.wanted.volume_name_ref;
        changed.map_err(|error| volume_at_fault("volume_name_ref", volume, error))?;
        Ok(change.wanted)
    }

    async fn remove(&self, _: &CallContext, name: &Name, object: &QosVolume) -> Result<(), Error> {
        let (base, alias) = (base(object), name.id().to_owned());
        let lifted = self
            .spdk
            .call(move |spdk| async move { lift(spdk, &base, &alias).await });
        lifted.await??;
        self.volumes.forget(name);
        Ok(())
    }

    /// The counters of the volume below, over all of its names.
    async fn stats(&self, _: &Name, object: &QosVolume) -> Result<VolumeStats, Error> {
        stats_of(&self.spdk, base(object)).await
    }
}

fn check(object: &QosVolume, violations: &mut Violations) {
    if let Err(reason) = VolumeRef::parse(&object.volume_name_ref) {
        violations.add("volume_name_ref", reason);
    }
    let Some(Limits { min, max }) = &object.limits else {
        return;
    };
    if let Some(min) = min {
        limits::check_no_minimum(min, "limits.min", violations);
    }
    match max {
        Some(max) if !limits::is_none(max) => limits::check(max, "limits.max", violations),
        _ => violations.add("limits.max", "limits nothing: set one of its fields"),
    }
}

/// The bdev below a validated object.
fn base(object: &QosVolume) -> String {
    let volume = VolumeRef::parse(&object.volume_name_ref);
    volume
        .map(|volume| volume.bdev().to_owned())
        .unwrap_or_default()
}

fn max(object: &QosVolume) -> qos::Limits {
    let max = object.limits.as_ref().and_then(|limits| limits.max);
    limits::of(&max.unwrap_or_default())
}

/// Limits a bdev and adds the alias.
async fn limit(
    spdk: Spdk,
    base: &str,
    alias: &str,
    limits: qos::Limits,
) -> Result<bdev::Presence, spdk::Error> {
    const OPERATION: &str = "limit volume";
    if let Some(info) = bdev::lookup(spdk, base)?
        && info.name != base
    {
        let what = format!(
            "{base:?} is another name of the volume {:?}: refer to that",
            info.name
        );
        return Err(spdk::Error::new(OPERATION, errno::EBUSY).with_detail(what));
    }
    alias::add(spdk, base, alias)?;
    match qos::set(spdk, base, limits).await {
        Err(error) => Err(error.after_undo(alias::remove(spdk, alias))),
        Ok(()) => bdev::look_after(spdk, &watcher(alias), base),
    }
}

/// Removes limits and alias. A volume that has disappeared has neither.
async fn lift(spdk: Spdk, base: &str, alias: &str) -> Result<(), spdk::Error> {
    let gone = |error: &spdk::Error| [errno::ENODEV, errno::ENOENT].contains(&error.errno.0);
    match qos::set(spdk, base, qos::Limits::default()).await {
        Err(error) if !gone(&error) => return Err(error),
        _ => {}
    }
    bdev::leave(spdk, &watcher(alias));
    match alias::remove(spdk, alias) {
        Err(error) if gone(&error) => Ok(()),
        result => result,
    }
}

fn watcher(alias: &str) -> String {
    format!("limits/{alias}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::storage::QosLimit;

    #[test]
    fn a_limit_is_needed_and_must_be_one_that_spdk_has() {
        let broken = |min: Option<QosLimit>, max: Option<QosLimit>| {
            let mut violations = Violations::default();
            let object = QosVolume {
                volume_name_ref: "volumes/a".into(),
                limits: Some(Limits { min, max }),
                ..Default::default()
            };
            check(&object, &mut violations);
            violations.to_string()
        };
        let two = QosLimit {
            rw_bandwidth_mbs: 2,
            ..Default::default()
        };
        assert_eq!(broken(None, Some(two)), "");
        assert_eq!(broken(Some(QosLimit::default()), Some(two)), "");
        assert!(broken(None, None).starts_with("limits.max: limits nothing"));
        assert!(broken(Some(two), Some(two)).starts_with("limits.min.rw_bandwidth_mbs: 2: SPDK"));
    }
}
