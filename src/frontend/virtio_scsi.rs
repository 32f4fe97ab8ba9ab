//! The LUN table shared by the three kinds of virtio-scsi: which volume is which LUN of which controller.
//!
//! ```text
//!   target_name_ref ID ─┬─ virtioScsiTargets/ID      how many LUNs there may be
//!                       └─ virtioScsiControllers/ID  the socket through which they are seen
//!                            ├─ SCSI target 0: LUN 0 = a volume
//!                            └─ SCSI target 1: LUN 0 = a volume ...
//! ```
//!
//! The API does not say which controller shows a target, and clients name a controller where a target is expected. So
//! the two are matched by ID, and either may be created first. Each LUN becomes LUN 0 of a SCSI target of its own,
//! with the next free target number of the controller.
//!
//! Changes to the LUNs of one ID hold its locks shared: they run concurrently, each with its own number. Its target
//! and its controller are changed exclusively.

mod replace;

use std::collections::BTreeMap;

use parking_lot::Mutex;
use spdk::bdev::{self, Presence};
use spdk::vhost::scsi;
use spdk::{Handle, Spdk, errno};

use crate::api::storage::VolumeStats;
use crate::backend::volume_stats;
use crate::error::Error;

/// Maximum number of LUNs of one ID.
pub(super) const MAX_LUNS: usize = scsi::MAX_TARGETS as usize;

/// The LUNs of all IDs.
pub struct Luns {
    spdk: Handle,
    groups: Mutex<Groups>,
}

/// The LUNs by the ID of their target and controller.
type Groups = BTreeMap<String, Group>;

/// The LUNs of one ID.
#[derive(Debug, Default)]
struct Group {
    /// Whether a controller exists.
    shown: bool,
    /// By LUN ID.
    luns: BTreeMap<String, Lun>,
    /// Numbers of LUNs that have moved to another ID, by LUN ID, until the move is durable: no other LUN may get such a
    /// number, since a rollback needs it.
    moving: BTreeMap<String, u8>,
}

#[derive(Debug, Clone)]
struct Lun {
    bdev: String,
    /// The SCSI target number.
    number: u8,
    /// The bdev as it was shown, if a controller exists.
    volume: Option<Presence>,
    /// The previous ID and number of a moved LUN, restored if the move is rolled back.
    before: Option<(String, u8)>,
}

impl Group {
    fn is_unused(&self) -> bool {
        !self.shown && self.luns.is_empty() && self.moving.is_empty()
    }

    /// Takes the number that this LUN had before a move, else the preferred number if it is free, else the lowest free
    /// one; `None` if the group is full.
    fn take(&mut self, id: &str, bdev: &str, most: usize, preferred: Option<u8>) -> Option<Lun> {
        let moving: Vec<u8> = (self.moving.iter())
            .filter(|(other, _)| *other != id)
            .map(|(_, number)| *number)
            .collect();
        let shown = self.luns.values().map(|lun| lun.number);
        let used: Vec<u8> = shown.chain(moving).collect();
        let earlier = self.moving.get(id).copied();
        let number = (earlier.into_iter().chain(preferred))
            .chain(0..scsi::MAX_TARGETS)
            .find(|number| !used.contains(number))?;
        if used.len() >= most {
            return None;
        }
        let lun = Lun {
            bdev: bdev.to_owned(),
            number,
            volume: None,
            before: None,
        };
        self.luns.insert(id.to_owned(), lun.clone());
        Some(lun)
    }

    /// Drops a LUN that could not be shown; one that is being moved keeps its number for the next attempt. After an
    /// unsettled error the LUN stays, since SPDK may show it: its removal has to hide it.
    fn not_shown(&mut self, id: &str, error: &Error) {
        if !error.is_unsettled() {
            self.luns.remove(id);
        }
    }
}

impl Luns {
    /// Creates an empty table.
    pub fn new(spdk: Handle) -> Self {
        Self {
            spdk,
            groups: Mutex::default(),
        }
    }

