//! Replaces bdevs, with a trial where the data of the old one cannot be brought back.

use spdk::{Spdk, bdev, errno};

use super::{Recipe, make, remove};

/// Makes a bdev like the one to be, and removes it again: what it was.
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

/// Replaces a bdev that nobody uses by another one. Memory may have gone to others since the change was foreseen, so
/// it is tried once more before the old bdev is removed. If the new one cannot be created all the same, the old bdev
/// is recreated (an empty one where its data was in memory, which the error says), unless that fails too: the record
/// then stays, for another change or a delete.
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
