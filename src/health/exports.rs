//! Namespaces whose volume has gone, and they with it: hosts see them again once the volume is back.

use std::collections::HashSet;
use std::sync::Arc;

use spdk::CallError;

use super::Look;
use crate::frontend::NvmeNamespaces;
use crate::resource::{Collection, Name};

/// Looks after all namespaces.
pub(crate) struct Exports {
    namespaces: Arc<Collection<NvmeNamespaces>>,
    /// Those that are known to be gone.
    gone: HashSet<Name>,
}

impl Exports {
    /// These namespaces.
    pub(crate) fn new(namespaces: Arc<Collection<NvmeNamespaces>>) -> Self {
        Self {
            namespaces,
            gone: HashSet::new(),
        }
    }

    /// Whether hosts see the namespace again.
    async fn show_again(&self, name: &Name) -> bool {
        let shown = self
            .namespaces
            .with(name.key().as_str(), async |all, name| {
                match all.object(name.key()) {
                    Some(object) => all.kind().show_again(&name, &object).await,
                    None => Ok(false),
                }
            });
        // Where it fails it is tried again.
        shown.await.unwrap_or(false)
    }
}

impl Look for Exports {
    async fn look(&mut self) -> Result<(), CallError> {
        let mut gone = HashSet::new();
        for (name, namespace) in self.namespaces.objects() {
            if self.namespaces.kind().is_there(&name) {
                continue;
            }
            let volume = namespace.spec.unwrap_or_default().volume_name_ref;
            if !self.gone.contains(&name) {
                tracing::warn!(namespace = %name, volume, "the volume has gone: hosts do not see the namespace");
            }
            if self.show_again(&name).await {
                tracing::info!(namespace = %name, volume, "the volume is back: hosts see the namespace again");
            } else {
                gone.insert(name);
            }
        }
        self.gone = gone;
        Ok(())
    }
}
