//! Create (AIP-133), and the rules that the descriptors state for every field.

use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Value, json};
use tonic::Code;
use uuid::Uuid;

use crate::common::{
    assert_holds, at, expect_invalid, has_behaviour, kind_of, name_of, with, without,
};
use crate::kinds::Place;

pub async fn create_returns_the_fields_and_the_name(place: &Place) {
    let (name, made) = place.make(0).await;
    assert_eq!(name, place.name(&place.id(0)));
    assert_holds(&made, &place.shown(place.sample(0).await));
}

pub async fn get_and_list_agree_with_create(place: &Place) {
    let (name, made) = place.make(0).await;
    assert_eq!(
        place.resource.get(&name).await.expect("the object exists"),
        made
    );
    let all = place.resource.list(&place.parent).await;
    let listed: Vec<_> = all
        .iter()
        .filter(|object| name_of(object) == name)
        .collect();
    assert_eq!(listed, [&made]);
}

pub async fn without_an_id_the_server_assigns_a_uuid(place: &Place) {
    let made = place
        .resource
        .created(&place.parent, "", place.sample(0).await)
        .await;
    let name = name_of(&made);
    let id = name.rsplit('/').next().expect("a name has parts");
    assert_eq!(name, place.name(id));
    let uuid = Uuid::parse_str(id).unwrap_or_else(|e| panic!("{id}: {e}"));
    assert_eq!((uuid.get_version_num(), uuid.to_string().as_str()), (4, id));
    assert_eq!(
        place.resource.get(&name).await.expect("the object exists"),
        made
    );
    // `clean` would not recognize the generated name.
    place.resource.deleted(&name).await;
}

pub async fn a_repeated_create_is_idempotent(place: &Place) {
    let (_, first) = place.make(0).await;
    let (_, second) = place.make(0).await;
    assert_eq!(first, second);
    let names = place.resource.names(&place.parent).await;
    assert_eq!(names.iter().filter(|name| place.is_mine(name)).count(), 1);
}

pub async fn a_create_with_different_content_already_exists(place: &Place) {
    let (name, made) = place.make(0).await;
    let other = place.sample(1).await;
    let status = place
        .resource
        .refused(&place.parent, &place.id(0), other, Code::AlreadyExists)
        .await;
    assert!(status.message().contains(&name), "{status}");
    assert_eq!(
        place.resource.get(&name).await.expect("the object exists"),
        made
    );
}

pub async fn malformed_ids_are_rejected(place: &Place) {
    let too_long = format!("a{}", "b".repeat(63));
    let uuid = Uuid::new_v4().to_string();
    let bad = [
        "A",
        "aB",
        "9a",
        "-a",
        "a_b",
        "a.b",
        "a b",
        " a",
        "a/b",
        "ä",
        "a\n",
        "a\0b",
        "volumes/a",
        &too_long,
        &uuid,
    ];
    for id in bad {
        let sample = place.sample(0).await;
        let status = place
            .resource
            .refused(&place.parent, id, sample, Code::InvalidArgument)
            .await;
        expect_invalid(&status, &format!("{}_id", place.resource.field));
    }
    let names = place.resource.names(&place.parent).await;
    assert!(
        !names
            .iter()
            .any(|name| place.is_mine(name) && *name != place.parent),
        "{names:?}"
    );
}

pub async fn valid_ids_are_accepted(place: &Place) {
    // SPDK names bdevs after remote controllers, and its bdev names leave room for fewer characters.
    let most = match place.kind.message {
        "NvmeRemoteController" => 49,
        _ => 63,
    };
    let longest = format!("{:z<most$}", format!("{}-", place.id(0)));
    assert_eq!(longest.len(), most);
    for id in [longest.as_str(), &format!("{}-9", place.id(0))] {
        let made = place
            .resource
            .created(&place.parent, id, place.sample(0).await)
            .await;
        assert_eq!(name_of(&made), place.name(id));
        place.resource.deleted(&name_of(&made)).await;
    }
}

pub async fn the_object_is_required(place: &Place) {
    let request = place
        .resource
        .create_request(&place.parent, &place.id(0), json!({}));
    let request = without(request, &place.resource.field);
    let method = place.resource.method("Create");
    let status = place
        .resource
        .client
        .fails(&method, request, Code::InvalidArgument)
        .await;
    expect_invalid(&status, &place.resource.field);
}

