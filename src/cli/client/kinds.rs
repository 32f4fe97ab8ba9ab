//! The kinds of objects in the descriptors, and the methods of each. No kind is named here, so a kind added to
//! `proto/` needs no change.

use std::sync::LazyLock;

use prost_reflect::{
    DynamicMessage, FieldDescriptor, MessageDescriptor, MethodDescriptor, ServiceDescriptor, Value,
};

use super::Failure;
use crate::api;

/// A kind of object.
#[derive(Debug)]
pub(super) struct Kind {
    /// The descriptor of its message.
    pub message: MessageDescriptor,
    /// The collections in its names, outermost first: `nvmeSubsystems`, `nvmeNamespaces`.
    pub collections: Vec<String>,
    singular: String,
    methods: Vec<MethodDescriptor>,
}

/// What a method does with a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// Reads one object.
    Get,
    /// Lists the objects.
    List,
    /// Creates an object.
    Create,
    /// Changes an object.
    Update,
    /// Removes an object.
    Delete,
    /// Reads the counters of an object.
    Stats,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Get => "Get",
            Self::List => "List",
            Self::Create => "Create",
            Self::Update => "Update",
            Self::Delete => "Delete",
            Self::Stats => "Stats",
        }
    }
}

impl Kind {
    /// The kind of a message that is a resource and has a service in its package.
    fn of(message: &MessageDescriptor, services: &[ServiceDescriptor]) -> Option<Self> {
        let extension = message
            .parent_pool()
            .get_extension_by_name("google.api.resource")?;
        let options = message.options();
        let resource = options.get_extension(&extension);
        let resource = resource.as_message()?;
        let pattern = text(resource, "pattern")?;
        let parts: Vec<&str> = pattern.split('/').collect();
        let collections: Vec<String> = parts.iter().step_by(2).map(|&one| one.into()).collect();
        let is_of_pairs = parts.len() == 2 * collections.len();
        let services = services
            .iter()
            .filter(|one| one.package_name() == message.package_name());
        let methods = services
            .flat_map(|one| one.methods().collect::<Vec<_>>())
            .filter(|method| !method.is_client_streaming() && !method.is_server_streaming());
        let kind = Self {
            message: message.clone(),
            collections,
            singular: text(resource, "singular").unwrap_or_default(),
            methods: methods.filter(|method| concerns(method, message)).collect(),
        };
        let is_served = [Verb::Get, Verb::List]
            .iter()
            .any(|verb| kind.method(*verb).is_some());
        (is_of_pairs && is_served).then_some(kind)
    }

    /// The last collection, which names the kind on the command line: `nvmeNamespaces`.
    pub fn plural(&self) -> &str {
        self.collections.last().map_or("", String::as_str)
    }

    /// Whether its objects are volumes, which the API names `volumes/ID` whatever their kind. SCSI targets and the like
    /// have such names too.
    pub fn is_volume(&self) -> bool {
        self.plural().ends_with("Volumes")
    }

    /// The method for a verb; `None` if the API has none.
    pub fn method(&self, verb: Verb) -> Option<&MethodDescriptor> {
        let word = verb.word();
        self.methods
            .iter()
            .find(|method| method.name().starts_with(word))
    }

    /// The method for a verb.
    ///
    /// # Errors
    /// [`Failure::Usage`] if the API has none for this kind.
    pub fn needed(&self, verb: Verb) -> Result<&MethodDescriptor, Failure> {
        self.method(verb).ok_or_else(|| {
            let word = verb.word().to_lowercase();
            Failure::Usage(format!("the API has no {word} for {}", self.plural()))
        })
    }

    /// The field of a request that holds the object.
    pub fn object_field(&self, method: &MethodDescriptor) -> Option<FieldDescriptor> {
        let request = method.input();
        let mut fields = request.fields();
        fields.find(|field| field.kind().as_message() == Some(&self.message))
    }

    fn is_called(&self, word: &str) -> bool {
        let names = [self.plural(), self.singular.as_str(), self.message.name()];
        names
            .iter()
            .any(|name| normalized(name) == normalized(word))
    }
}

