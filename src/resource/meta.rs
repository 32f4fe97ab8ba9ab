//! Names of a kind in the API: of its resources, collections and request fields. Derived from the proto
//! descriptors once for each kind.

use prost_reflect::{DynamicMessage, Kind as FieldKind, MessageDescriptor, Value};

use super::rules::Rules;
use super::{Key, Name};
use crate::error::Error;

/// Collection in which the API shows volumes of all kinds, and resources exported like volumes.
const VOLUMES: &str = "volumes";

/// Names and field rules of one kind.
#[derive(Debug)]
pub struct Meta {
    kind: String,
    field: String,
    collection: String,
    parent: Option<String>,
    shown: String,
    list_needs_parent: bool,
    rules: Rules,
}

impl Meta {
    /// Reads the names and rules from the compiled-in descriptors.
    ///
    /// # Panics
    /// When the descriptors do not describe the message as a resource: at the start of the program, whatever its
    /// input.
    pub fn of(message: &MessageDescriptor) -> Self {
        let kind = message.name().to_owned();
        let resource = option(message, "google.api.resource")
            .unwrap_or_else(|| panic!("{kind} has no google.api.resource option"));
        let pattern = text_of(&resource, "pattern");
        let parts: Vec<&str> = pattern.split('/').collect();
        let (parent, collection, variable) = match parts.as_slice() {
            [collection, variable] => (None, *collection, *variable),
            [parent, _, collection, variable] => {
                (Some((*parent).to_owned()), *collection, *variable)
            }
            _ => panic!("{kind} has the pattern {pattern:?}, which is neither flat nor nested"),
        };
        // A resource pattern with the variable `{volume}` is shown in the collection `volumes`.
        let shown = if variable == "{volume}" {
            VOLUMES
        } else {
            collection
        };
        Self {
            field: request_field(message).unwrap_or_else(|| kind.to_lowercase()),
            list_needs_parent: parent.is_some(),
            collection: collection.to_owned(),
            shown: shown.to_owned(),
            parent,
            rules: Rules::of(message),
            kind,
        }
    }

    /// Returns the name of the kind: `NullVolume`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Returns the field name of the object in requests: `null_volume`.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// Returns the collection in the typed names of its resources: `nullVolumes`.
    pub fn collection(&self) -> &str {
        &self.collection
    }

    /// Returns the rules of its fields.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether resources of this kind have a parent resource.
    pub fn is_nested(&self) -> bool {
        self.parent.is_some()
    }

    /// Whether the List request requires `parent`. Some flat kinds have the field too, where it is ignored: HTTP
    /// paths cannot carry it.
    pub fn list_needs_parent(&self) -> bool {
        self.list_needs_parent
    }

    /// Returns the name of the resource with this ID; nested kinds under `parent`.
    pub fn name(&self, parent: Option<&Key>, id: &str) -> Name {
        match parent {
            Some(parent) => Name::new(format!("{parent}/{}/{id}", self.collection), None),
            None if self.shown == self.collection => {
                Name::new(format!("{}/{id}", self.collection), None)
            }
            None => {
                let shown = format!("{}/{id}", self.shown);
                Name::new(format!("{}/{id}", self.collection), Some(shown))
            }
        }
    }

    /// Returns the common key prefix of all names under `parent`, or of all names of a flat kind.
    pub fn prefix(&self, parent: Option<&Key>) -> String {
        match parent {
            Some(parent) => format!("{parent}/{}/", self.collection),
            None => format!("{}/", self.collection),
        }
    }

    /// Parses a name from the request's `field`, in any accepted form.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when it is empty or not a name of this kind.
    pub fn parse(&self, field: &str, text: &str) -> Result<Name, Error> {
        if text.is_empty() {
            return Err(Error::invalid(
                field,
                format!("is required: {}", self.forms()),
            ));
        }
        let mut parts = text.split('/');
        let parts = [
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ];
        match (parts, &self.parent) {
            ([Some(id), None, ..], None) => Ok(self.name(None, id)),
            ([Some(collection), Some(id), None, ..], None)
                if !id.is_empty()
                    && (collection == self.collection || collection == self.shown) =>
            {
                Ok(self.name(None, id))
            }
            ([Some(over), Some(of), Some(collection), Some(id), None], Some(parent))
                if over == parent
                    && collection == self.collection
                    && !of.is_empty()
                    && !id.is_empty() =>
            {
                Ok(Name::new(text.to_owned(), None))
            }
            _ => Err(Error::invalid(
                field,
                format!(
                    "{text:?} is not the name of a {}: {}",
                    self.kind,
                    self.forms()
                ),
            )),
        }
    }

    /// Parses the parent's name of a nested kind; `None` for flat kinds, whatever the text.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when it is empty or not the name of such a parent.
    pub fn parse_parent(&self, text: &str) -> Result<Option<Key>, Error> {
        let Some(parent) = &self.parent else {
            return Ok(None);
        };
        let id = (text.strip_prefix(parent.as_str())).and_then(|rest| rest.strip_prefix('/'));
        match id {
            Some(id) if !id.is_empty() && !id.contains('/') => Ok(Some(Key::from(text))),
            _ if text.is_empty() => Err(Error::invalid(
                "parent",
                format!("is required: {parent}/ID"),
            )),
            _ => Err(Error::invalid(
                "parent",
                format!(
                    "{text:?} is not the name of a parent of a {}: {parent}/ID",
                    self.kind
                ),
            )),
        }
    }

