//! The role that each method of the API requires, from the descriptors.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, ReflectMessage,
    Value,
};

use super::policy::Role;
use crate::api;

/// Fields that admit hosts or hold keys: message and field.
const KEYS: [(&str, &str); 4] = [
    ("EncryptedVolume", "key"),
    ("NvmeSubsystemSpec", "hostnqn"),
    ("NvmeSubsystemSpec", "psk"),
    ("TcpController", "psk"),
];

/// Methods that admit hosts or take them away whatever their fields are. A subsystem without `hostnqn` and NvmeHosts admits
/// every host, so each creation admits hosts; a deletion removes hosts and keys, which a client could then replace.
const OF_HOSTS: [&str; 2] = ["CreateNvmeSubsystem", "DeleteNvmeSubsystem"];

/// Updates that create a missing object (`allow_missing`) of a kind in [`OF_HOSTS`].
const CREATING_UPDATE: &str = "UpdateNvmeSubsystem";

/// Kinds whose objects reach beyond the API: files of the machine, addresses in its network, hosts of all clients.
const BEYOND: [&str; 3] = ["AioVolume", "NvmePath", "DiscoveryReferral"];

/// The method about the machine, which belongs to no tenant. It ignores the name in its request.
const OF_MACHINE: &str = "GetInventory";

/// A method.
pub(super) struct Method {
    /// Short name: `CreateNullVolume`.
    pub name: String,
    /// The role that it requires.
    pub needs: Role,
    /// Its request message.
    pub input: MessageDescriptor,
    /// The response message and its field of objects, for a list.
    pub listed: Option<(MessageDescriptor, FieldDescriptor)>,
    /// Whether its answer is a stream, which is of all objects.
    pub streams: bool,
    /// Whether it creates an object.
    pub creates: bool,
    /// Whether it creates or changes an object of a kind in [`BEYOND`].
    pub reaches_beyond: bool,
    /// Whether it is about no object, whatever its request names.
    pub is_of_machine: bool,
    /// Paths of the [`KEYS`] in the request's object.
    keys: Vec<String>,
}

static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(|| {
    let services = api::pool().services();
    let methods = services.flat_map(|service| service.methods().collect::<Vec<_>>());
    methods
        .map(|method| {
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            (path, Method::new(&method))
        })
        .collect()
});

/// Finds a method by its gRPC path.
pub(super) fn find(path: &str) -> Option<&'static Method> {
    METHODS.get(path)
}

impl Method {
    fn new(method: &MethodDescriptor) -> Self {
        let verb = method.name();
        let reads = api::is_read(method);
        let is_of_hosts = ["Host", "Credential", "NamespaceMask"]
            .iter()
            .any(|kind| verb.ends_with(kind))
            || OF_HOSTS.contains(&verb);
        let needs = match (reads, is_of_hosts) {
            (true, _) => Role::Viewer,
            (false, true) => Role::Admin,
            (false, false) => Role::Operator,
        };
        let (input, output) = (method.input(), method.output());
        let listed = output.fields().find(|field| {
            let named = |message: &MessageDescriptor| message.get_field_by_name("name").is_some();
            field.is_list() && field.kind().as_message().is_some_and(named)
        });
        let listed = listed.filter(|_| verb.starts_with("List") && !method.is_server_streaming());
        let mut keys = Vec::new();
        if let Some(object) = object_type(&input) {
            paths_of_keys(&object, "", &mut keys);
        }
        Self {
            name: verb.to_owned(),
            needs,
            input,
            listed: listed.map(|field| (output, field)),
            streams: method.is_server_streaming(),
            creates: verb.starts_with("Create"),
            reaches_beyond: !reads && BEYOND.iter().any(|kind| verb.ends_with(kind)),
            is_of_machine: verb == OF_MACHINE,
            keys,
        }
    }

    /// Whether a request sets or removes a key or a host, or may create an object that admits hosts.
    pub fn touches_keys(&self, request: &DynamicMessage) -> bool {
        let masked = request
            .get_field_by_name("update_mask")
            .is_some_and(|mask| {
                let paths = mask
                    .as_message()
                    .and_then(|mask| mask.get_field_by_name("paths"));
                let paths = paths
                    .as_deref()
                    .and_then(Value::as_list)
                    .unwrap_or_default();
                let mut paths = paths.iter().filter_map(Value::as_str);
                paths.any(|path| path == "*" || self.keys.iter().any(|key| overlap(path, key)))
            });
        let creates = self.name == CREATING_UPDATE
            && request
                .get_field_by_name("allow_missing")
                .is_some_and(|allowed| allowed.as_bool() == Some(true));
        (masked && !self.keys.is_empty()) || creates || has_keys(request)
    }
}

