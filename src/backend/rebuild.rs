//! Replaces bdevs, with a trial creation where the old bdev's data cannot be restored.

use spdk::{Spdk, bdev, errno};

use super::{Recipe, Volume, Volumes, make, release, remove};
use crate::error::Error;
use crate::resource::Name;

impl<V: Volume> Volumes<V> {
    /// Deletes whichever bdev a rebuild that was cut off has left, by its name: its UUID may be the old or the new one.
    /// Its data is in its file.
    pub(super) async fn remove_cut_off(&self, name: &Name) -> Result<(), Error> {
        if !self.cut_off.lock().contains_key(name.key()) {
            return Ok(());
        }
        let id = name.id().to_owned();
        let removed = (self.spdk).call(async move |spdk| remove(spdk, &id).await);
        removed.await??;
        let held = self.cut_off.lock().remove(name.key());
        release(name, held).await;
        Ok(())
    }
}

/// Creates a bdev like the new one under the trial name, removes it again, and returns its description.
pub(super) async fn try_out<R: Recipe>(
    spdk: Spdk,
    new: &R,
    trial: &R,
) -> Result<bdev::Info, spdk::Error> {
    let made = make(spdk, trial).await.map_err(|mut error| {
        let named = |detail: String| detail.replace(trial.name(), new.name());
        error.detail = error.detail.map(named);
        error
    })?;
    remove(spdk, trial.name()).await?;
    Ok(made)
}

/// Replaces an unused bdev. Memory may have been allocated elsewhere since the change was foreseen, so the trial is
/// repeated before the old bdev is removed. If the new bdev still cannot be created, the old one is recreated
/// (rollback); its data is lost if it was in memory, which the error says. If the rollback fails too, the record stays
/// for another update or a delete.
pub(super) async fn rebuild<R: Recipe>(
    spdk: Spdk,
    old: Option<&R>,
    new: &R,
) -> Result<bdev::Info, spdk::Error> {
    let trial = new.trial();
    if let Some(trial) = &trial {
        try_out(spdk, new, trial).await?;
    }
    remove(spdk, new.name()).await?;
    let error = match make(spdk, new).await {
        Ok(made) => return Ok(made),
        Err(error) => error,
    };
    match old {
        Some(old) => match old.make(spdk).await {
            Ok(()) if trial.is_some() => {
                let what = error.detail.as_deref().unwrap_or("it cannot be created");
                let what = format!("{what}; the volume is as it was, and empty: its data is lost");
                Err(error.clone().with_detail(what))
            }
            undone => Err(error.after_undo(undone)),
        },
        None => Err(error.after_undo(Err::<(), _>(gone(new.name())))),
    }
}

pub(super) fn gone(name: &str) -> spdk::Error {
    spdk::Error::new("look up bdev", errno::ENODEV).with_detail(format!("bdev {name:?} has gone"))
}