pub async fn each_required_field_is_required(place: &Place) {
    let sample = place.sample(0).await;
    for path in required(place, &sample) {
        let object = without(sample.clone(), &path);
        let status = place
            .resource
            .refused(&place.parent, &place.id(0), object, Code::InvalidArgument)
            .await;
        expect_invalid(&status, &format!("{}.{path}", place.resource.field));
        let missing = place.resource.get(&place.name(&place.id(0))).await;
        assert_eq!(
            missing.expect_err("the create was rejected").code(),
            Code::NotFound
        );
    }
}

pub async fn output_only_fields_are_ignored_by_create(place: &Place) {
    let (name, made) = place.make(0).await;
    place.resource.deleted(&name).await;
    let mut object = place.sample(0).await;
    object["name"] = "somebody/else".into();
    for path in output_only_in(&message_of(place), "") {
        object = with(object, &path.0, path.1);
    }
    let again = place
        .resource
        .created(&place.parent, &place.id(0), object)
        .await;
    assert_eq!(again, made);
}

pub async fn unknown_enum_numbers_are_rejected(place: &Place) {
    let sample = place.sample(0).await;
    for path in enums_in(&message_of(place), &sample, "") {
        let object = with(sample.clone(), &path, json!(99));
        let status = place
            .resource
            .refused(&place.parent, &place.id(0), object, Code::InvalidArgument)
            .await;
        expect_invalid(&status, &format!("{}.{path}", place.resource.field));
    }
}

pub async fn the_parent_must_be_valid_and_exist(place: &Place) {
    if !place.resource.nested {
        return;
    }
    let unknown = format!("{}-unknown", place.parent);
    let sample = place.sample(0).await;
    let status = place
        .resource
        .refused(&unknown, "", sample.clone(), Code::NotFound)
        .await;
    assert!(status.message().contains(&unknown), "{status}");
    for bad in [
        "",
        "nvmeSubsystems",
        "nvmeSubsystems/",
        "volumes/a",
        "a/b/c",
    ] {
        let status = place
            .resource
            .refused(bad, "", sample.clone(), Code::InvalidArgument)
            .await;
        expect_invalid(&status, "parent");
    }
}

fn message_of(place: &Place) -> MessageDescriptor {
    kind_of(place.kind.message)
}

/// Returns the paths of all REQUIRED fields that the object has.
pub fn required(place: &Place, object: &Value) -> Vec<String> {
    let required = paths(&message_of(place), object, "", &|field| {
        has_behaviour(field, "REQUIRED")
    });
    let nothing = place.kind.message == "VirtioScsiTarget";
    assert_eq!(
        required.is_empty(),
        nothing,
        "only VirtioScsiTarget has no REQUIRED field"
    );
    required
}

/// Returns the paths of all enum fields that the object has.
fn enums_in(message: &MessageDescriptor, object: &Value, prefix: &str) -> Vec<String> {
    paths(message, object, prefix, &|field| {
        matches!(field.kind(), Kind::Enum(_))
    })
}

fn paths(
    message: &MessageDescriptor,
    object: &Value,
    prefix: &str,
    wanted: &dyn Fn(&FieldDescriptor) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for field in message.fields() {
        let path = format!("{prefix}{}", field.name());
        if at(object, &path).is_null() {
            continue;
        }
        if wanted(&field) {
            found.push(path.clone());
        }
        if let Kind::Message(inner) = field.kind()
            && at(object, &path).is_object()
        {
            found.extend(paths(&inner, object, &format!("{path}."), wanted));
        }
    }
    found
}

/// Returns all OUTPUT_ONLY scalar fields, each with a value that the server would not choose.
fn output_only_in(message: &MessageDescriptor, prefix: &str) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for field in message
        .fields()
        .filter(|field| field.cardinality() != Cardinality::Repeated)
    {
        let path = format!("{prefix}{}", field.name());
        match field.kind() {
            Kind::Message(inner) if inner.package_name() == "opi_api.storage.v1" => {
                // Setting a member of a oneof would clear the others; none has OUTPUT_ONLY fields.
                if field.containing_oneof().is_none() {
                    found.extend(output_only_in(&inner, &format!("{path}.")));
                }
            }
            _ if !has_behaviour(&field, "OUTPUT_ONLY") => {}
            Kind::Bool => found.push((path, json!(true))),
            Kind::String => found.push((path, json!("set by the client"))),
            Kind::Bytes => found.push((path, json!("AAAA"))),
            Kind::Enum(values) => {
                let last = values.values().map(|value| value.number()).max();
                found.push((path, json!(last)));
            }
            _ => found.push((path, json!(4711))),
        }
    }
    found
}
