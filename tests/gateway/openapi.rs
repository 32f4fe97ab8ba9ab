//! The gateway's OpenAPI description.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use opi_spdk::gateway::Limits;
use serde_json::{Value as Json, json};
use tower::ServiceExt;

use crate::served::router;

async fn description() -> Json {
    let request = Request::get("/openapi.json").body(Body::empty()).unwrap();
    let answer = router(Limits::default()).oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn the_description_is_openapi() {
    let original = description().await;
    let described: openapiv3::OpenAPI = serde_json::from_value(original.clone()).unwrap();
    // Anything that is not OpenAPI is lost in the round trip through its types.
    let again = serde_json::to_value(&described).unwrap();
    assert_kept(&original, &again, "");
    // 122 RPCs with a route. Two of them are lists that share a path and also have one path each.
    assert_eq!(described.operations().count(), 123);
}

#[tokio::test]
async fn timestamps_are_described_as_protobuf_json() {
    let description = description().await;
    let schema = &description["components"]["schemas"];
    let host = (schema.as_object().expect("schemas").iter())
        .find(|(name, _)| name.ends_with("NvmeHost"))
        .expect("NvmeHost is described");
    let time = &host.1["properties"]["oldKeysUntil"];
    for (text, is_time) in [
        ("2026-11-29T15:00:00Z", true),
        ("2026-11-29T15:00:00.123456789+01:00", true),
        ("2026-11-29 15:00:00Z", false),
        ("2026-13-29T15:00:00Z", false),
        ("2026-11-29", false),
        ("", false),
    ] {
        assert_eq!(
            jsonschema::is_valid(time, &json!(text)),
            is_time,
            "{text}: {time}"
        );
    }
}

/// Asserts that everything in `original` is in `again`; empty lists and false may be omitted.
fn assert_kept(original: &Json, again: &Json, place: &str) {
    match original {
        Json::Object(object) => {
            for (name, value) in object {
                let place = format!("{place}/{name}");
                match again.get(name) {
                    Some(again) => assert_kept(value, again, &place),
                    None => assert!(
                        *value == json!([]) || *value == json!(false),
                        "{place} is not part of OpenAPI"
                    ),
                }
            }
        }
        Json::Array(array) => {
            for (i, value) in array.iter().enumerate() {
                assert_kept(value, &again[i], &format!("{place}/{i}"));
            }
        }
        Json::Number(number) => assert_eq!(number.as_f64(), again.as_f64(), "{place}"),
        other => assert_eq!(other, again, "{place}"),
    }
}

/// Consistency rules of the specification that the types of `openapiv3` do not check.
#[tokio::test]
async fn the_description_is_consistent() {
    let description = description().await;
    let mut ids = BTreeSet::new();
    let mut shapes = BTreeSet::new();
    let tags: Vec<&Json> = list(&description["tags"]).map(|tag| &tag["name"]).collect();
    for (path, methods) in description["paths"].as_object().unwrap() {
        let in_path: Vec<&str> = path
            .split('{')
            .skip(1)
            .map(|rest| rest.split('}').next().unwrap())
            .collect();
        let shape = in_path.iter().fold(path.clone(), |shape, name| {
            shape.replacen(&format!("{{{name}}}"), "{}", 1)
        });
        assert!(
            shapes.insert(shape),
            "{path} duplicates a path with other parameter names"
        );
        for (method, operation) in methods.as_object().unwrap() {
            let place = format!("{method} {path}");
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{place}: {id} is used twice");
            let mut names = BTreeSet::new();
            for parameter in list(&operation["parameters"]) {
                let (name, at) = (
                    parameter["name"].as_str().unwrap(),
                    parameter["in"].as_str().unwrap(),
                );
                assert!(
                    names.insert((at, name)),
                    "{place}: {name} is declared twice"
                );
                assert!(
                    at != "path" || parameter["required"] == true,
                    "{place}: {name}"
                );
                assert!(parameter["schema"].is_object(), "{place}: {name}");
            }
            let declared = names
                .iter()
                .filter(|(at, _)| *at == "path")
                .map(|(_, name)| *name);
            assert_eq!(
                declared.collect::<BTreeSet<_>>(),
                in_path.iter().copied().collect(),
                "{place}"
            );
            assert!(
                list(&operation["tags"]).all(|tag| tags.contains(&tag)),
                "{place}"
            );
            assert!(
                !operation["responses"].as_object().unwrap().is_empty(),
                "{place}"
            );
            assert!(
                method != "get" || operation["requestBody"].is_null(),
                "{place}"
            );
        }
    }
    let mut schemas = 0;
    check_schemas(&description, &description, &mut schemas);
    assert!(schemas > 500, "{schemas}");
}

fn list(json: &Json) -> impl Iterator<Item = &Json> {
    json.as_array().into_iter().flatten()
}

/// Checks that references resolve, arrays declare their items, required properties exist, and `allOf`
/// does not combine closed objects, which exclude each other.
fn check_schemas(root: &Json, json: &Json, seen: &mut usize) {
    match json {
        Json::Object(object) => {
            *seen += 1;
            if let Some(to) = object.get("$ref").and_then(Json::as_str) {
                let found = to.strip_prefix('#').and_then(|to| root.pointer(to));
                assert!(found.is_some_and(Json::is_object), "{to} does not resolve");
            }
            if object.get("type") == Some(&json!("array")) {
                assert!(object["items"].is_object(), "{json}");
            }
            if let (Some(Json::Array(required)), Some(properties)) =
                (object.get("required"), object.get("properties"))
            {
                let known = |name: &Json| properties.get(name.as_str().unwrap()).is_some();
                assert!(required.iter().all(known), "{json}");
            }
            if let Some(Json::Array(all)) = object.get("allOf") {
                assert_eq!(all.len(), 1, "closed objects exclude each other: {json}");
            }
            object
                .values()
                .for_each(|json| check_schemas(root, json, seen));
        }
        Json::Array(array) => array
            .iter()
            .for_each(|json| check_schemas(root, json, seen)),
        _ => {}
    }
}
