//! Files under volumes: they are cut off, removed, replaced, and grow again, behind SPDK's back. A volume whose file was
//! emptied is taken away by SPDK as soon as there is I/O to it; it is made again once its file is whole.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::sync::Arc;

use spdk::{CallError, Handle, bdev};

use super::{Health, Look};
use crate::api::storage::AioVolume;
use crate::backend::{Claim, FileId, Volume, Volumes, file_size};
use crate::config;
use crate::configured::aio_volume;
use crate::error::Error;
use crate::resource::{Collection, Key, Name};

/// How many volumes one step of the reactor looks up.
const AT_ONCE: usize = 64;

/// Looks after the files of all aio volumes.
pub(crate) struct Files {
    spdk: Handle,
    volumes: Arc<Collection<Volumes<AioVolume>>>,
    /// Those that the configuration names, which are no objects of the API.
    named: BTreeMap<Name, AioVolume>,
    health: Arc<Health>,
    /// The volumes that there were at the last look.
    known: HashSet<Name>,
}

impl Files {
    /// Files of these volumes, and of those of the configuration.
    pub(crate) fn new(
        spdk: Handle,
        volumes: Arc<Collection<Volumes<AioVolume>>>,
        configured: &[config::Volume],
        health: Arc<Health>,
    ) -> Self {
        Self {
            spdk,
            volumes,
            named: configured.iter().filter_map(aio_volume).collect(),
            health,
            known: HashSet::new(),
        }
    }

    /// Compares a file with its volume, as these are now.
    async fn compare(
        &self,
        name: &Name,
        volume: &AioVolume,
        found: Option<bdev::Info>,
        seen: &Seen,
    ) {
        let file = &volume.filename;
        let trouble = match (found, seen) {
            (Some(bdev), Seen::Own(size)) => {
                let bytes = bdev.num_blocks.saturating_mul(bdev.block_size.into());
                (*size < bytes).then(|| format!("{file:?} has {size} of its {bytes} bytes"))
            }
            // The old file is there still, for the volume alone.
            (Some(_), Seen::Another) => Some(format!(
                "another file is in the place of {file:?}: writes go to the old one, which nobody else finds"
            )),
            (Some(_), Seen::Gone) => Some(format!(
                "{file:?} was removed: writes go to a file that nobody else finds"
            )),
            (Some(_), Seen::Error(error)) => Some(format!("{file:?}: {error}")),
            (None, _) => self.make_again(name).await,
        };
        if trouble.is_some() && !self.is_current(name, volume) {
            return;
        }
        let what = trouble.clone();
        match (self.health.note(&Key::bdev(name.id()), trouble), what) {
            (true, Some(what)) => tracing::warn!(volume = %name, "{what}"),
            (true, None) => tracing::info!(volume = %name, "{file:?} is whole again"),
            (false, _) => {}
        }
    }

    /// Whether the volume still has this file: it may have been changed or deleted meanwhile.
    fn is_current(&self, name: &Name, volume: &AioVolume) -> bool {
        let current = self.volumes.object(name.key());
        self.named.contains_key(name)
            || current.is_some_and(|current| current.filename == volume.filename)
    }

    /// Makes the bdev again, or says why that cannot be done.
    async fn make_again(&self, name: &Name) -> Option<String> {
        let made = async {
            if let Some(volume) = self.named.get(name) {
                return self.volumes.kind().make_again(name, volume).await;
            }
            let made = self.volumes.with(name.key().as_str(), async |all, name| {
                match all.object(name.key()) {
                    Some(volume) => all.kind().make_again(&name, &volume).await,
                    None => Ok(()),
                }
            });
            made.await
        };
        match made.await {
            // It was deleted meanwhile.
            Ok(()) | Err(Error::NotFound { .. }) => None,
            Err(error) => Some(error.to_string()),
        }
    }
}

/// What is found where a volume's file should be.
enum Seen {
    /// The volume's file, of this size.
    Own(u64),
    /// Another file.
    Another,
    /// Nothing.
    Gone,
    /// The file system does not tell.
    Error(std::io::Error),
}

impl Seen {
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

impl Look for Files {
    async fn look(&mut self) -> Result<(), CallError> {
        let mut volumes = self.volumes.objects();
        volumes.extend(self.named.clone());
        let files = volumes.iter();
        let files = files.map(|(name, v)| (name.id().to_owned(), v.filename.clone()));
        let files: Vec<_> = files.collect();
        // Asking a file system may take its time.
        let seen = tokio::task::spawn_blocking(move || {
            let seen = files.iter().map(|(id, file)| Seen::of(id, file));
            seen.collect::<Vec<_>>()
        });
        let Ok(seen) = seen.await else {
            return Ok(());
        };
        let now: HashSet<Name> = volumes.iter().map(|(name, _)| name.clone()).collect();
        for deleted in self.known.difference(&now) {
            self.health.note(&Key::bdev(deleted.id()), None);
        }
        self.known = now;
        for (some, seen) in volumes.chunks(AT_ONCE).zip(seen.chunks(AT_ONCE)) {
            let ids: Vec<String> = some.iter().map(|(name, _)| name.id().to_owned()).collect();
            let found = self.spdk.call(async move |spdk| {
                let found = ids.iter().map(|id| bdev::lookup(spdk, id).ok().flatten());
                found.collect::<Vec<_>>()
            });
            for (((name, volume), found), seen) in some.iter().zip(found.await?).zip(seen) {
                if let (Some(volume), Some(bdev)) = (self.named.get_mut(name), &found) {
                    // The one that is made again must be the same to hosts.
                    volume.complete(bdev);
                }
                self.compare(name, volume, found, seen).await;
            }
        }
        Ok(())
    }
}
