//! Update (AIP-134) and field masks.

use serde_json::json;
use tonic::Code;

use crate::common::{assert_holds, at, expect_invalid, only, with, without};
use crate::create::required;
use crate::kinds::Place;

pub async fn a_mask_of_one_field_updates_only_that_field(place: &Place) {
    for (path, value) in place.changes().await {
        let (name, made) = place.make(0).await;
        // Every other field differs too: only the mask keeps them unchanged.
        let object = with(place.sample(1).await, path, value.clone());
        let updated = place.resource.updated(&name, object, Some(&[path])).await;
        assert_eq!(at(&updated, path), &value, "{updated}");
        let rest = |object| without(without_status(object), path);
        assert_eq!(rest(derived(&updated)), rest(derived(&made)));
        assert_eq!(
            place.resource.get(&name).await.expect("the object exists"),
            updated
        );
        place.resource.deleted(&name).await;
    }
}

pub async fn without_a_mask_only_set_fields_are_updated(place: &Place) {
    for (path, value) in place.changes().await {
        let (name, made) = place.make(0).await;
        let updated = place
            .resource
            .updated(&name, only(path, value.clone()), None)
            .await;
        assert_eq!(at(&updated, path), &value, "{updated}");
        let rest = |object| without(without_status(object), path);
        assert_eq!(rest(derived(&updated)), rest(derived(&made)));
        assert_eq!(
            place.resource.get(&name).await.expect("the object exists"),
            updated
        );
        place.resource.deleted(&name).await;
    }
}

pub async fn a_star_replaces_all_fields(place: &Place) {
    let (name, made) = place.make(0).await;
    let sample = place.sample(0).await;
    for (path, value) in place.changes().await {
        let object = with(sample.clone(), path, value);
        let updated = place
            .resource
            .updated(&name, object.clone(), Some(&["*"]))
            .await;
        assert_holds(&updated, &place.shown(object));
        assert_eq!(
            place.resource.get(&name).await.expect("the object exists"),
            updated
        );
    }
    let back = place.resource.updated(&name, sample, Some(&["*"])).await;
    assert_eq!(
        back, made,
        "a full replace resets the fields that are not set"
    );
}

pub async fn a_star_without_a_required_field_is_rejected(place: &Place) {
    let (name, made) = place.make(0).await;
    if required(place, &made).is_empty() {
        return;
    }
    let status = place
        .resource
        .update_refused(&name, json!({}), Some(&["*"]), Code::InvalidArgument)
        .await;
    assert!(status.message().contains("required"), "{status}");
    assert_eq!(
        place.resource.get(&name).await.expect("the object exists"),
        made
    );
}

pub async fn unknown_mask_paths_are_rejected(place: &Place) {
    let (name, made) = place.make(0).await;
    let sample = place.sample(1).await;
    let masks: [&[&str]; 6] = [
        &["nope"],
        &["spec.nope"],
        &["name.nope"],
        &["name", "nope"],
        &["*", "name"],
        &["name."],
    ];
    for mask in masks {
        let status = place
            .resource
            .update_refused(&name, sample.clone(), Some(mask), Code::InvalidArgument)
            .await;
        expect_invalid(&status, "update_mask");
        assert_eq!(
            place.resource.get(&name).await.expect("the object exists"),
            made,
            "{mask:?}"
        );
    }
}

pub async fn an_update_without_changes_is_a_no_op(place: &Place) {
    let (name, made) = place.make(0).await;
    let sample = place.sample(0).await;
    for mask in [None, Some(["*"].as_slice())] {
        assert_eq!(
            place.resource.updated(&name, sample.clone(), mask).await,
            made
        );
        assert_eq!(
            place.make(0).await.1,
            made,
            "a retry of the create is idempotent"
        );
    }
    // Echoing server-assigned values does not pin them: the create stays idempotent.
    assert_eq!(
        place.resource.updated(&name, made.clone(), None).await,
        made
    );
    assert_eq!(
        place.make(0).await.1,
        made,
        "a retry of the create is idempotent"
    );
}

pub async fn immutable_fields_are_rejected_and_unchanged(place: &Place) {
    for (path, value) in (place.kind.fixed)(place) {
        let (name, made) = place.make(0).await;
        for mask in [None, Some([path].as_slice())] {
            let object = only(path, value.clone());
            let status = place
                .resource
                .update_refused(&name, object, mask, Code::InvalidArgument)
                .await;
            expect_invalid(&status, &format!("{}.{path}", place.resource.field));
            assert_eq!(
                place.resource.get(&name).await.expect("the object exists"),
                made
            );
        }
    }
}

pub async fn an_update_of_a_missing_object_is_not_found(place: &Place) {
    let name = place.name(&place.id(0));
    let sample = place.sample(0).await;
    let status = place
        .resource
        .update_refused(&name, sample, Some(&["*"]), Code::NotFound)
        .await;
    assert!(status.message().contains(&name), "{status}");
}

pub async fn allow_missing_creates(place: &Place) {
    let name = place.name(&place.id(0));
    let method = place.resource.method("Update");
    let mut request = place
        .resource
        .update_request(&name, place.sample(0).await, Some(&["*"]));
    request["allow_missing"] = true.into();
    let made = place.resource.client.ok(&method, request.clone()).await;
    assert_holds(&made, &place.shown(place.sample(0).await));
    assert_eq!(made["name"], name.as_str());
    assert_eq!(
        place.resource.get(&name).await.expect("the object exists"),
        made
    );
    assert_eq!(
        place.resource.client.ok(&method, request).await,
        made,
        "a retry of the update is idempotent"
    );
    assert_eq!(
        place.make(0).await.1,
        made,
        "a create of the same object is idempotent"
    );
}

pub async fn the_object_and_its_name_are_required(place: &Place) {
    let method = place.resource.method("Update");
    let field = &place.resource.field;
    let client = &place.resource.client;
    let status = client
        .fails(&method, json!({}), Code::InvalidArgument)
        .await;
    expect_invalid(&status, field);
    let sample = place.sample(0).await;
    for name in ["", "somethingElse/a", "a/b/c/d/e"] {
        let request = place.resource.update_request(name, sample.clone(), None);
        let status = client.fails(&method, request, Code::InvalidArgument).await;
        expect_invalid(&status, &format!("{field}.name"));
    }
}

pub async fn output_only_fields_in_a_mask_are_ignored(place: &Place) {
    let (name, made) = place.make(0).await;
    let updated = place
        .resource
        .updated(&name, place.sample(0).await, Some(&["name"]))
        .await;
    assert_eq!(updated, made);
    if !made["status"].is_null() {
        let updated = place
            .resource
            .updated(&name, place.sample(0).await, Some(&["status"]))
            .await;
        assert_eq!(updated, made);
    }
}

/// Removes fields derived from others: the number of blocks, derived from the file.
fn derived(object: &serde_json::Value) -> serde_json::Value {
    if object["filename"].is_null() {
        object.clone()
    } else {
        without(object.clone(), "blocks_count")
    }
}

fn without_status(object: serde_json::Value) -> serde_json::Value {
    without(object, "status")
}
