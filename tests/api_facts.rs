//! The API equals the published one: every fact of `tests/data/opi-api.tsv` holds in the descriptor set,
//! and its packages contain nothing else. Kinds of this project are in a package of their own.
//!
//! A fact is a line of the table: a message, a field (number, type, label, oneof, behaviours,
//! reference), an enum value, an RPC (types, route, body) or a resource. The test generates the same
//! lines from the descriptors and compares the two sets.

use std::collections::BTreeSet;

use opi_spdk::api;
use prost_reflect::{
    Cardinality, DynamicMessage, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind,
    MessageDescriptor, MethodDescriptor, ReflectMessage, Value,
};

const TABLE: &str = include_str!("data/opi-api.tsv");

/// The API's files under their published names, as shown by reflection.
const FILES: [&str; 11] = [
    "inventory/inventory.proto",
    "storage/backend_aio.proto",
    "storage/backend_malloc.proto",
    "storage/backend_null.proto",
    "storage/backend_nvme.proto",
    "storage/frontend_nvme.proto",
    "storage/frontend_virtio_blk.proto",
    "storage/frontend_virtio_scsi.proto",
    "storage/middleend_encryption.proto",
    "storage/middleend_qos_volume.proto",
    "storage/opicommon.proto",
];

#[test]
fn descriptors_equal_the_table() {
    let table: BTreeSet<String> = TABLE.lines().map(str::to_owned).collect();
    assert_eq!(table.len(), 660, "the table is incomplete");
    let found = facts();
    let missing: Vec<_> = table.difference(&found).collect();
    let extra: Vec<_> = found.difference(&table).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "in the table only: {missing:#?}\nin proto/ only: {extra:#?}"
    );
}

#[test]
fn files_have_their_public_names() {
    let mut names: Vec<String> = api::pool()
        .files()
        .filter(|f| f.package_name().starts_with("opi_api."))
        .map(|f| f.name().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, FILES);
}

/// The table has no method signatures: they follow from the verb (Google AIP-131 to AIP-135).
#[test]
fn method_signatures_follow_the_verbs() {
    for method in methods() {
        let fields: Vec<String> = method.input().fields().map(|f| f.name().into()).collect();
        let want = match method.name() {
            n if n.starts_with("Create") => vec![fields.join(",")],
            n if n.starts_with("Update") => vec![fields[..2].join(",")],
            n if n.starts_with("List") && fields[0] != "parent" => vec![],
            n if n.starts_with("List") => vec!["parent".into()],
            _ => vec!["name".into()],
        };
        let found = strings(&extension(&method.options(), "google.api.method_signature"));
        assert_eq!(found, want, "{}", method.full_name());
    }
}

/// This project's kinds differ from the published ones in package, file and resource type.
#[test]
fn kinds_of_this_project_are_in_a_separate_package() {
    let of = |file: &FileDescriptor| (file.package_name().to_owned(), file.name().to_owned());
    let files: Vec<_> = api::pool().files().map(|file| of(&file)).collect();
    let ours = files.iter().filter(|(package, _)| package == "opi_spdk.v1");
    assert!(ours.clone().count() > 0, "{files:?}");
    for (_, name) in ours {
        assert!(name.starts_with("opi_spdk/v1/"), "{name}");
    }
    let found = resource(&kind("opi_spdk.v1.DelayVolume"));
    let expected = "resource\topi_spdk.v1.DelayVolume\topi_spdk.v1/DelayVolume\t\
                    delayVolumes/{volume}\tdelayVolume\tdelayVolumes";
    assert_eq!(found.as_deref(), Some(expected));
}

fn kind(name: &str) -> MessageDescriptor {
    let found = api::pool().get_message_by_name(name);
    found.unwrap_or_else(|| panic!("there is no {name}"))
}

/// The comments appear in the OpenAPI description: every element of the API must have one.
#[test]
fn everything_has_a_comment() {
    for file in api::pool().files() {
        if !file.package_name().starts_with("opi_") {
            continue;
        }
        let proto = file.file_descriptor_proto();
        let info = proto
            .source_code_info
            .as_ref()
            .expect("comments were dropped");
        let commented: BTreeSet<&[i32]> = info
            .location
            .iter()
            .filter(|l| !l.leading_comments().trim().is_empty())
            .map(|l| l.path.as_slice())
            .collect();
        let has = |path: &[i32], name: &str| assert!(commented.contains(path), "{name}");
        for message in api::pool().all_messages() {
            if message.parent_file() == file {
                has(message.path(), message.full_name());
                message.fields().for_each(|f| has(f.path(), f.full_name()));
            }
        }
        let services = file.services();
        for method in services.flat_map(|s| s.methods().collect::<Vec<_>>()) {
            has(method.path(), method.full_name());
        }
        for values in api::pool().all_enums().filter(|e| e.parent_file() == file) {
            values.values().for_each(|v| has(v.path(), v.full_name()));
        }
    }
}

