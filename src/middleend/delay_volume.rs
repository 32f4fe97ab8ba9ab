//! DelayVolume: adds latency to another volume, to test how hosts handle a slow device.

use spdk::bdev::delay::{self, Delays};
use spdk::bdev::{self, Presence};
use spdk::{Handle, Spdk, errno};

use crate::api::own::DelayVolume;
use crate::api::storage::VolumeStats;
use crate::backend::{stats_if, volume_at_fault};
use crate::error::{Error, Violations};
use crate::health::{Presences, Replaced};
use crate::resource::volume_ref::VolumeRef;
use crate::resource::{CallContext, Change, Claims, Key, Kind, Name, Stage};

/// The kind.
pub struct DelayVolumes {
    spdk: Handle,
    /// The delay bdev of each object, with its current delays.
    bdevs: Presences,
}

impl DelayVolumes {
    /// Creates the kind for volumes of this SPDK.
    pub fn new(spdk: Handle) -> Self {
        let bdevs = Presences::default();
        Self { spdk, bdevs }
    }
}

impl Kind for DelayVolumes {
    type Object = DelayVolume;

    const STAGE: Stage = Stage::Layer;

    /// Latencies are bounded by `resource::bounds`.
    fn check(&self, object: &DelayVolume, violations: &mut Violations) {
        if let Err(reason) = VolumeRef::parse(&object.volume_name_ref) {
            violations.add("volume_name_ref", reason);
        }
    }

    fn claims(&self, name: &Name, object: &DelayVolume) -> Claims {
        let claims = Claims::new().owns(Key::bdev(name.id()));
        match VolumeRef::parse(&object.volume_name_ref) {
            Ok(volume) => volume.taken_in(claims),
            Err(_) => claims,
        }
    }

    fn volume_ref<'a>(&self, object: &'a DelayVolume) -> Option<&'a str> {
        Some(&object.volume_name_ref)
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        object: DelayVolume,
    ) -> Result<DelayVolume, Error> {
        let is_known = !object.name.is_empty();
        let recipe = Recipe::of(name, &object);
        let made = self.spdk.call(async move |spdk| match is_known {
            true => recipe.adopt_or_make(spdk).await,
            false => recipe.make(spdk).await,
        });
        let bdev = made
            .await?
            .map_err(|error| volume_at_fault("volume_name_ref", &object.volume_name_ref, error))?;
        self.bdevs.note(name, bdev);
        Ok(object)
    }

    /// When its base returns, SPDK recreates the bdev with the delays of its creation, so later changes have to be
    /// applied again.
    fn is_lost(&self, name: &Name, _: &DelayVolume) -> bool {
        !self.bdevs.is_there(name)
    }

    /// Delays can change while the volume is in use; another base requires rebuilding the bdev.
    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<DelayVolume>,
    ) -> Result<DelayVolume, Error> {
        let (old, new) = (
            Recipe::of(name, &change.old),
            Recipe::of(name, &change.wanted),
        );
        let is_rebuilt = old.base != new.base;
        if is_rebuilt {
            change.unused(name)?;
        }
        let changed = self.spdk.call(async move |spdk| {
            if !is_rebuilt {
                return delay::set(spdk, &new.name, new.delays).map(|()| None);
            }
            // Checked before the old bdev is deleted, which could not be recreated without a base.
            if bdev::lookup(spdk, &new.base)?.is_none() {
                let error = spdk::Error::new("delay volume", errno::ENODEV);
                return Err(error.with_detail(format!("there is no bdev {:?}", new.base)));
            }
            old.remove(spdk).await?;
            let made = new.make(spdk).await;
            Ok(Some(Replaced::by(made, old.make(spdk)).await))
        });
        let changed = self.bdevs.settle(name, changed.await?);
        let volume = &change.wanted.volume_name_ref;
        changed.map_err(|error| volume_at_fault("volume_name_ref", volume, error))?;
        Ok(change.wanted)
    }

    /// The bdev over another base; it is made again.
    async fn withdraw(
        &self,
        call: &CallContext,
        name: &Name,
        back: &Change<DelayVolume>,
    ) -> Result<(), Error> {
        if Recipe::of(name, &back.old).base == Recipe::of(name, &back.wanted).base {
            return Ok(());
        }
        back.unused(name)?;
        self.remove(call, name, &back.old).await
    }

    async fn remove(
        &self,
        _: &CallContext,
        name: &Name,
        object: &DelayVolume,
    ) -> Result<(), Error> {
        let recipe = Recipe::of(name, object);
        let removed = self.spdk.call(async move |spdk| recipe.remove(spdk).await);
        removed.await??;
        self.bdevs.forget(name);
        Ok(())
    }

    async fn stats(&self, name: &Name, _: &DelayVolume) -> Result<VolumeStats, Error> {
        stats_if(self.bdevs.is_there(name), &self.spdk, name.id().to_owned()).await
    }
}

/// Parameters of a validated volume's bdev.
struct Recipe {
    name: String,
    base: String,
    delays: Delays,
}

impl Recipe {
    fn of(name: &Name, object: &DelayVolume) -> Self {
        let volume = VolumeRef::parse(&object.volume_name_ref);
        Self {
            name: name.id().to_owned(),
            base: volume
                .map(|volume| volume.bdev().to_owned())
                .unwrap_or_default(),
            delays: delays(object),
        }
    }

    async fn make(&self, spdk: Spdk) -> Result<Presence, spdk::Error> {
        // SPDK matches a returning base by its own name, so aliases are resolved.
        let base = bdev::lookup(spdk, &self.base)?;
        let base = base.map_or_else(|| self.base.clone(), |base| base.name);
        delay::create(spdk, &self.name, &base, self.delays).await?;
        self.watch(spdk)
    }

    /// Adopts a bdev that SPDK has recreated itself, after its base returned.
    async fn adopt_or_make(&self, spdk: Spdk) -> Result<Presence, spdk::Error> {
        match bdev::lookup(spdk, &self.name)? {
            Some(bdev) if bdev.product == delay::PRODUCT => {
                delay::set(spdk, &self.name, self.delays)?;
                self.watch(spdk)
            }
            _ => self.make(spdk).await,
        }
    }

    async fn remove(&self, spdk: Spdk) -> Result<(), spdk::Error> {
        delay::remove(spdk, &self.name).await?;
        bdev::leave(spdk, &self.watcher());
        Ok(())
    }

    fn watch(&self, spdk: Spdk) -> Result<Presence, spdk::Error> {
        bdev::look_after(spdk, &self.watcher(), &self.name)
    }

    fn watcher(&self) -> String {
        format!("delays/{}", self.name)
    }
}

/// The delays of a validated object. The p99 latency is raised to the average where it is lower.
fn delays(object: &DelayVolume) -> Delays {
    let us = |latency: i32| u32::try_from(latency).unwrap_or_default();
    let [avg_read_us, avg_write_us] =
        [object.avg_read_latency_us, object.avg_write_latency_us].map(us);
    Delays {
        avg_read_us,
        p99_read_us: us(object.p99_read_latency_us).max(avg_read_us),
        avg_write_us,
        p99_write_us: us(object.p99_write_latency_us).max(avg_write_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hundredth_io_is_never_faster_than_the_others() {
        let found = delays(&DelayVolume {
            avg_read_latency_us: 5,
            p99_read_latency_us: 7,
            avg_write_latency_us: 9,
            ..DelayVolume::default()
        });
        let expected = Delays {
            avg_read_us: 5,
            p99_read_us: 7,
            avg_write_us: 9,
            p99_write_us: 9,
        };
        assert_eq!(found, expected);
    }
}
