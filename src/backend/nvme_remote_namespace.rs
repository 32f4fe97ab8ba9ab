//! NvmeRemoteNamespace: a namespace of a remote controller. The peer adds and removes namespaces, so there are no
//! records of them: each call queries SPDK.

use std::sync::Arc;

use prost_reflect::ReflectMessage;
use spdk::Handle;
use spdk::bdev::nvme;
use uuid::Uuid;

use super::nvme_remote_controller::{NvmeRemoteControllers, namespaces};
use crate::api::storage::NvmeRemoteNamespace;
use crate::error::Error;
use crate::resource::{Collection, Key, List, Meta, Others, Page, paging};

/// The namespaces of all remote controllers.
pub struct NvmeRemoteNamespaces {
    spdk: Handle,
    controllers: Others<NvmeRemoteControllers>,
    meta: Meta,
}

impl NvmeRemoteNamespaces {
    /// Creates the view of the namespaces of these controllers.
    pub fn new(spdk: Handle, controllers: Arc<Collection<NvmeRemoteControllers>>) -> Arc<Self> {
        Arc::new(Self {
            spdk,
            controllers: Others::of(controllers),
            meta: Meta::of(&NvmeRemoteNamespace::default().descriptor()),
        })
    }

    /// Returns the namespace of this name.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a malformed name, NOT_FOUND.
    pub async fn get(&self, name: &str) -> Result<NvmeRemoteNamespace, Error> {
        let name = self.meta.parse("name", name)?;
        let parent = name.parent().ok_or_else(|| Error::not_found(&name))?;
        let all = self.of(&parent).await?;
        let found = all
            .into_iter()
            .find(|namespace| namespace.name == name.key().as_str());
        found.ok_or_else(|| Error::not_found(&name))
    }

    /// Returns one page of the namespaces of a controller, ordered by name.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a bad page size, token or parent, NOT_FOUND if the parent does not exist.
    pub async fn list(&self, request: &List) -> Result<Page<NvmeRemoteNamespace>, Error> {
        let parent = self
            .meta
            .parse_parent(request.parent.as_deref().unwrap_or_default())?;
        let parent = parent.ok_or_else(|| Error::invalid("parent", "is required"))?;
        let size = paging::size(request.page_size)?;
        let after = paging::resume(&request.page_token, &self.meta.prefix(Some(&parent)))?;
        let mut items = self.of(&parent).await?;
        items.retain(|item| {
            request.scope.has(&item.name) && after.as_ref().is_none_or(|last| item.name > *last)
        });
        let more = items.len() > size;
        items.truncate(size);
        let next_page_token = match items.last() {
            Some(last) if more => paging::token(&last.name),
            _ => String::new(),
        };
        Ok(Page {
            items,
            next_page_token,
        })
    }

    /// Returns all namespaces of a controller, ordered by name.
    async fn of(&self, parent: &Key) -> Result<Vec<NvmeRemoteNamespace>, Error> {
        if self.controllers.object(parent).is_none() {
            return Err(Error::not_found(parent));
        }
        let controller = self.controllers.meta().parse("parent", parent.as_str())?;
        if !self.controllers.kind().is_attached(&controller) {
            return Ok(Vec::new());
        }
        let id = controller.id().to_owned();
        let found = self.spdk.call(async move |spdk| namespaces(spdk, &id));
        let mut all: Vec<_> = (found.await??.into_iter())
            .map(|namespace| described(&self.meta, parent, &namespace))
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}

fn described(meta: &Meta, parent: &Key, namespace: &nvme::Namespace) -> NvmeRemoteNamespace {
    let uuid = |bytes: Option<[u8; 16]>| bytes.map(Uuid::from_bytes);
    NvmeRemoteNamespace {
        name: meta.name(Some(parent), &namespace.bdev).to_string(),
        nsid: i32::try_from(namespace.nsid).unwrap_or(i32::MAX),
        nguid: uuid(namespace.nguid)
            .map(|id| id.simple().to_string())
            .unwrap_or_default(),
        eui64: namespace.eui64.map(i64::from_be_bytes).unwrap_or_default(),
        uuid: uuid(namespace.uuid)
            .map(|id| id.to_string())
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_answered_in_the_forms_that_a_namespace_takes() {
        let meta = Meta::of(&NvmeRemoteNamespace::default().descriptor());
        let bytes: [u8; 16] = 0x1b4e_28ba_2fa1_11d2_883f_b9a7_61bd_e3fb_u128.to_be_bytes();
        let namespace = nvme::Namespace {
            bdev: "nvme12n1".into(),
            nsid: 1,
            uuid: Some(bytes),
            nguid: Some(bytes),
            eui64: Some(1_967_554_867_335_598_546_i64.to_be_bytes()),
            over_all_paths: false,
        };
        let seen = described(
            &meta,
            &Key::from("nvmeRemoteControllers/nvme12"),
            &namespace,
        );
        assert_eq!(
            seen.name,
            "nvmeRemoteControllers/nvme12/nvmeRemoteNamespaces/nvme12n1"
        );
        assert_eq!(seen.nguid, "1b4e28ba2fa111d2883fb9a761bde3fb");
        assert_eq!(seen.uuid, "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb");
        assert_eq!(seen.eui64, 1_967_554_867_335_598_546);
    }
}
