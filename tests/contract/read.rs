//! Get (AIP-131), List (AIP-132, AIP-158), Stats, and the forms of resource names.

use std::collections::BTreeSet;

use serde_json::json;
use tonic::Code;

use crate::common::{Client, Resource, expect_invalid, name_of, unique};
use crate::kinds::Place;

/// The verbs whose request is only a name.
const BY_NAME: [&str; 3] = ["Get", "Stats", "Delete"];

pub async fn a_missing_object_is_not_found(place: &Place) {
    let name = place.name(&place.id(7));
    for verb in BY_NAME {
        let method = place.resource.method(verb);
        let request = json!({ "name": name });
        let status = place
            .resource
            .client
            .fails(&method, request, Code::NotFound)
            .await;
        assert!(status.message().contains(&name), "{status}");
    }
}

pub async fn malformed_names_are_rejected(place: &Place) {
    for verb in BY_NAME {
        for name in [
            "",
            "/",
            "a/b/c",
            "somethingElse/a",
            "a/b/c/d/e",
            "volumes/",
            "nvmeSubsystems//x",
        ] {
            let method = place.resource.method(verb);
            let request = json!({ "name": name });
            let status = place
                .resource
                .client
                .fails(&method, request, Code::InvalidArgument)
                .await;
            expect_invalid(&status, "name");
        }
    }
}

pub async fn an_object_is_found_by_every_form_of_its_name(place: &Place) {
    let (name, made) = place.make(0).await;
    for form in place.forms(&place.id(0)) {
        let resource = &place.resource;
        assert_eq!(resource.get(&form).await.expect(&form), made, "{form}");
        resource.stats(&form).await;
        let sample = place.sample(0).await;
        assert_eq!(
            resource.updated(&form, sample, Some(&["*"])).await,
            made,
            "{form}"
        );
        resource.deleted(&form).await;
        let gone = resource
            .get(&name)
            .await
            .expect_err("the object was deleted");
        assert_eq!(gone.code(), Code::NotFound);
        place.make(0).await;
    }
}

pub async fn pages_contain_every_object_once_in_order(place: &Place) {
    let mut made = BTreeSet::new();
    for n in [3, 1, 4, 0, 2] {
        made.insert(place.make(n).await.0);
    }
    for size in [1, 2, 5, 100] {
        let all = walk(place, size, async |_| {}).await;
        let mine: Vec<_> = all.iter().filter(|name| made.contains(*name)).collect();
        assert!(mine.iter().copied().eq(&made), "{size} to a page: {mine:?}");
    }
}

pub async fn pages_survive_inserts_and_deletes(place: &Place) {
    for n in 0..6 {
        place.make(n).await;
    }
    let name = |n| place.name(&place.id(n));
    // Between two pages, delete the last listed object, its predecessor and its successor, and create
    // others.
    let all = walk(place, 1, async |last: &str| {
        if last == name(2) {
            for n in [1, 2, 4] {
                place.resource.deleted(&name(n)).await;
            }
            place.make(8).await;
        }
    })
    .await;
    let mine: Vec<_> = all
        .into_iter()
        .filter(|name| place.is_mine(name) && *name != place.parent)
        .collect();
    assert_eq!(mine, [0, 1, 2, 3, 5, 8].map(name));
}

/// Lists all pages of this size and returns the names; `between` is called after each page with the last
/// name.
async fn walk(place: &Place, size: i64, mut between: impl AsyncFnMut(&str)) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut token = String::new();
    loop {
        let (items, next) = place.resource.page(&place.parent, size, &token).await;
        assert!(
            items.len() <= usize::try_from(size).expect("a size"),
            "{} items",
            items.len()
        );
        assert!(
            next.is_empty() || !items.is_empty(),
            "an empty page has a next_page_token"
        );
        names.extend(items.iter().map(name_of));
        assert!(names.is_sorted(), "{names:?}");
        if next.is_empty() {
            return names;
        }
        assert_ne!(next, token, "next_page_token is the token of the same page");
        token = next;
        if let Some(last) = names.last() {
            between(last).await;
        }
    }
}

pub async fn an_invalid_page_token_is_rejected(place: &Place) {
    for n in 0..2 {
        place.make(n).await;
    }
    let (_, good) = place.resource.page(&place.parent, 1, "").await;
    let cut = &good[..good.len() - 1];
    for token in ["x", "todo", "AAAA", "%%%", "ä", cut] {
        let request = place.resource.list_request(&place.parent, 1, token);
        let method = place.resource.method("List");
        let status = place
            .resource
            .client
            .fails(&method, request, Code::InvalidArgument)
            .await;
        expect_invalid(&status, "page_token");
    }
}

pub async fn a_negative_page_size_is_rejected(place: &Place) {
    for size in [-1, i64::from(i32::MIN)] {
        let request = place.resource.list_request(&place.parent, size, "");
        let method = place.resource.method("List");
        let status = place
            .resource
            .client
            .fails(&method, request, Code::InvalidArgument)
            .await;
        expect_invalid(&status, "page_size");
    }
}

pub async fn list_requires_a_parent_for_nested_kinds_only(place: &Place) {
    let method = place.resource.method("List");
    let client = &place.resource.client;
    if !place.resource.nested {
        // `list_request` sets the parent field of flat kinds, if there is one, to an arbitrary value.
        place.resource.page("", 1, "").await;
        client.ok(&method, json!({ "page_size": 1 })).await;
        return;
    }
    let unknown = format!("{}-unknown", place.parent);
    let request = place.resource.list_request(&unknown, 0, "");
    let status = client.fails(&method, request, Code::NotFound).await;
    assert!(status.message().contains(&unknown), "{status}");
    for bad in ["", "todo", "volumes/a"] {
        let request = place.resource.list_request(bad, 0, "");
        let status = client.fails(&method, request, Code::InvalidArgument).await;
        expect_invalid(&status, "parent");
    }
}

pub async fn stats_are_counters(place: &Place) {
    let (name, _) = place.make(0).await;
    let stats = place.resource.stats(&name).await;
    let counters = stats.as_object().expect("stats are a message");
    assert_eq!(counters.len(), 9, "{stats}");
    for (counter, value) in counters {
        assert!(
            value.as_i64().is_some_and(|value| value >= 0),
            "{counter} is {value}"
        );
    }
}

pub async fn a_page_has_50_objects_by_default_and_250_at_most(client: &Client) {
    let volumes = Resource::new(client, "NullVolume");
    let tag = unique("page");
    let object = json!({ "block_size": 512, "blocks_count": 8 });
    for n in 0..260 {
        volumes
            .created("", &format!("{tag}-{n}"), object.clone())
            .await;
    }
    for (asked, answered) in [
        (0, 50),
        (249, 249),
        (250, 250),
        (251, 250),
        (i64::from(i32::MAX), 250),
    ] {
        let (items, token) = volumes.page("", asked, "").await;
        assert_eq!(items.len(), answered, "page_size {asked}");
        assert!(!token.is_empty());
    }
    let names: BTreeSet<_> = volumes.names("").await.into_iter().collect();
    for n in 0..260 {
        let name = format!("volumes/{tag}-{n}");
        assert!(names.contains(&name), "{name} is on no page");
        volumes.deleted(&name).await;
    }
}