    fn forms(&self) -> String {
        let (collection, shown) = (&self.collection, &self.shown);
        match &self.parent {
            Some(parent) => format!("{parent}/PARENT/{collection}/ID"),
            None if collection == shown => format!("{collection}/ID or ID"),
            None => format!("{shown}/ID, {collection}/ID or ID"),
        }
    }
}

/// Returns the collections in the names of a message's resources, as stored and as shown to clients; none for a message that
/// is no resource.
pub(super) fn collections(message: &MessageDescriptor) -> Vec<String> {
    let Some(resource) = option(message, "google.api.resource") else {
        return Vec::new();
    };
    let pattern = text_of(&resource, "pattern");
    let stored = pattern.split('/').step_by(2).map(str::to_owned);
    stored.chain([VOLUMES.to_owned()]).collect()
}

/// Returns a message-typed option of a message.
fn option(message: &MessageDescriptor, name: &str) -> Option<DynamicMessage> {
    let extension = message.parent_pool().get_extension_by_name(name)?;
    let options = message.options();
    if !options.has_extension(&extension) {
        return None;
    }
    options.get_extension(&extension).as_message().cloned()
}

/// Returns a string field, or the first item of a repeated one.
fn text_of(message: &DynamicMessage, field: &str) -> String {
    let value = message.get_field_by_name(field);
    let first = match value.as_deref() {
        Some(Value::List(list)) => list.first(),
        other => other,
    };
    first.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Returns the field name of the object in the Create request; `None` if the kind has no Create request.
fn request_field(message: &MessageDescriptor) -> Option<String> {
    let request = format!("{}.Create{}Request", message.package_name(), message.name());
    let request = message.parent_pool().get_message_by_name(&request)?;
    let mut fields = request.fields();
    let field = fields.find(|field| field.kind() == FieldKind::Message(message.clone()))?;
    Some(field.name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::storage::*;
    use prost_reflect::ReflectMessage;

    fn meta<M: ReflectMessage + Default>() -> Meta {
        Meta::of(&M::default().descriptor())
    }

    #[test]
    fn a_volume_is_answered_as_a_volume_and_found_by_every_form_of_its_name() {
        let meta = meta::<NullVolume>();
        for form in ["volumes/a", "nullVolumes/a", "a"] {
            let name = meta.parse("name", form).unwrap();
            assert_eq!(
                (name.to_string().as_str(), name.key().as_str()),
                ("volumes/a", "nullVolumes/a")
            );
        }
        for other in [
            "",
            "aioVolumes/a",
            "volumes/",
            "volumes/a/b",
            "/a",
            "volumes",
        ] {
            let result = meta.parse("name", other);
            // A single segment is always an ID.
            assert_eq!(result.is_ok(), other == "volumes", "{other}");
        }
        assert_eq!((meta.kind(), meta.field()), ("NullVolume", "null_volume"));
    }

    #[test]
    fn all_kinds_are_named_as_clients_expect() {
        let shown = |meta: Meta| meta.name(None, "x").to_string();
        assert_eq!(shown(meta::<AioVolume>()), "volumes/x");
        assert_eq!(shown(meta::<MallocVolume>()), "volumes/x");
        assert_eq!(shown(meta::<QosVolume>()), "volumes/x");
        assert_eq!(shown(meta::<EncryptedVolume>()), "volumes/x");
        assert_eq!(shown(meta::<VirtioBlk>()), "volumes/x");
        assert_eq!(shown(meta::<VirtioScsiController>()), "volumes/x");
        assert_eq!(shown(meta::<VirtioScsiLun>()), "volumes/x");
        assert_eq!(shown(meta::<NvmeSubsystem>()), "nvmeSubsystems/x");
        assert_eq!(
            shown(meta::<NvmeRemoteController>()),
            "nvmeRemoteControllers/x"
        );
    }

    #[test]
    fn a_part_is_found_by_its_full_name_only() {
        let meta = meta::<NvmeNamespace>();
        let full = "nvmeSubsystems/s/nvmeNamespaces/n";
        assert_eq!(meta.parse("name", full).unwrap().to_string(), full);
        assert_eq!(
            meta.parse("name", full).unwrap(),
            meta.name(Some(&"nvmeSubsystems/s".into()), "n")
        );
        for other in [
            "n",
            "nvmeNamespaces/n",
            "nvmeSubsystems//nvmeNamespaces/n",
            "nvmeSubsystems/s/nvmeControllers/n",
        ] {
            assert!(meta.parse("name", other).is_err(), "{other}");
        }
        assert_eq!(
            meta.parse_parent("nvmeSubsystems/s").unwrap(),
            Some("nvmeSubsystems/s".into())
        );
        for other in [
            "",
            "s",
            "nvmeSubsystems/",
            "nvmeSubsystems/s/t",
            "nvmeSubsystemss/s",
        ] {
            assert!(meta.parse_parent(other).is_err(), "{other}");
        }
    }

    #[test]
    fn a_list_needs_a_parent_where_there_are_parents() {
        assert!(!meta::<NullVolume>().list_needs_parent());
        assert!(!meta::<NvmeSubsystem>().list_needs_parent());
        assert!(!meta::<QosVolume>().list_needs_parent());
        assert!(meta::<NvmeNamespace>().list_needs_parent());
        assert!(meta::<NvmeRemoteNamespace>().list_needs_parent());
    }
}
