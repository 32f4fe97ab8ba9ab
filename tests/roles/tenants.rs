//! Tenants: each role with a prefix, with each method, about an object of its own, one of another's, and none.

use prost_reflect::{DynamicMessage, Kind, MethodDescriptor, Value};
use serde_json::json;
use tonic::Code;

use super::common::{path_of, to_json};
use super::{ADMIN, TENANT, TENANTS_ADMIN, WATCHER, denied, guarded, methods, streams, table};

/// An object to be named in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Own,
    Another,
    /// As another's object, with the prefix where it does not count.
    Disguised,
    Nothing,
}

impl Of {
    fn id(self) -> &'static str {
        match self {
            Self::Own => "tenant-x",
            Self::Another | Self::Disguised => "other-x",
            Self::Nothing => "",
        }
    }

    fn name(self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Disguised => "volumes/other-x/tenant-x".to_owned(),
            Self::Own | Self::Another => format!("volumes/{}", self.id()),
        }
    }
}

/// A request in which each field that names an object names this one.
fn request(method: &MethodDescriptor, of: Of) -> DynamicMessage {
    let mut message = DynamicMessage::new(method.input());
    let creates = method.name().starts_with("Create");
    for field in method.input().fields() {
        match (field.name(), field.kind()) {
            ("name" | "parent", Kind::String) => {
                message.set_field(&field, Value::String(of.name()));
            }
            (name, Kind::String) if name.ends_with("_id") => {
                message.set_field(&field, Value::String(of.id().to_owned()));
            }
            (_, Kind::Message(inner)) if inner.package_name() != "google.protobuf" => {
                let mut object = DynamicMessage::new(inner.clone());
                // A created object's name has no meaning.
                let name = match creates {
                    true => Of::Own.name(),
                    false => of.name(),
                };
                if let Some(field) = inner.get_field_by_name("name")
                    && of != Of::Nothing
                {
                    object.set_field(&field, Value::String(name));
                }
                message.set_field(&field, Value::Message(object));
            }
            _ => {}
        }
    }
    message
}

/// Whether a tenant's role may send this.
fn may(role: &str, method: &MethodDescriptor, of: Of) -> bool {
    let is_named = |name: &str| method.input().get_field_by_name(name).is_some();
    let names_it = is_named("name") || is_named("parent");
    table::may(role, method.name())
        && match (table::reach(method.name()), of) {
            (table::Reach::All, _) => false,
            // A list of objects at the top.
            (table::Reach::Listed, _) if !names_it => true,
            (table::Reach::Listed, of) => matches!(of, Of::Own | Of::Nothing),
            (table::Reach::Own, of) => of == Of::Own,
        }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_role_of_a_tenant_may_call_only_its_methods_on_its_objects() {
    let dir = tempfile::tempdir().expect("a directory");
    let (target, client, _) = guarded(&dir).await;
    let roles = [
        ("viewer", WATCHER),
        ("operator", TENANT),
        ("admin", TENANTS_ADMIN),
    ];
    for method in methods() {
        let path = path_of(&method);
        for (role, token) in roles {
            for of in [Of::Own, Of::Another, Of::Disguised, Of::Nothing] {
                let request = request(&method, of);
                let answer = match method.is_server_streaming() {
                    true => streams::begin(&client, &path, token).await,
                    false => {
                        let client = client.with_token(token);
                        let bytes = prost::Message::encode_to_vec(&request);
                        client.call_raw(&path, bytes.into()).await.map(drop)
                    }
                };
                let asked = || format!("{role}, {path}, {of:?}: {}", to_json(&request));
                let refused = answer.as_ref().is_err_and(denied);
                assert_eq!(refused, !may(role, &method, of), "{}: {answer:?}", asked());
                if let Err(status) = answer {
                    assert_ne!(status.code(), Code::Unauthenticated, "{}", asked());
                }
            }
        }
    }
    // Nothing of another's was made.
    let objects = client.with_token(ADMIN).ok("ListObjects", json!({})).await;
    let objects = objects["objects"].as_array().cloned().unwrap_or_default();
    for object in &objects {
        assert!(
            object["name"].to_string().contains("tenant-"),
            "{objects:?}"
        );
    }
    target.stop();
}
