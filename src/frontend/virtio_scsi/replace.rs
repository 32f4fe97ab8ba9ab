//! Updates of a LUN that keep its SCSI target number.

use super::{Groups, Lun, Luns, change_in, full, hide, show};
use crate::error::Error;
use crate::health::Replaced;

/// How a replacement ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    RolledBack,
    /// SPDK may show the old LUN, the new one, or both.
    Unknown,
}

/// A LUN before and after an update, and the controllers that show each.
struct Replacement {
    old: Lun,
    new: Lun,
    shown: [Option<String>; 2],
}

impl Luns {
    /// Replaces the volume of a LUN, or moves the LUN to another ID. Under the same ID it keeps its SCSI target
    /// number. If the update fails, the old volume is shown again under its number (rollback). Until the move is
    /// [durable](Self::settled) no other LUN gets the number, so that a rollback that follows later has it too.
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
            begin(&mut self.groups.lock(), [from, to], id, bdev, most)?
        else {
            return self.add(to, id, bdev, most).await;
        };
        let [hidden, shown] = shown;
        let (now, then, before) = (new.clone(), old.clone(), old.volume.clone());
        let replaced = self.spdk.call(async move |spdk| {
            if let Some(controller) = &hidden {
                hide(spdk, controller, then.number).await?;
            }
            let made = show(spdk, shown.as_deref(), &now).await;
            let undo = show(spdk, hidden.as_deref(), &then);
            Ok::<_, spdk::Error>(Replaced::by(made, undo).await)
        });
        let (volume, failed) = outcome(Error::joined(replaced.await), before);
        let end = match &failed {
            None => End::Done,
            Some(error) if error.is_unsettled() => End::Unknown,
            Some(_) => End::RolledBack,
        };
        let pair = [old, new].map(|lun| Lun {
            volume: volume.clone(),
            ..lun
        });
        enter(&mut self.groups.lock(), [from, to], id, pair, end);
        failed.map_or(Ok(()), Err)
    }

    /// Releases the number that a LUN had before its last move: the move is durable.
    pub(in crate::frontend) fn settled(&self, id: &str) {
        self.groups.lock().retain(|_, group| {
            group.moving.remove(id);
            !group.is_unused()
        });
    }
}

/// Returns the volume that is shown after a replacement, and why that failed.
fn outcome<T>(
    replaced: Result<Replaced<Option<T>>, Error>,
    before: Option<T>,
) -> (Option<T>, Option<Error>) {
    match replaced {
        Ok(Replaced { now, failed }) => (now.flatten(), failed.map(Error::from)),
        // The old LUN may be hidden, the new one shown: without a volume the old one is repaired.
        Err(error) if error.is_unsettled() => (None, Some(error)),
        // The old LUN could not be hidden, so it still has its volume.
        Err(error) => (before, Some(error)),
    }
}

