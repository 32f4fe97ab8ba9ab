//! What stands on a volume and goes with it: it is made again once the volume is back.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use spdk::CallError;

use super::Look;
use crate::error::Error;
use crate::resource::{Collection, Kind, Name};

/// A kind whose objects lose with their volume what SPDK made of them.
pub(crate) trait Exported: Kind {
    /// Whether the object still has its volume. Must not cross into SPDK.
    fn is_there(&self, name: &Name, object: &Self::Object) -> bool;

    /// Makes it again in SPDK; `false` while its volume is not back. Its name is locked.
    fn make_again(
        &self,
        name: &Name,
        object: &Self::Object,
    ) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// Looks after all objects of a kind.
pub(crate) struct Exports<K: Exported> {
    objects: Arc<Collection<K>>,
    /// Those that are known to be gone.
    gone: HashSet<Name>,
}

impl<K: Exported> Exports<K> {
    /// These objects.
    pub(crate) fn new(objects: Arc<Collection<K>>) -> Self {
        Self {
            objects,
            gone: HashSet::new(),
        }
    }

    /// Whether it is there again; `None` if nobody wants it any more.
    async fn make_again(&self, name: &Name) -> Option<bool> {
        let made = self.objects.with(name.key().as_str(), async |all, name| {
            match all.object(name.key()) {
                Some(object) if all.kind().is_there(&name, &object) => Ok(Some(true)),
                Some(object) => all.kind().make_again(&name, &object).await.map(Some),
                None => Ok(None),
            }
        });
        match made.await {
            Ok(made) => made,
            Err(Error::NotFound { .. }) => None,
            // Where it fails it is tried again.
            Err(error) => {
                tracing::debug!(object = %name.key(), %error, "it cannot be made again yet");
                Some(false)
            }
        }
    }
}

impl<K: Exported> Look for Exports<K> {
    async fn look(&mut self) -> Result<(), CallError> {
        let mut gone = HashSet::new();
        for (name, object) in self.objects.objects() {
            if self.objects.kind().is_there(&name, &object) {
                continue;
            }
            match self.make_again(&name).await {
                Some(true) => {
                    tracing::info!(object = %name.key(), "its volume is back, and it with that");
                }
                Some(false) => {
                    if !self.gone.contains(&name) {
                        tracing::warn!(object = %name.key(), "its volume has gone, and it with that");
                    }
                    gone.insert(name);
                }
                None => {}
            }
        }
        self.gone = gone;
        Ok(())
    }
}
