//! Updates of a LUN that keep its SCSI target number.

use std::collections::BTreeMap;

use super::{Group, Lun, Luns, full, hide, show};
use crate::error::Error;
use crate::health::Replaced;

/// A LUN before and after an update, and the controllers that show each.
struct Replacement {
    old: Lun,
    new: Lun,
    shown: [Option<String>; 2],
}

impl Luns {
    /// Replaces the volume of a LUN, or moves the LUN to another ID. Under the same ID it keeps its SCSI target
    /// number. If the update fails, the old volume is shown again under its number (rollback).
    ///
    /// # Errors
    /// Those of [`add`](Self::add); the LUN is then unchanged.
    pub(in crate::frontend) async fn replace(
        &self,
        [from, to]: [&str; 2],
        id: &str,
        bdev: &str,
        most: usize,
    ) -> Result<(), Error> {
        let Some(Replacement { old, new, shown }) =
            self.begin_replace([from, to], id, bdev, most)?
        else {
            return self.add(to, id, bdev, most).await;
        };
        let [hidden, shown] = shown;
        let (now, then) = (new.clone(), old.clone());
        let replaced = self.spdk.call(async move |spdk| {
            if let Some(controller) = &hidden {
                hide(spdk, controller, &then).await?;
            }
            let made = show(spdk, shown.as_deref(), &now).await;
            let undo = show(spdk, hidden.as_deref(), &then);
            Ok::<_, spdk::Error>(Replaced::by(made, undo).await)
        });
        let replaced = replaced.await.map_err(Error::from);
        let (volume, failed) = match replaced.and_then(|replaced| Ok(replaced?)) {
            Ok(Replaced { now, failed }) => (now.flatten(), failed.map(Error::from)),
            // The old LUN could not be hidden, so it still has its volume.
            Err(error) => (old.volume.clone(), Some(error)),
        };
        let (stays, goes, lun) = match failed {
            None => (to, from, new),
            Some(_) => (from, to, old),
        };
        self.change(stays, |group| {
            group.luns.insert(id.to_owned(), Lun { volume, ..lun });
        });
        if from != to {
            self.forget(goes, id);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Reserves the number of the new LUN; `None` for an unknown LUN.
    #[allow(
        clippy::type_complexity,
        reason = "it is taken apart where it is called"
    )]
    fn begin_replace(
        &self,
        [from, to]: [&str; 2],
        id: &str,
        bdev: &str,
        most: usize,
    ) -> Result<Option<Replacement>, Error> {
        let mut groups = self.groups.lock();
        let shows = |groups: &BTreeMap<String, Group>, id: &str| {
            let is_shown = groups.get(id).is_some_and(|group| group.shown);
            is_shown.then(|| id.to_owned())
        };
        let shown = [shows(&groups, from), shows(&groups, to)];
        let Some(old) = groups
            .get(from)
            .and_then(|group| group.luns.get(id))
            .cloned()
        else {
            return Ok(None);
        };
        if from == to {
            let new = Lun {
                bdev: bdev.to_owned(),
                ..old.clone()
            };
            return Ok(Some(Replacement { old, new, shown }));
        }
        let earlier = old.before.as_ref().filter(|(group, _)| group == to);
        let preferred = earlier.map(|(_, number)| *number);
        let group = groups.entry(to.to_owned()).or_default();
        let taken = group.take(id, bdev, most, preferred);
        let mut new = taken.ok_or_else(|| full(to, most))?;
        new.before = Some((from.to_owned(), old.number));
        Ok(Some(Replacement { old, new, shown }))
    }
}