/// Whether one path equals or contains the other.
fn overlap(one: &str, other: &str) -> bool {
    let leads = |from: &str, to: &str| {
        to.strip_prefix(from)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    leads(one, other) || leads(other, one)
}

fn is_key(field: &FieldDescriptor) -> bool {
    let message = field.parent_message();
    KEYS.contains(&(message.name(), field.name()))
}

/// The message type of the object in a request.
fn object_type(request: &MessageDescriptor) -> Option<MessageDescriptor> {
    let mut fields = request.fields();
    fields.find_map(|field| {
        let message = field.kind().as_message()?.clone();
        (message.package_name() != "google.protobuf").then_some(message)
    })
}

fn paths_of_keys(message: &MessageDescriptor, prefix: &str, paths: &mut Vec<String>) {
    for field in message.fields() {
        let path = format!("{prefix}{}", field.name());
        if is_key(&field) {
            paths.push(path.clone());
        }
        if let Kind::Message(inner) = field.kind()
            && inner.package_name() != "google.protobuf"
        {
            paths_of_keys(&inner, &format!("{path}."), paths);
        }
    }
}

fn has_keys(message: &DynamicMessage) -> bool {
    message
        .fields()
        .any(|(field, value)| is_key(&field) || value.as_message().is_some_and(has_keys))
}

/// Collects all strings of a message that refer to other objects.
pub(super) fn references(message: &DynamicMessage, found: &mut Vec<String>) {
    for (field, value) in message.fields() {
        match value {
            Value::String(text) if field.name().ends_with("_ref") => found.push(text.clone()),
            Value::Message(inner) if inner.descriptor().package_name() != "google.protobuf" => {
                references(inner, found);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_take_what_a_reload_checks_again_for_them() {
        let streams: Vec<_> = METHODS.values().filter(|method| method.streams).collect();
        assert!(!streams.is_empty());
        for method in streams {
            assert_eq!(method.needs, Role::Viewer, "{}", method.name);
        }
    }

    #[test]
    fn each_field_that_looks_like_a_key_has_been_decided_on() {
        // Bytes fields that are not keys.
        let others = ["NvmeSubsystemStatus.fru_guid"];
        for message in api::pool().all_messages() {
            if message.package_name().starts_with("google") {
                continue;
            }
            for field in message.fields() {
                let name = format!("{}.{}", message.name(), field.name());
                let looks = field.kind() == Kind::Bytes || field.name().ends_with("psk");
                let kinds = ["NvmeHost", "NvmeCredential"];
                let of_keys = kinds.iter().any(|kind| message.name().contains(kind));
                if looks && !of_keys && !others.contains(&&*name) {
                    assert!(is_key(&field), "{name}");
                }
            }
        }
        for (message, field) in KEYS {
            let mut all = api::pool().all_messages();
            let message = all.find(|known| known.name() == message).expect(message);
            assert!(message.get_field_by_name(field).is_some(), "{field}");
        }
    }

    #[test]
    fn methods_that_admit_hosts_exist() {
        for name in OF_HOSTS.iter().chain([&CREATING_UPDATE]) {
            let mut all = METHODS.values();
            assert!(all.any(|method| method.name == *name), "{name}");
        }
    }

    #[test]
    fn a_mask_that_covers_a_key_touches_it() {
        let path = "/opi_api.storage.v1.FrontendNvmeService/UpdateNvmeSubsystem";
        let method = find(path).expect("it is there");
        assert_eq!(method.keys, ["spec.hostnqn", "spec.psk"]);
        let of = |paths: &[&str]| {
            let mut request = DynamicMessage::new(method.input.clone());
            let mask = method
                .input
                .get_field_by_name("update_mask")
                .expect("a mask");
            let mut value = DynamicMessage::new(mask.kind().as_message().expect("one").clone());
            let paths = paths.iter().map(|path| Value::String((*path).to_owned()));
            value.set_field_by_name("paths", Value::List(paths.collect()));
            request.set_field(&mask, Value::Message(value));
            method.touches_keys(&request)
        };
        for paths in [
            &["*"][..],
            &["spec"],
            &["spec.psk"],
            &["spec.model_number", "spec.hostnqn"],
        ] {
            assert!(of(paths), "{paths:?}");
        }
        for paths in [&[][..], &["spec.model_number"], &["spec.ps"]] {
            assert!(!of(paths), "{paths:?}");
        }
    }
}
