//! Monitors the files of aio volumes, which can be truncated, removed, replaced or extended without SPDK's knowledge.
//! SPDK removes a bdev whose file was emptied on the next I/O to it; the bdev is recreated once the file has its full
//! size.

use std::collections::{HashMap, HashSet};
use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use spdk::{CallError, Handle, bdev};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::{Claim, FileId, Volumes, file_size};
use crate::api::storage::AioVolume;
use crate::health::{Health, Monitor, Walk};
use crate::resource::{Collection, Key, Name, Shared};

/// Volumes looked up in one step on the reactor.
const AT_ONCE: usize = 64;

/// Timeout for a file system to report on one file.
const SILENCE: Duration = Duration::from_secs(1);

/// Monitor of the files of all aio volumes.
pub(crate) struct Files {
    spdk: Handle,
    volumes: Arc<Collection<Volumes<AioVolume>>>,
    shared: Arc<Shared>,
    health: Arc<Health>,
    /// Volumes with a fault.
    troubled: HashSet<Name>,
    /// Volumes whose file system has not answered yet, and the task that waits for it.
    silent: HashMap<Name, JoinHandle<()>>,
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
            silent: HashMap::new(),
            walk: Walk::default(),
        }
    }

    /// Compares a file with its volume's bdev, and notes or clears the fault.
    fn compare(&mut self, name: &Name, volume: &AioVolume, found: Option<bdev::Info>, seen: &Seen) {
        let file = &volume.filename;
        let fault = match (found, seen) {
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
        self.silent.retain(|_, waiting| !waiting.is_finished());
        let mut seen = Vec::with_capacity(files.len());
        while let Some((first, _)) = files.get(seen.len()) {
            if self.silent.contains_key(first) {
                seen.push(Seen::silent());
                continue;
            }
            let answers = |(name, _): &&(Name, String)| !self.silent.contains_key(name);
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
                        if let Some((name, _)) = files.get(seen.len()) {
                            self.silent.insert(name.clone(), walk);
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
