//! Names of resources in errors.

use std::fmt;

use crate::api;
use crate::resource::{Key, Name};

/// Prefixes of resource types: the package of the kind's message.
const PUBLISHED: &str = "opi_api.storage.v1";
const OWN: &str = "opi_spdk.v1";

/// A resource, or another named thing. Several kinds have names `volumes/ID`, so for these the kind is shown too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    name: String,
    kind: Option<String>,
}

impl Subject {
    /// The name without the kind.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type in google.rpc's form; empty if it is no resource.
    pub fn resource_type(&self) -> String {
        let Some(kind) = &self.kind else {
            return String::new();
        };
        let own = api::pool().get_message_by_name(&format!("{OWN}.{kind}"));
        format!("{}/{kind}", if own.is_some() { OWN } else { PUBLISHED })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.kind {
            Some(kind) if self.name.starts_with("volumes/") => write!(f, " ({kind})"),
            _ => Ok(()),
        }
    }
}

/// The kind of a typed name: `QosVolume` for `qosVolumes/a`.
fn kind_of(key: &Key) -> Option<String> {
    let collection = key.as_str().rsplit('/').nth(1)?.strip_suffix('s')?;
    let mut letters = collection.chars();
    let first = letters.next()?.to_ascii_uppercase();
    Some(std::iter::once(first).chain(letters).collect())
}

impl From<&Name> for Subject {
    fn from(name: &Name) -> Self {
        Self {
            name: name.to_string(),
            kind: kind_of(name.key()),
        }
    }
}

impl From<&Key> for Subject {
    fn from(key: &Key) -> Self {
        Self {
            name: key.to_string(),
            kind: kind_of(key),
        }
    }
}

impl From<String> for Subject {
    fn from(name: String) -> Self {
        Self { name, kind: None }
    }
}

impl From<&str> for Subject {
    fn from(name: &str) -> Self {
        Self::from(name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_called_a_volume_is_told_with_its_kind() {
        let limits = Name::new("qosVolumes/lim".into(), Some("volumes/lim".into()));
        let subject = Subject::from(&limits);
        assert_eq!(subject.to_string(), "volumes/lim (QosVolume)");
        assert_eq!(subject.name(), "volumes/lim");
        assert_eq!(subject.resource_type(), "opi_api.storage.v1/QosVolume");
        let nested = Key::from("nvmeSubsystems/s/nvmeNamespaces/n");
        let subject = Subject::from(&nested);
        assert_eq!(subject.to_string(), nested.as_str());
        assert_eq!(subject.resource_type(), "opi_api.storage.v1/NvmeNamespace");
        let own = Subject::from(&Key::from("delayVolumes/d"));
        assert_eq!(own.resource_type(), "opi_spdk.v1/DelayVolume");
        assert_eq!(Subject::from("a file").resource_type(), "");
    }
}
