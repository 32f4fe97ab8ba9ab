//! Names of resources, and the keys that locks and the registry use.

use std::fmt;
use std::sync::Arc;

/// Key of something that one resource owns and others may refer to: a resource's own typed name
/// (`nullVolumes/a`), or an entry in a separate name space (`bdev/a`, `nqn/nqn.2022-09.io.spdk:a`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// Creates the key of a bdev; volumes of all kinds share this name space.
    pub fn bdev(name: &str) -> Self {
        Self::from(format!("bdev/{name}"))
    }

    /// Returns the text of the key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Name of one resource. Displays in the form shown to clients.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    key: Key,
    shown: Arc<str>,
}

impl Name {
    /// Creates a name. `key` is the typed form, unique among all kinds; `shown` is the form shown to clients.
    pub(crate) fn new(key: String, shown: Option<String>) -> Self {
        let key = Key::from(key);
        let shown = shown.map_or_else(|| Arc::clone(&key.0), Arc::from);
        Self { key, shown }
    }

    /// Returns the typed form: `nullVolumes/a`, `nvmeSubsystems/s/nvmeNamespaces/n`.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Returns the form shown to clients.
    pub(super) fn shown(&self) -> &Arc<str> {
        &self.shown
    }

    /// Returns the ID, the last segment.
    pub fn id(&self) -> &str {
        last_of(&self.key.0)
    }

    /// Returns the key of the parent resource.
    pub fn parent(&self) -> Option<Key> {
        let end = self.key.0.rmatch_indices('/').nth(1)?.0;
        Some(Key::from(&self.key.0[..end]))
    }

    /// Returns the ID of the parent.
    pub fn parent_id(&self) -> Option<&str> {
        let end = self.key.0.rmatch_indices('/').nth(1)?.0;
        Some(last_of(&self.key.0[..end]))
    }
}

fn last_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, last)| last)
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_name_knows_its_parent() {
        let name = Name::new("nvmeSubsystems/s/nvmeNamespaces/n".into(), None);
        assert_eq!(name.id(), "n");
        assert_eq!(name.parent(), Some(Key::from("nvmeSubsystems/s")));
        assert_eq!(name.parent_id(), Some("s"));
    }

    #[test]
    fn a_flat_name_is_shown_in_the_form_that_clients_compare_for() {
        let name = Name::new("nullVolumes/a".into(), Some("volumes/a".into()));
        assert_eq!(name.to_string(), "volumes/a");
        assert_eq!(name.key().as_str(), "nullVolumes/a");
        assert_eq!(
            (name.id(), name.parent(), name.parent_id()),
            ("a", None, None)
        );
    }
}
