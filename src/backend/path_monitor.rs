//! Monitors the paths to remote controllers: SPDK reconnects a dropped path itself, without any notification.

use std::collections::BTreeMap;
use std::sync::Arc;

use spdk::bdev::nvme::{self, PathState};
use spdk::{CallError, Handle, Spdk};

use super::NvmeRemoteControllers;
use super::path_address::path_key;
use crate::api::storage::NvmeMultipath;
use crate::events::{Event, EventType, Log};
use crate::health::{Health, Monitor};
use crate::resource::volume_ref::remote_bdevs;
use crate::resource::{Collection, Key};

/// Controllers looked up in one step on the reactor.
const AT_ONCE: usize = 16;

/// Monitor of the paths of all remote controllers.
pub(crate) struct Paths {
    spdk: Handle,
    controllers: Arc<Collection<NvmeRemoteControllers>>,
    health: Arc<Health>,
    events: Arc<Log>,
    /// Paths seen at the last check, by the controller's ID.
    seen: BTreeMap<String, Seen>,
}

/// The paths of one controller and their state.
type Seen = BTreeMap<Key, Seeing>;

/// State of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seeing {
    works: bool,
    /// Number of consecutive checks at which the path was connecting.
    connecting: u32,
    /// Reason of the last failed connect, if known.
    failure: Option<String>,
    /// Reasons logged since the path last worked, to deduplicate the log.
    told: Vec<String>,
}

/// Limit of logged reasons for one outage, in case a peer produces ever new ones.
const REASONS: usize = 4;

impl Seeing {
    fn has_new_reason(&self) -> bool {
        let is_new = |why| !self.told.contains(why) && self.told.len() < REASONS;
        self.failure.as_ref().is_some_and(is_new)
    }

    /// Records that the current reason has been logged; a path that works starts afresh.
    fn tell_reason(&mut self) {
        match &self.failure {
            _ if self.works => self.told.clear(),
            Some(why) if self.has_new_reason() => self.told.push(why.clone()),
            _ => {}
        }
    }
}

/// Checks that a path that worked may spend reconnecting, as during a reset, before it counts as dropped.
const PATIENCE: u32 = 2;

impl Paths {
    /// Creates the monitor for the paths of these controllers.
    pub(crate) fn new(
        spdk: Handle,
        controllers: Arc<Collection<NvmeRemoteControllers>>,
        health: Arc<Health>,
        events: Arc<Log>,
    ) -> Self {
        Self {
            spdk,
            controllers,
            health,
            events,
            seen: BTreeMap::new(),
        }
    }

    /// Records the state of a controller's paths, and logs changes. A controller without paths has no fault.
    fn take(&mut self, id: &str, paths: &[nvme::Path]) {
        let before = self.seen.remove(id).unwrap_or_default();
        let mut now = seen(id, &before, paths);
        for (key, path) in &mut now {
            let works = path.works;
            let what = || {
                let why =
                    (path.failure.as_ref()).map_or_else(String::new, |why| format!(": {why}"));
                format!("{key} has dropped{why}; it is tried again until it is back")
            };
            let news = self.health.note(key, (!works).then(&what));
            let tell = |what, reason: &str| {
                // A path attached through SPDK's own commands is no object of the API: report its controller.
                let path = self.health.object(key).map(|path| path.key().to_string());
                let object = path.unwrap_or_else(|| format!("nvmeRemoteControllers/{id}"));
                self.events.tell(Event::now(what, &object).because(reason));
            };
            match (news, works) {
                (true, false) => {
                    tracing::warn!("{}", what());
                    tell(EventType::PathDown, &what());
                }
                (true, true) => {
                    tracing::info!("{key} is back");
                    tell(EventType::PathUp, &format!("{key} is back"));
                }
                // Still down, but for a new reason.
                (false, false) if path.has_new_reason() => tracing::warn!("{}", what()),
                (false, _) => {}
            }
            path.tell_reason();
        }
        for gone in before.keys().filter(|key| !now.contains_key(*key)) {
            self.health.note(gone, None);
        }
        let lost = !now.is_empty() && now.values().all(|path| !path.works);
        let what = || format!("no path to nvmeRemoteControllers/{id} works");
        if self.health.note(&remote_bdevs(id), lost.then(what)) && lost {
            tracing::warn!("{}: I/O to it fails", what());
        }
        if !now.is_empty() {
            self.seen.insert(id.to_owned(), now);
        }
    }
}

