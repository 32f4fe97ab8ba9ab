//! Monitors exports: objects that lose their bdev together with a volume, and are recreated once the volume is back.

use std::sync::Arc;

use spdk::CallError;

use super::Monitor;
use super::walk::Walk;
use crate::resource::{Collection, Kind, Shared};

/// Monitor of all objects of a kind.
pub(crate) struct Exports<K: Kind> {
    objects: Arc<Collection<K>>,
    shared: Arc<Shared>,
    walk: Walk,
}

impl<K: Kind> Exports<K> {
    /// Creates the monitor for these objects.
    pub(crate) fn new(objects: Arc<Collection<K>>, shared: &Arc<Shared>) -> Self {
        let shared = Arc::clone(shared);
        Self {
            objects,
            shared,
            walk: Walk::default(),
        }
    }
}

impl<K: Kind> Monitor for Exports<K> {
    async fn check(&mut self) -> Result<(), CallError> {
        let (lost, after) = self.objects.lost(&self.walk.slice());
        self.walk.go_on(after);
        for key in lost {
            self.shared.queue.offer(&key);
        }
        Ok(())
    }
}
