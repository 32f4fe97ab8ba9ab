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