impl Monitor for Paths {
    async fn check(&mut self) -> Result<(), CallError> {
        let controllers = self.controllers.objects();
        for some in controllers.chunks(AT_ONCE) {
            let asked = some.iter().map(|(name, controller)| {
                let over_all = controller.multipath() == NvmeMultipath::Multipath;
                (name.id().to_owned(), over_all)
            });
            let asked: Vec<(String, bool)> = asked.collect();
            let found = self.spdk.call(async move |spdk| {
                let mut found = Vec::with_capacity(asked.len());
                for (id, over_all) in &asked {
                    found.push(paths_of(spdk, id, *over_all).await);
                }
                found
            });
            for ((name, _), paths) in some.iter().zip(found.await?) {
                self.take(name.id(), &paths);
            }
        }
        let known = |id: &String| controllers.iter().any(|(name, _)| name.id() == id);
        let deleted: Vec<String> = (self.seen.keys())
            .filter(|id| !known(id))
            .cloned()
            .collect();
        for id in deleted {
            self.take(&id, &[]);
        }
        Ok(())
    }
}

/// Returns the paths of a controller, after spreading I/O over all of them if `over_all` is set.
async fn paths_of(spdk: Spdk, id: &str, over_all: bool) -> Vec<nvme::Path> {
    let paths = nvme::paths(spdk, id).unwrap_or_default();
    // Namespaces that have appeared since use one path only until the policy is set again.
    if over_all
        && !paths.is_empty()
        && let Err(error) = nvme::use_all_paths(spdk, id).await
    {
        tracing::debug!(controller = id, %error, "I/O is not over all paths");
    }
    paths
}

/// Derives the state of the paths from their previous state. A path seen for the first time worked when it was
/// created. A path that is connecting keeps its state for `PATIENCE` checks, and is not up again before the connect
/// has succeeded. A standby path keeps its state too: SPDK does not retry it before the active one drops.
fn seen(id: &str, before: &Seen, paths: &[nvme::Path]) -> Seen {
    let kept = paths
        .iter()
        .filter(|path| path.state != PathState::Deleting);
    // SPDK would have failed over if the connected path did not work.
    let in_use_works = paths.iter().any(|path| path.state == PathState::Connected);
    kept.filter_map(|path| {
        let key = path_key(id, &path.id()?);
        let was = before.get(&key);
        let connecting = match path.state {
            PathState::Resetting => was.map_or(0, |was| was.connecting) + 1,
            _ => 0,
        };
        let works = match path.state {
            PathState::Connected => true,
            PathState::Standby => in_use_works || was.is_none_or(|was| was.works),
            PathState::Resetting => connecting <= PATIENCE && was.is_none_or(|was| was.works),
            _ => false,
        };
        let seeing = Seeing {
            works,
            connecting,
            failure: path.failure.clone(),
            told: was.map(|was| was.told.clone()).unwrap_or_default(),
        };
        Some((key, seeing))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use spdk::bdev::nvme::PathId;

    #[test]
    fn a_path_that_is_tried_again_has_not_come_back_before_it_is_connected() {
        let id = PathId {
            address: nvme::Address::Tcp {
                ip: [127, 0, 0, 1].into(),
                port: 4420,
            },
            subsystem: "nqn.2022-09.io.spdk:s".into(),
            source: None,
        };
        let key = path_key("r", &id);
        let mut known = Seen::new();
        for (state, works) in [
            (PathState::Resetting, Some(true)),
            (PathState::Connected, Some(true)),
            (PathState::Resetting, Some(true)),
            (PathState::Resetting, Some(true)),
            (PathState::Resetting, Some(false)),
            (PathState::Connected, Some(true)),
            (PathState::Reconnecting, Some(false)),
            (PathState::Resetting, Some(false)),
            (PathState::Failed, Some(false)),
            (PathState::Standby, Some(false)),
            (PathState::Connected, Some(true)),
            (PathState::Standby, Some(true)),
            (PathState::Deleting, None),
        ] {
            let path = nvme::Path {
                address: Some(id.address.clone()),
                subsystem: id.subsystem.clone(),
                source: id.source,
                source_port: 0,
                hostnqn: String::new(),
                cntlid: 1,
                state,
                active: true,
                failure: None,
            };
            known = seen("r", &known, &[path]);
            assert_eq!(known.get(&key).map(|path| path.works), works, "{state:?}");
        }
    }
}
