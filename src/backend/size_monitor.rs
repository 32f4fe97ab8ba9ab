//! Monitors the sizes of remote namespaces, which their peers change. Volumes with records of their own are resized by
//! calls, whose change is the event.

use std::sync::Arc;

use spdk::bdev;
use spdk::{CallError, Handle};

use super::NvmeRemoteControllers;
use crate::events::{Event, EventType};
use crate::health::Monitor;
use crate::resource::{Collection, Key, Others, Shared};

/// Monitor of the namespaces of all remote controllers.
pub(crate) struct Sizes {
    spdk: Handle,
    controllers: Others<NvmeRemoteControllers>,
    shared: Arc<Shared>,
    /// Number of the event of SPDK to read next.
    next: u64,
}

impl Sizes {
    /// Creates the monitor for these controllers.
    pub(crate) fn new(
        spdk: Handle,
        controllers: Arc<Collection<NvmeRemoteControllers>>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            spdk,
            controllers: Others::of(controllers),
            shared,
            next: 0,
        }
    }

    /// Returns the name of the remote namespace that has the bdev.
    fn namespace(&self, bdev: &str) -> Option<String> {
        if self.shared.registry.owner(&Key::bdev(bdev)).is_some() {
            return None;
        }
        let (id, _) = bdev.rsplit_once('n')?;
        let controller = Key::from(format!("nvmeRemoteControllers/{id}"));
        self.controllers.object(&controller)?;
        Some(format!("{controller}/nvmeRemoteNamespaces/{bdev}"))
    }
}

impl Monitor for Sizes {
    async fn check(&mut self) -> Result<(), CallError> {
        if self.controllers.is_empty() {
            return Ok(());
        }
        let next = self.next;
        let found = self.spdk.call(async move |spdk| bdev::resized(spdk, next));
        let bdev::Resized { bdevs, next } = found.await?;
        self.next = next;
        for (bdev, size) in bdevs {
            let Some(object) = self.namespace(&bdev) else {
                continue;
            };
            tracing::info!(
                volume = object,
                size_bytes = size,
                "remote namespace resized by its peer"
            );
            let mut event = Event::now(EventType::VolumeResized, &object);
            event.size_bytes = i64::try_from(size).unwrap_or(i64::MAX);
            self.shared.events.tell(event);
        }
        Ok(())
    }
}