/// Whether a method handles objects of this message: `CreateNullVolume`, `ListNullVolumes`.
fn concerns(method: &MethodDescriptor, message: &MessageDescriptor) -> bool {
    let verbs = [
        Verb::Get,
        Verb::Create,
        Verb::Update,
        Verb::Delete,
        Verb::Stats,
    ];
    let is_one = verbs
        .iter()
        .any(|verb| method.name().strip_prefix(verb.word()) == Some(message.name()));
    is_one || (method.name().starts_with(Verb::List.word()) && listed(method, message).is_some())
}

/// The field of a list response that holds the objects.
pub(super) fn listed(
    method: &MethodDescriptor,
    message: &MessageDescriptor,
) -> Option<FieldDescriptor> {
    let answer = method.output();
    let mut fields = answer.fields();
    fields.find(|field| field.is_list() && field.kind().as_message() == Some(message))
}

/// A string option, or the first of a repeated one.
fn text(message: &DynamicMessage, field: &str) -> Option<String> {
    let value = message.get_field_by_name(field)?;
    let first = match value.as_ref() {
        Value::List(list) => list.first()?.as_str(),
        other => other.as_str(),
    };
    first.map(str::to_owned)
}

/// Normalizes the spellings of a name: `nullVolumes`, `null_volume`, `null-volumes`, `NullVolume`.
fn normalized(name: &str) -> String {
    let letters = name.chars().filter(|letter| !matches!(letter, '-' | '_'));
    letters.flat_map(char::to_lowercase).collect()
}

/// All kinds, ordered by name.
pub(super) fn all() -> &'static [Kind] {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
        let services: Vec<_> = api::pool().services().collect();
        let messages = api::pool().all_messages();
        let mut kinds: Vec<Kind> = messages
            .filter_map(|message| Kind::of(&message, &services))
            .collect();
        kinds.sort_by(|one, other| one.collections.cmp(&other.collections));
        kinds
    });
    &KINDS
}

/// Finds the kind of a word.
///
/// # Errors
/// [`Failure::Usage`] with the list of kinds.
pub(super) fn find(word: &str) -> Result<&'static Kind, Failure> {
    let found = all().iter().find(|kind| kind.is_called(word));
    found.ok_or_else(|| {
        let known: Vec<&str> = all().iter().map(Kind::plural).collect();
        Failure::Usage(format!("{word:?} is no kind: {}", known.join(", ")))
    })
}

/// Finds the kind whose names have these collections.
pub(super) fn of_collections(collections: &[&str]) -> Option<&'static Kind> {
    all().iter().find(|kind| kind.collections == collections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_the_kinds_of_volumes_and_not_all_that_is_named_so() {
        let volumes = all().iter().filter(|kind| kind.is_volume());
        let volumes: Vec<&str> = volumes.map(Kind::plural).collect();
        let expected = ["aio", "delay", "encrypted", "malloc", "null", "qos"];
        assert_eq!(volumes, expected.map(|kind| format!("{kind}Volumes")));
    }

    #[test]
    fn a_kind_is_known_by_each_way_to_write_its_name() {
        for word in [
            "nvmeNamespaces",
            "nvme_namespace",
            "nvme-namespaces",
            "NvmeNamespace",
            "nvmenamespace",
        ] {
            let kind = find(word).unwrap();
            assert_eq!(kind.collections, ["nvmeSubsystems", "nvmeNamespaces"]);
        }
        let Err(Failure::Usage(told)) = find("nvmeNamespacess") else {
            panic!("it is none")
        };
        assert!(told.contains("nullVolumes, "), "{told}");
    }

    #[test]
    fn every_resource_of_the_api_is_a_kind_with_the_methods_that_it_has() {
        let kind = find("nvmeRemoteNamespaces").unwrap();
        assert!(kind.method(Verb::List).is_some() && kind.method(Verb::Create).is_none());
        // Its name is the prefix of another kind's.
        let remote = find("nvmeRemoteControllers").unwrap();
        let method = |verb| remote.method(verb).unwrap().name().to_owned();
        assert_eq!(method(Verb::Stats), "StatsNvmeRemoteController");
        assert_eq!(method(Verb::List), "ListNvmeRemoteControllers");
        assert!(all().len() >= 15);
    }
}
