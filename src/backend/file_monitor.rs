//! Monitors the files of aio volumes, which can be truncated, removed, replaced or extended without SPDK's knowledge.
//! SPDK removes a bdev whose file was emptied on the next I/O to it; the bdev is recreated once the file has its full
//! size.

use std::collections::{HashMap, HashSet};
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use spdk::{CallError, Handle, bdev};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::file_work::directory;
use super::{Claim, FileId, Volumes, file_size};
use crate::api::storage::AioVolume;
use crate::health::{Health, Monitor, Walk};
use crate::resource::{Collection, Key, Name, Shared};

/// Volumes looked up in one step on the reactor.
const AT_ONCE: usize = 64;

/// Timeout for a file system to report on one file.
const SILENCE: Duration = Duration::from_secs(1);

/// Maximum number of probes that may hang in one directory: the other files of that directory are taken for silent too.
const PER_DIRECTORY: usize = 4;

/// Maximum number of probes that may hang: no other file is probed then. A quarter of the runtime's blocking threads.
const IN_ALL: usize = 128;

/// Monitor of the files of all aio volumes.
pub(crate) struct Files {
    spdk: Handle,
    volumes: Arc<Collection<Volumes<AioVolume>>>,
    shared: Arc<Shared>,
    health: Arc<Health>,
    /// Volumes with a fault.
    troubled: HashSet<Name>,
    silent: Silent,
    walk: Walk,
}

impl Files {
    /// Creates the monitor for the files of these volumes.
    pub(crate) fn new(
        spdk: Handle,
        volumes: Arc<Collection<Volumes<AioVolume>>>,
        shared: Arc<Shared>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            spdk,
            volumes,
            shared,
            health,
            troubled: HashSet::new(),
            silent: Silent::default(),
            walk: Walk::default(),
        }
    }

    /// Compares a file with its volume's bdev, and notes or clears the fault.
    fn compare(&mut self, name: &Name, volume: &AioVolume, found: Option<bdev::Info>, seen: &Seen) {
        let file = &volume.filename;
        let fault = match (found, seen) {
            (_, Seen::Unknown) => return,
            (Some(bdev), Seen::Own(size)) => {
                let bytes = bdev.num_blocks.saturating_mul(bdev.block_size.into());
                (*size < bytes).then(|| format!("{file:?} has {size} of its {bytes} bytes"))
            }
            // SPDK still has the old file open, which nobody else finds under this path.
            (Some(_), Seen::Another) => Some(format!(
                "another file is in the place of {file:?}: writes go to the old one, which nobody else finds"
            )),
            (Some(_), Seen::Gone) => Some(format!(
                "{file:?} was removed: writes go to a file that nobody else finds"
            )),
            (Some(_), Seen::Error(error)) => Some(format!("{file:?}: {error}")),
            (None, _) => {
                self.shared.queue.offer(name.key());
                let reason = self.shared.conditions.reason(name.key());
                Some(reason.unwrap_or_else(|| format!("the volume of {file:?} has gone")))
            }
        };
        if fault.is_some() && !self.is_current(name, volume) {
            return;
        }
        if fault.is_some() {
            self.troubled.insert(name.clone());
        } else {
            self.troubled.remove(name);
        }
        let what = fault.clone();
        match (self.health.note(&Key::bdev(name.id()), fault), what) {
            (true, Some(what)) => tracing::warn!(volume = %name, "{what}"),
            (true, None) => tracing::info!(volume = %name, "{file:?} is whole again"),
            (false, _) => {}
        }
    }

    /// Checks all files. An unresponsive file system delays none of the others, and is not probed again until the
    /// pending probe has returned.
    async fn see(&mut self, files: &[(Name, String)]) -> Vec<Seen> {
        self.silent.forget_finished();
        let mut seen = Vec::with_capacity(files.len());
        while let Some((first, file)) = files.get(seen.len()) {
            if let Some(known) = self.silent.instead_of_probe(first, file) {
                seen.push(known);
                continue;
            }
            let answers =
                |(name, file): &&(Name, String)| self.silent.instead_of_probe(name, file).is_none();
            let rest = files.iter().skip(seen.len()).take_while(answers).cloned();
            let rest: Vec<_> = rest.collect();
            let (sender, mut receiver) = unbounded_channel();
            let walk = spawn_blocking(move || {
                for (name, file) in rest {
                    if sender.send(Seen::of(name.id(), &file)).is_err() {
                        return;
                    }
                }
            });
            let before = seen.len();
            loop {
                match timeout(SILENCE, receiver.recv()).await {
                    Ok(Some(found)) => seen.push(found),
                    Ok(None) if seen.len() > before => break,
                    // The blocking task ended without a result.
                    Ok(None) => {
                        seen.push(Seen::silent());
                        break;
                    }
                    Err(_) => {
                        if let Some((name, file)) = files.get(seen.len()) {
                            self.silent.insert(name, file, walk);
                        }
                        seen.push(Seen::silent());
                        break;
                    }
                }
            }
        }
        seen
    }

    /// Returns whether the volume still has this file. Race: it may have been updated or deleted since the check
    /// began.
    fn is_current(&self, name: &Name, volume: &AioVolume) -> bool {
        let current = self.volumes.object(name.key());
        current.is_some_and(|current| current.filename == volume.filename)
    }
}