/// Generates the lines of the table from the descriptor set.
fn facts() -> BTreeSet<String> {
    let ours = |name: &str| name.starts_with("opi_api.");
    let mut out = BTreeSet::new();
    for message in api::pool().all_messages().filter(|m| ours(m.full_name())) {
        out.insert(format!("message\t{}", message.full_name()));
        out.extend(message.fields().map(|f| field(&f)));
        out.extend(resource(&message));
    }
    for values in api::pool().all_enums().filter(|e| ours(e.full_name())) {
        out.extend(enum_values(&values));
    }
    out.extend(methods().map(|m| rpc(&m)));
    out
}

fn methods() -> impl Iterator<Item = MethodDescriptor> {
    api::pool()
        .services()
        .filter(|s| s.full_name().starts_with("opi_api."))
        .flat_map(|s| s.methods().collect::<Vec<_>>())
}

fn enum_values(values: &EnumDescriptor) -> Vec<String> {
    let scope = values.full_name();
    values
        .values()
        .map(|v| format!("enum\t{scope}.{}\t{}", v.name(), v.number()))
        .collect()
}

fn field(field: &FieldDescriptor) -> String {
    let kind = match field.kind() {
        Kind::Message(m) => m.full_name().to_owned(),
        Kind::Enum(e) => e.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    };
    let label = match field.cardinality() {
        Cardinality::Repeated => "repeated ",
        Cardinality::Required => "required ",
        Cardinality::Optional => "",
    };
    let mut notes = Vec::new();
    if field.field_descriptor_proto().proto3_optional() {
        notes.push("optional".to_owned());
    } else if let Some(oneof) = field.containing_oneof() {
        notes.push(format!("oneof {}", oneof.name()));
    }
    let options = field.options();
    let behaviour = enum_of("google.api.FieldBehavior");
    if let Value::List(list) = extension(&options, "google.api.field_behavior") {
        for value in list {
            let number = value.as_enum_number().expect("a behaviour is a number");
            let value = behaviour.get_value(number).expect("a known behaviour");
            notes.push(value.name().to_owned());
        }
    }
    if let Value::Message(reference) = extension(&options, "google.api.resource_reference") {
        for (name, word) in [("type", "ref"), ("child_type", "child")] {
            let target = text(&reference, name);
            if !target.is_empty() {
                notes.push(format!("{word} {target}"));
            }
        }
    }
    let (name, number) = (field.full_name(), field.number());
    format!(
        "field\t{name}\t{number}\t{label}{kind}\t{}",
        notes.join("; ")
    )
}

fn resource(message: &MessageDescriptor) -> Option<String> {
    let options = message.options();
    let known = api::pool().get_extension_by_name("google.api.resource")?;
    if !options.has_extension(&known) {
        return None;
    }
    let Value::Message(resource) = extension(&options, "google.api.resource") else {
        return None;
    };
    let pattern = resource.get_field_by_name("pattern")?;
    let patterns = strings(&pattern).join(" ");
    let mut line = format!(
        "resource\t{}\t{}\t{patterns}\t{}\t{}",
        message.full_name(),
        text(&resource, "type"),
        text(&resource, "singular"),
        text(&resource, "plural"),
    );
    for name in ["name_field", "history", "style"] {
        if resource.has_field_by_name(name) {
            line += &format!("\tand {name}");
        }
    }
    Some(line)
}

fn rpc(method: &MethodDescriptor) -> String {
    let options = method.options();
    let Value::Message(rule) = extension(&options, "google.api.http") else {
        panic!("{}: the http option is not a message", method.full_name());
    };
    let mut line = format!(
        "rpc\t{}\t{}\t{}\t{}\t{}",
        method.full_name(),
        method.input().full_name(),
        method.output().full_name(),
        route(&rule),
        text(&rule, "body"),
    );
    for name in ["selector", "response_body", "additional_bindings"] {
        if rule.has_field_by_name(name) {
            line += &format!("\tand {name}");
        }
    }
    if method.is_client_streaming() || method.is_server_streaming() {
        line += "\tand streams";
    }
    line
}

fn route(rule: &DynamicMessage) -> String {
    let pattern = rule
        .descriptor()
        .oneofs()
        .find(|o| o.name() == "pattern")
        .expect("HttpRule has a pattern");
    pattern
        .fields()
        .filter(|f| rule.has_field(f))
        .map(|f| format!("{} {}", f.name().to_uppercase(), text(rule, f.name())))
        .collect()
}

fn extension(options: &DynamicMessage, name: &str) -> Value {
    let known = api::pool()
        .get_extension_by_name(name)
        .unwrap_or_else(|| panic!("no extension {name}"));
    options.get_extension(&known).into_owned()
}

fn enum_of(name: &str) -> EnumDescriptor {
    api::pool()
        .get_enum_by_name(name)
        .unwrap_or_else(|| panic!("no enum {name}"))
}

fn text(message: &DynamicMessage, field: &str) -> String {
    let value = message.get_field_by_name(field).expect("a known field");
    value.as_str().unwrap_or_default().to_owned()
}

fn strings(value: &Value) -> Vec<String> {
    let list = value.as_list().unwrap_or_default();
    list.iter()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}
