//! The other names of volumes. SPDK finds a bdev by its UUID and by aliases, too, and clients use those:
//! what such a name means is asked before anything is reserved, so that references, protection in use
//! and counters go by one name, the bdev's own.

use std::collections::HashMap;
use std::sync::LazyLock;

use parking_lot::RwLock;
use spdk::{Handle, bdev};
use uuid::Uuid;

use super::{Key, Registry};
use crate::error::Error;

/// The bdevs that these names meant when they were last asked for. One table for the process, like
/// SPDK's own.
static MEANT: LazyLock<RwLock<HashMap<String, String>>> = LazyLock::new(RwLock::default);

/// The bdev that is meant by a name that is not the name of a bdev itself, as far as was learnt.
pub(super) fn meant_by(name: &str) -> Option<String> {
    MEANT.read().get(&normal(name)).cloned()
}

/// Asks SPDK what this name means, unless a resource is called so: our own names come first.
///
/// # Errors
/// SPDK takes no more calls.
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

/// Notes which of the records' volumes has this UUID, if one has: after a start, before SPDK has any.
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

/// A UUID in the form that SPDK has; anything else as it is.
fn normal(name: &str) -> String {
    match name.len() {
        32 | 36 => Uuid::try_parse(name).map_or_else(|_| name.to_owned(), |uuid| uuid.to_string()),
        _ => name.to_owned(),
    }
}

/// For tests of what goes by these names.
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