/// Reserves the number of the new LUN; `None` for an unknown LUN.
fn begin(
    groups: &mut Groups,
    [from, to]: [&str; 2],
    id: &str,
    bdev: &str,
    most: usize,
) -> Result<Option<Replacement>, Error> {
    let shows = |groups: &Groups, id: &str| {
        let is_shown = groups.get(id).is_some_and(|group| group.shown);
        is_shown.then(|| id.to_owned())
    };
    let shown = [shows(groups, from), shows(groups, to)];
    let old = groups.get(from).and_then(|group| group.luns.get(id));
    let Some(old) = old.cloned() else {
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

/// Returns the number of a LUN, or of what a failed move may have left of it, under an ID, and the controller that may show
/// it.
pub(super) fn found(groups: &Groups, to: &str, id: &str) -> Option<(u8, Option<String>)> {
    let group = groups.get(to)?;
    let lun = group.luns.get(id).map(|lun| lun.number);
    let number = lun.or_else(|| group.moving.get(id).copied())?;
    Some((number, group.shown.then(|| to.to_owned())))
}

/// Enters what has become of a replacement: the new LUN, or the old one if it failed. Unless the move was rolled back
/// for certain, the other number stays taken: by a rollback that may follow, or by what SPDK may show.
fn enter(groups: &mut Groups, [from, to]: [&str; 2], id: &str, [old, new]: [Lun; 2], end: End) {
    let (stays, goes, lun, number) = match end {
        End::Done => (to, from, new, old.number),
        _ => (from, to, old, new.number),
    };
    change_in(groups, stays, |group| {
        if end == End::Done {
            // It is back where a rollback would have brought it.
            group.moving.remove(id);
        }
        group.luns.insert(id.to_owned(), lun);
    });
    if from == to {
        return;
    }
    change_in(groups, goes, |group| {
        group.luns.remove(id);
        if end != End::RolledBack {
            group.moving.insert(id.to_owned(), number);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::{Group, MAX_LUNS};
    use super::*;

    #[test]
    fn after_an_unsettled_error_the_old_lun_is_to_be_repaired() {
        let volume = |error| outcome::<u8>(Err(error), Some(1)).0;
        assert_eq!(volume(Error::internal("hide LUN", "timeout")), Some(1));
        assert_eq!(volume(spdk::CallError::Panicked.into()), None);
        assert_eq!(
            volume(Error::internal("hide LUN", "timeout").unsettled()),
            None
        );
    }

    fn number(groups: &Groups, group: &str, id: &str) -> Option<u8> {
        Some(groups.get(group)?.luns.get(id)?.number)
    }

    fn moves(groups: &mut Groups, between: [&str; 2], id: &str, end: End) {
        let begun = begin(groups, between, id, "volume", MAX_LUNS).unwrap();
        let Replacement { old, new, .. } = begun.expect("the LUN is known");
        enter(groups, between, id, [old, new], end);
    }

    #[test]
    fn what_a_failed_move_may_have_left_keeps_its_number_and_is_found() {
        let mut groups = Groups::new();
        for (group, id) in [("a", "0"), ("b", "1")] {
            let group = groups.entry(group.to_owned()).or_default();
            group.take(id, "volume", MAX_LUNS, None).unwrap();
            group.shown = true;
        }
        moves(&mut groups, ["a", "b"], "0", End::RolledBack);
        assert_eq!(found(&groups, "b", "0"), None);
        moves(&mut groups, ["a", "b"], "0", End::Unknown);
        assert_eq!(number(&groups, "a", "0"), Some(0));
        assert_eq!(
            number(&groups, "b", "0"),
            None,
            "no controller shows it anew"
        );
        let left = Some((1, Some("b".to_owned())));
        assert_eq!(found(&groups, "b", "0"), left);
        let group = groups.get_mut("b").unwrap();
        let other = group.take("2", "volume", MAX_LUNS, None).unwrap();
        assert_eq!(other.number, 2);
    }

    #[test]
    fn a_move_that_is_rolled_back_has_its_number_whatever_is_added_meanwhile() {
        let mut groups = Groups::new();
        let take = |groups: &mut Groups, group: &str, id: &str, most| {
            let group: &mut Group = groups.entry(group.to_owned()).or_default();
            group.take(id, "volume", most, None).map(|lun| lun.number)
        };
        assert_eq!(take(&mut groups, "a", "0", MAX_LUNS), Some(0));
        assert_eq!(take(&mut groups, "a", "1", MAX_LUNS), Some(1));
        moves(&mut groups, ["a", "b"], "0", End::Done);
        assert_eq!(number(&groups, "b", "0"), Some(0));
        // The move is not durable yet.
        assert_eq!(take(&mut groups, "a", "2", MAX_LUNS), Some(2));
        assert_eq!(
            take(&mut groups, "a", "3", 3),
            None,
            "room for the rollback"
        );
        // Its rollback fails at first, and succeeds when it is retried.
        moves(&mut groups, ["b", "a"], "0", End::RolledBack);
        assert_eq!(number(&groups, "b", "0"), Some(0));
        assert_eq!(take(&mut groups, "a", "3", MAX_LUNS), Some(3));
        moves(&mut groups, ["b", "a"], "0", End::Done);
        assert_eq!(number(&groups, "a", "0"), Some(0));
        assert!(groups["a"].moving.is_empty());
    }
}