    /// Returns the number of LUNs of an ID, with those that a rollback may bring back.
    pub(super) fn count(&self, group: &str) -> usize {
        let groups = self.groups.lock();
        let group = groups.get(group);
        group.map_or(0, |group| group.luns.len() + group.moving.len())
    }

    /// Adds a volume to an ID that takes `most` LUNs, and shows it if a controller exists.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if the ID is full, and SPDK's: ENODEV for an unknown volume.
    pub(super) async fn add(
        &self,
        group: &str,
        id: &str,
        bdev: &str,
        most: usize,
    ) -> Result<(), Error> {
        let (lun, shown) = {
            let mut groups = self.groups.lock();
            let entry = groups.entry(group.to_owned()).or_default();
            (entry.take(id, bdev, most, None), entry.shown)
        };
        let lun = lun.ok_or_else(|| full(group, most))?;
        let controller = shown.then(|| group.to_owned());
        let shown = self
            .spdk
            .call(move |spdk| async move { show(spdk, controller.as_deref(), &lun).await });
        match Error::joined(shown.await) {
            Ok(volume) => self.set_volume(group, id, volume),
            Err(error) => {
                self.change(group, |group| group.not_shown(id, &error));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Returns whether the LUN is as recorded: if a controller exists, the LUN is shown and its bdev is not gone.
    pub(super) fn is_there(&self, group: &str, id: &str) -> bool {
        let groups = self.groups.lock();
        let Some(group) = groups.get(group) else {
            return false;
        };
        let lun = group.luns.get(id);
        lun.is_some_and(|lun| {
            let volume = lun.volume.as_ref();
            !group.shown || volume.is_some_and(Presence::is_there)
        })
    }

    /// Returns whether the ID has a LUN of this ID.
    pub(super) fn has(&self, group: &str, id: &str) -> bool {
        self.number(group, id).is_some()
    }

    /// Returns the SCSI target number of a LUN.
    pub(super) fn number(&self, group: &str, id: &str) -> Option<u8> {
        let groups = self.groups.lock();
        groups.get(group)?.luns.get(id).map(|lun| lun.number)
    }

    /// Returns whether the ID has a controller.
    pub(super) fn is_shown(&self, group: &str) -> bool {
        self.groups
            .lock()
            .get(group)
            .is_some_and(|group| group.shown)
    }

    /// Restores a LUN from the store before SPDK has it, with its stored number, or with a free one.
    pub(super) fn restore(&self, group: &str, id: &str, bdev: &str, number: Option<u8>) {
        let mut groups = self.groups.lock();
        let group = groups.entry(group.to_owned()).or_default();
        let is_free = |number: &u8| group.luns.values().all(|lun| lun.number != *number);
        match number.filter(is_free) {
            Some(number) => {
                let volume = None;
                let bdev = bdev.to_owned();
                let before = None;
                let lun = Lun {
                    bdev,
                    number,
                    volume,
                    before,
                };
                group.luns.insert(id.to_owned(), lun);
            }
            None => {
                group.take(id, bdev, MAX_LUNS, None);
            }
        }
    }

    /// Shows a LUN that is not shown, or whose bdev is back. `bdev` is the resolved name: at the restore of the
    /// records, a UUID or an alias could not be resolved yet.
    ///
    /// # Errors
    /// NOT_FOUND while the bdev is missing.
    pub(super) async fn show_again(&self, group: &str, id: &str, bdev: &str) -> Result<(), Error> {
        if self.is_there(group, id) && self.is_shown(group) {
            return Ok(());
        }
        let (lun, shown) = {
            let mut groups = self.groups.lock();
            let group = groups.get_mut(group);
            let shown = group.as_ref().is_some_and(|group| group.shown);
            let lun = group.and_then(|group| group.luns.get_mut(id));
            let lun = lun.map(|lun| {
                bdev.clone_into(&mut lun.bdev);
                lun.clone()
            });
            (lun, shown)
        };
        let Some(lun) = lun else { return Ok(()) };
        let controller = shown.then(|| group.to_owned());
        let shown = self
            .spdk
            .call(async move |spdk| show(spdk, controller.as_deref(), &lun).await);
        if let Some(volume) = shown.await?? {
            self.set_volume(group, id, Some(volume));
        }
        Ok(())
    }

    fn set_volume(&self, group: &str, id: &str, volume: Option<Presence>) {
        self.change(group, |group| {
            if let Some(lun) = group.luns.get_mut(id) {
                lun.volume = volume;
            }
        });
    }

    /// Removes a LUN, or what a failed move of it to this ID may have left there; virtual machines see its disk removed.
    /// Idempotent.
    pub(super) async fn remove(&self, group: &str, id: &str) -> Result<(), Error> {
        let found = replace::found(&self.groups.lock(), group, id);
        if let Some((number, Some(controller))) = found {
            let hidden = (self.spdk).call(async move |spdk| hide(spdk, &controller, number).await);
            Error::joined(hidden.await).inspect_err(|error| {
                if error.is_unsettled() {
                    // It is hidden, or will be: without a volume it is repaired if it stays.
                    self.set_volume(group, id, None);
                }
            })?;
        }
        self.forget(group, id);
        Ok(())
    }

    fn forget(&self, group: &str, id: &str) {
        self.change(group, |group| {
            group.luns.remove(id);
            group.moving.remove(id);
        });
    }

    /// Changes the group of an ID, and drops the group if it is empty afterwards.
    fn change(&self, id: &str, change: impl FnOnce(&mut Group)) {
        change_in(&mut self.groups.lock(), id, change);
    }

    /// Shows all LUNs of a new controller, or none of them. If `tolerant`, LUNs whose volume is missing are shown
    /// later.
    pub(super) async fn attach(&self, controller: &str, tolerant: bool) -> Result<(), Error> {
        let luns: Vec<(String, Lun)> = {
            let groups = self.groups.lock();
            let group = groups.get(controller).into_iter();
            let luns = group.flat_map(|group| group.luns.iter());
            luns.map(|(id, lun)| (id.clone(), lun.clone())).collect()
        };
        let name = controller.to_owned();
        let shown = self
            .spdk
            .call(move |spdk| async move { show_all(spdk, &name, &luns, tolerant).await });
        let volumes = shown.await??;
        self.change(controller, |group| {
            // Set together with the bdevs: from here on a LUN without its bdev counts as lost.
            group.shown = true;
            for (id, volume) in volumes {
                if let Some(lun) = group.luns.get_mut(&id) {
                    lun.volume = volume;
                }
            }
        });
        Ok(())
    }

    /// Records that a controller has been removed, which had no LUNs.
    pub(super) fn detach(&self, controller: &str) {
        self.set_shown(controller, false);
    }

    fn set_shown(&self, controller: &str, shown: bool) {
        self.change(controller, |group| group.shown = shown);
    }

    /// Sums the I/O counters of all LUNs of an ID.
    pub(super) async fn stats(&self, group: &str) -> Result<VolumeStats, Error> {
        let bdevs: Vec<String> = {
            let groups = self.groups.lock();
            let luns = groups
                .get(group)
                .into_iter()
                .flat_map(|group| group.luns.values());
            luns.map(|lun| lun.bdev.clone()).collect()
        };
        let all = self.spdk.call(move |spdk| async move {
            let mut all = Vec::new();
            for bdev in &bdevs {
                match bdev::stats(spdk, bdev).await {
                    // SPDK has removed the bdev.
                    Err(error) if error.errno.0 == errno::ENODEV => {}
                    stats => all.push(stats?),
                }
            }
            Ok::<_, spdk::Error>(all)
        });
        Ok(volume_stats(all.await??))
    }
}

fn change_in(groups: &mut Groups, id: &str, change: impl FnOnce(&mut Group)) {
    let group = groups.entry(id.to_owned()).or_default();
    change(group);
    if group.is_unused() {
        groups.remove(id);
    }
}

fn full(group: &str, most: usize) -> Error {
    Error::ResourceExhausted(format!(
        "target_name_ref: {group:?} has {most} LUNs, which is the most that it takes"
    ))
}

/// Shows a LUN through a controller and watches its bdev; without a controller, only checks that the bdev is usable.
/// The table owns the numbers: a target that has this one is left from a change that was cut off, and is replaced.
async fn show(
    spdk: Spdk,
    controller: Option<&str>,
    lun: &Lun,
) -> Result<Option<Presence>, spdk::Error> {
    let Some(name) = controller else {
        return scsi::check_bdev(spdk, &lun.bdev).map(|()| None);
    };
    hide(spdk, name, lun.number).await?;
    scsi::add_target(spdk, name, Some(lun.number), &lun.bdev).await?;
    bdev::look_after(spdk, &watcher(name, lun.number), &lun.bdev).map(Some)
}

async fn hide(spdk: Spdk, controller: &str, number: u8) -> Result<(), spdk::Error> {
    match scsi::remove_target(spdk, controller, number).await {
        Err(error) if error.errno.0 != errno::ENOENT => return Err(error),
        _ => {}
    }
    bdev::leave(spdk, &watcher(controller, number));
    Ok(())
}

/// Shows these LUNs alone, or none (rollback); if `tolerant`, skips those that fail.
async fn show_all(
    spdk: Spdk,
    controller: &str,
    luns: &[(String, Lun)],
    tolerant: bool,
) -> Result<Vec<(String, Option<Presence>)>, spdk::Error> {
    let is_left = |number: &u8| luns.iter().all(|(_, lun)| lun.number != *number);
    for number in (0..scsi::MAX_TARGETS).filter(is_left) {
        // The controller may be an earlier one, whose removal failed.
        hide(spdk, controller, number).await?;
    }
    let mut volumes = Vec::new();
    for (shown, (id, lun)) in luns.iter().enumerate() {
        match show(spdk, Some(controller), lun).await {
            Ok(volume) => volumes.push((id.clone(), volume)),
            Err(_) if tolerant => volumes.push((id.clone(), None)),
            Err(mut error) => {
                for (_, lun) in &luns[..shown] {
                    error = error.after_undo(hide(spdk, controller, lun.number).await);
                }
                return Err(error);
            }
        }
    }
    Ok(volumes)
}

fn watcher(controller: &str, number: u8) -> String {
    format!("vhost-user-scsi/{controller}/{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lun_has_the_lowest_number_that_is_free() {
        let mut group = Group::default();
        let mut take = |id: &str| {
            group
                .take(id, "volume", MAX_LUNS, None)
                .map(|lun| lun.number)
        };
        assert_eq!(
            [take("a"), take("b"), take("c")],
            [Some(0), Some(1), Some(2)]
        );
        group.luns.remove("b");
        let preferred = |group: &mut Group, id: &str, number| {
            let lun = group.take(id, "volume", MAX_LUNS, Some(number));
            lun.map(|lun| lun.number)
        };
        assert_eq!(preferred(&mut group, "far", 7), Some(7));
        assert_eq!(preferred(&mut group, "b", 7), Some(1), "7 is taken");
        group.luns.remove("b");
        let mut take = |id: &str| {
            group
                .take(id, "volume", MAX_LUNS, None)
                .map(|lun| lun.number)
        };
        assert_eq!([take("d"), take("e")], [Some(1), Some(3)]);
    }

    #[test]
    fn a_lun_that_spdk_may_show_is_kept_for_its_removal() {
        let mut group = Group::default();
        assert!(group.take("a", "volume", MAX_LUNS, None).is_some());
        group.not_shown("a", &spdk::CallError::Panicked.into());
        assert!(group.luns.contains_key("a"));
        group.not_shown("a", &Error::internal("show LUN", "no memory"));
        assert!(group.is_unused());
    }

    #[test]
    fn no_more_luns_are_taken_than_there_may_be() {
        let mut group = Group::default();
        assert!(group.take("a", "volume", 1, None).is_some());
        assert!(group.take("b", "volume", 1, None).is_none());
        for n in 1..MAX_LUNS {
            assert!(
                group
                    .take(&n.to_string(), "volume", MAX_LUNS, None)
                    .is_some()
            );
        }
        assert!(group.take("z", "volume", MAX_LUNS, None).is_none());
        assert_eq!(group.luns.len(), MAX_LUNS);
    }
}
