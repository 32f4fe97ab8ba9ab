//! Aliases of volumes. SPDK finds a bdev by UUID and alias too, and clients use those. An alias is resolved
//! before anything is reserved, so that references, protection in use and counters use one name, that of the
//! bdev.

use std::collections::HashMap;
use std::sync::LazyLock;

use parking_lot::RwLock;
use spdk::{Handle, bdev};
use uuid::Uuid;

use super::{Key, Registry};
use crate::error::Error;

/// Cache of resolved aliases, by alias. One table for the process, as in SPDK.
static MEANT: LazyLock<RwLock<HashMap<String, String>>> = LazyLock::new(RwLock::default);

/// Returns the bdev name that this alias resolved to when it was last looked up.
pub(super) fn meant_by(name: &str) -> Option<String> {
    MEANT.read().get(&normal(name)).cloned()
}

/// Resolves a name in SPDK, unless a resource has this name: names of resources take precedence.
///
/// # Errors
/// SPDK accepts no more calls.
pub(super) async fn learn(spdk: &Handle, registry: &Registry, name: &str) -> Result<(), Error> {
    let key = normal(name);
    if registry.owner(&Key::bdev(name)).is_some() {
        MEANT.write().remove(&key);
        return Ok(());
    }
    let asked = [name.to_owned(), key.clone()];
    let found = spdk.call(async move |spdk| {
        let mut found = asked.iter().map(|name| bdev::own_name(spdk, name));
        found.find_map(|found| found.ok().flatten())
    });
    match found.await? {
        Some(own) if own != name => MEANT.write().insert(key, own),
        _ => MEANT.write().remove(&key),
    };
    Ok(())
}

/// Resolves a UUID from the registry alone, and caches the result: after a start, before SPDK has any bdev.
pub(super) fn recall(registry: &Registry, name: &str) {
    let key = normal(name);
    let Some(volume) = registry.owner(&Key::from(format!("uuid/{key}"))) else {
        return;
    };
    let owned = registry.owned(&volume);
    let bdev = owned
        .iter()
        .find_map(|key| key.as_str().strip_prefix("bdev/"));
    if let Some(bdev) = bdev {
        MEANT.write().insert(key, bdev.to_owned());
    }
}

/// Normalizes a UUID to SPDK's form; returns anything else unchanged.
fn normal(name: &str) -> String {
    match name.len() {
        32 | 36 => Uuid::try_parse(name).map_or_else(|_| name.to_owned(), |uuid| uuid.to_string()),
        _ => name.to_owned(),
    }
}

/// Adds an alias without SPDK, for tests.
#[cfg(test)]
pub(super) fn note(name: &str, own: &str) {
    MEANT.write().insert(normal(name), own.to_owned());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost_reflect::ReflectMessage;

    use super::*;
    use crate::api::storage::NullVolume;
    use crate::resource::{Claims, Meta};

    #[test]
    fn the_uuid_of_a_records_volume_is_known_before_spdk_is_asked() {
        const UUID: &str = "7b4e28ba-2fa1-11d2-883f-b9a761bde3fb";
        let registry = Arc::new(Registry::default());
        recall(&registry, UUID);
        assert_eq!(meant_by(UUID), None);
        let meta = Meta::of(&NullVolume::default().descriptor());
        let name = meta.parse("name", "nullVolumes/recalled").unwrap();
        let claims = Claims::new().owns(Key::bdev("recalled"));
        registry.restore(&name, claims.owns(format!("uuid/{UUID}")));
        recall(&registry, &UUID.replace('-', "").to_uppercase());
        assert_eq!(meant_by(UUID).as_deref(), Some("recalled"));
    }
}