/// Result of checking the file name of a volume.
enum Seen {
    /// The volume's file, with its size in bytes.
    Own(u64),
    /// Another file has the name.
    Another,
    /// No file has the name.
    Gone,
    /// The file system failed or did not answer in time.
    Error(Error),
    /// Not probed: too many probes hang.
    Unknown,
}

/// Volumes whose file system has not answered yet: each has a probe that hangs, on a thread of its own.
#[derive(Default)]
struct Silent {
    probes: HashMap<Name, (Option<PathBuf>, JoinHandle<()>)>,
}

impl Silent {
    fn insert(&mut self, name: &Name, file: &str, probe: JoinHandle<()>) {
        let directory = directory(file).map(Path::to_owned);
        self.probes.insert(name.clone(), (directory, probe));
    }

    fn forget_finished(&mut self) {
        self.probes.retain(|_, (_, probe)| !probe.is_finished());
    }

    /// Returns what is known of a file that is not to be probed now; `None` for one to be probed.
    fn instead_of_probe(&self, name: &Name, file: &str) -> Option<Seen> {
        if self.probes.contains_key(name) {
            return Some(Seen::silent());
        }
        let place = directory(file);
        let beside = self.probes.values();
        let beside = beside.filter(|(of, _)| of.is_some() && of.as_deref() == place);
        if beside.count() >= PER_DIRECTORY {
            return Some(Seen::silent());
        }
        (self.probes.len() >= IN_ALL).then_some(Seen::Unknown)
    }
}

impl Seen {
    fn silent() -> Self {
        let what = format!("the file system has not answered within {SILENCE:?}");
        Self::Error(Error::new(ErrorKind::TimedOut, what))
    }

    fn of(id: &str, file: &str) -> Self {
        match std::fs::metadata(file) {
            Ok(metadata) if Claim::is_held(id, FileId::of(&metadata)) => match file_size(file) {
                Ok(size) => Self::Own(size),
                Err(error) => Self::Error(error),
            },
            Ok(_) => Self::Another,
            Err(error) if error.kind() == ErrorKind::NotFound => Self::Gone,
            Err(error) => Self::Error(error),
        }
    }
}

impl Monitor for Files {
    async fn check(&mut self) -> Result<(), CallError> {
        let troubled = self.troubled.iter();
        let deleted = troubled.filter(|name| self.volumes.object(name.key()).is_none());
        for name in deleted.cloned().collect::<Vec<_>>() {
            self.troubled.remove(&name);
            self.health.note(&Key::bdev(name.id()), None);
        }
        let (volumes, after) = self.volumes.slice(&self.walk.slice());
        self.walk.go_on(after);
        let files = volumes.iter();
        let files = files.map(|(name, volume)| (name.clone(), volume.filename.clone()));
        let seen = self.see(&files.collect::<Vec<_>>()).await;
        for (some, seen) in volumes.chunks(AT_ONCE).zip(seen.chunks(AT_ONCE)) {
            let ids: Vec<String> = some.iter().map(|(name, _)| name.id().to_owned()).collect();
            let found = self.spdk.call(async move |spdk| {
                let found = ids.iter().map(|id| bdev::lookup(spdk, id).ok().flatten());
                found.collect::<Vec<_>>()
            });
            for (((name, volume), found), seen) in some.iter().zip(found.await?).zip(seen) {
                self.compare(name, volume, found, seen);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_monitor_has_few_threads_hang_in_a_directory_and_a_bounded_number_in_all() {
        let name = |id: &str| Name::new(format!("aioVolumes/{id}"), None);
        let mut silent = Silent::default();
        let hang = |silent: &mut Silent, file: &str| {
            silent.insert(&name(file), file, tokio::spawn(std::future::pending()));
        };
        let probed = |silent: &Silent, file: &str| {
            let known = silent.instead_of_probe(&name(file), file);
            match known {
                None => "probed",
                Some(Seen::Error(_)) => "silent",
                Some(_) => "unknown",
            }
        };
        for at in 0..PER_DIRECTORY {
            assert_eq!(probed(&silent, "/dead/x"), "probed");
            hang(&mut silent, &format!("/dead/{at}"));
        }
        assert_eq!(probed(&silent, "/dead/0"), "silent");
        assert_eq!(probed(&silent, "/dead/x"), "silent");
        assert_eq!(probed(&silent, "/alive/x"), "probed");
        for at in PER_DIRECTORY..IN_ALL {
            assert_eq!(probed(&silent, "/dev/x"), "probed");
            hang(&mut silent, &format!("/dev/{at}"));
        }
        assert_eq!(probed(&silent, "/dev/x"), "unknown");
        assert_eq!(probed(&silent, "/dead/x"), "silent");
        for (_, probe) in silent.probes.values() {
            probe.abort();
        }
        while silent
            .probes
            .values()
            .any(|(_, probe)| !probe.is_finished())
        {
            tokio::task::yield_now().await;
        }
        silent.forget_finished();
        assert_eq!(probed(&silent, "/dead/0"), "probed");
    }
}
