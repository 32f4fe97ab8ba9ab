//! All HTTP routes of one kind, exercised with one object.

use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::{Value, json};

use crate::common::{Client, Resource, assert_holds, at, kind_of, only, with};
use crate::routes::{ALREADY_EXISTS, INVALID, NOT_FOUND, Routes};

/// An object of a kind, and an update of it.
pub struct Case {
    pub message: &'static str,
    parent: &'static str,
    pub object: Value,
    change: (&'static str, Value),
}

impl Case {
    pub fn new(
        message: &'static str,
        parent: &'static str,
        object: Value,
        change: (&'static str, Value),
    ) -> Self {
        Self {
            message,
            parent,
            object,
            change,
        }
    }

    /// Returns the field name, such as `nvme_path`.
    fn field(&self) -> String {
        let mut field = String::new();
        for c in self.message.chars() {
            if c.is_ascii_uppercase() && !field.is_empty() {
                field.push('_');
            }
            field.push(c.to_ascii_lowercase());
        }
        field
    }

    /// Returns the collection's singular, such as `nvmePath`.
    fn camel(&self) -> String {
        let (first, rest) = self.message.split_at(1);
        first.to_lowercase() + rest
    }

    /// Returns the resource name in the typed form used by the routes.
    fn name(&self, id: &str) -> String {
        let name = format!("{}s/{id}", self.camel());
        if self.parent.is_empty() {
            name
        } else {
            format!("{}/{name}", self.parent)
        }
    }

    /// Converts an object to canonical JSON: camelCase, 64-bit numbers as strings.
    fn canonical(&self, object: &Value) -> Value {
        let message =
            DynamicMessage::deserialize(kind_of(self.message), object).expect("of its type");
        let options = SerializeOptions::new().stringify_64_bit_integers(true);
        message
            .serialize_with_options(serde_json::value::Serializer, &options)
            .expect("JSON")
    }

    /// Returns the object as responses contain it: without input-only keys.
    fn expected(&self, object: &Value) -> Value {
        let mut canonical = self.canonical(object);
        for secret in ["key", "dhchapKey"] {
            canonical.as_object_mut().expect("an object").remove(secret);
        }
        canonical
    }

    /// Checks that HTTP and gRPC operate on the same objects.
    async fn by_grpc(&self, routes: &Routes, client: &Client, made: &Value) {
        let grpc = Resource::new(client, self.message);
        let name = self.name("an-id");
        // Repeating the create over gRPC is idempotent.
        let again = grpc
            .created(self.parent, "an-id", self.object.clone())
            .await;
        assert_holds(made, &self.canonical(&again));
        assert_eq!(grpc.get(&name).await.expect("the object exists"), again);
        grpc.stats(&name).await;
        grpc.deleted(&name).await;
        let [get, delete] = ["Get", "Delete"].map(|verb| format!("{verb}{}", self.message));
        routes.fails(&get, &name, "", None, NOT_FOUND).await;
        let made = grpc
            .created(self.parent, "an-id", self.object.clone())
            .await;
        let found = routes.ok(&get, &name, "", None).await;
        assert_holds(&found, &self.canonical(&made));
        routes.ok(&delete, &name, "", None).await;
        assert!(grpc.get(&name).await.is_err(), "{name} is still there");
    }

    /// Exercises all routes of the kind, ending with the deletion.
    pub async fn run(&self, routes: &Routes, client: &Client) {
        let [create, get, update, delete, stats] = ["Create", "Get", "Update", "Delete", "Stats"]
            .map(|verb| format!("{verb}{}", self.message));
        let (field, camel, name) = (self.field(), self.camel(), self.name("an-id"));
        let id = format!("{field}_id=an-id");

        routes.fails(&get, &name, "", None, NOT_FOUND).await;
        let made = routes
            .ok(&create, self.parent, &id, Some(&self.object))
            .await;
        assert_holds(&made, &self.expected(&self.object));
        // Other spellings denote the same object: an idempotent retry, not a conflict.
        let canonical = self.canonical(&self.object);
        let again = routes
            .ok(
                &create,
                self.parent,
                &format!("{camel}Id=an-id"),
                Some(&canonical),
            )
            .await;
        assert_eq!(again, made);
        assert_eq!(routes.ok(&get, &name, "", None).await, made);
        self.by_grpc(routes, client, &made).await;
        let made = routes
            .ok(&create, self.parent, &id, Some(&self.object))
            .await;

        let list = format!("List{}s", self.message);
        let plural = format!("{camel}s");
        let all = routes.ok(&list, self.parent, "page_size=250", None).await;
        assert!(
            all[&plural].as_array().expect("a list").contains(&made),
            "{all}"
        );
        for size in ["page_size=1", "pageSize=1"] {
            let page = routes.ok(&list, self.parent, size, None).await;
            assert_eq!(page[&plural].as_array().map(Vec::len), Some(1), "{page}");
        }
        routes
            .fails(&list, self.parent, "page_size=-1", None, INVALID)
            .await;
        routes
            .fails(&list, self.parent, "page_token=x", None, INVALID)
            .await;

        let counters = routes.ok(&stats, &name, "", None).await;
        assert_eq!(
            counters["stats"].as_object().map(|stats| stats.len()),
            Some(9),
            "{counters}"
        );

        self.change(routes, &update, &name, &made).await;
        self.refusals(routes, &name, [&create, &get, &update, &delete])
            .await;
        assert_eq!(routes.ok(&delete, &name, "", None).await, json!({}));
        routes.fails(&delete, &name, "", None, NOT_FOUND).await;
        for allowed in ["allow_missing=true", "allowMissing=true"] {
            assert_eq!(routes.ok(&delete, &name, allowed, None).await, json!({}));
        }
        routes.fails(&stats, &name, "", None, NOT_FOUND).await;
    }

    async fn change(&self, routes: &Routes, update: &str, name: &str, made: &Value) {
        let (path, value) = &self.change;
        let changed = only(path, value.clone());
        let there = with(self.object.clone(), path, value.clone());
        // Fields that are not in the body keep their values.
        let answer = routes.ok(update, name, "", Some(&changed)).await;
        assert_holds(&answer, &self.expected(&there));
        // Revert, with a mask of just this field.
        let back = only(path, at(&self.object, path).clone());
        let masked = routes
            .ok(update, name, &format!("update_mask={path}"), Some(&back))
            .await;
        assert_holds(&masked, &self.expected(&self.object));
        let answer = routes
            .ok(update, name, &format!("updateMask={path}"), Some(&changed))
            .await;
        assert_holds(&answer, &self.expected(&there));
        let whole = self.canonical(&self.object);
        let whole = routes.ok(update, name, "update_mask=*", Some(&whole)).await;
        assert_holds(&whole, &self.expected(&self.object));
        assert_eq!(whole["name"], made["name"]);
    }

    async fn refusals(
        &self,
        routes: &Routes,
        name: &str,
        [create, get, update, delete]: [&str; 4],
    ) {
        let id = format!("{}_id=an-id", self.field());
        let (path, value) = &self.change;
        // The change is never that of a key, so that the response shows the conflict.
        let other = with(self.object.clone(), path, value.clone());
        routes
            .fails(create, self.parent, &id, Some(&other), ALREADY_EXISTS)
            .await;
        let wrong = format!("{}_id=Not%20an%20ID", self.field());
        routes
            .fails(create, self.parent, &wrong, Some(&self.object), INVALID)
            .await;
        routes
            .fails(
                create,
                self.parent,
                "no_such_parameter=1",
                Some(&self.object),
                INVALID,
            )
            .await;
        routes
            .fails(
                create,
                self.parent,
                "",
                Some(&json!({ "noSuchField": 1 })),
                INVALID,
            )
            .await;
        routes
            .fails(create, self.parent, "", Some(&json!([1])), INVALID)
            .await;
        routes
            .fails(
                update,
                name,
                "update_mask=no_such_field",
                Some(&self.object),
                INVALID,
            )
            .await;
        routes
            .fails(
                update,
                name,
                "",
                Some(&json!({ "noSuchField": 1 })),
                INVALID,
            )
            .await;
        let missing = self.name("missing");
        routes
            .fails(update, &missing, "", Some(&self.object), NOT_FOUND)
            .await;
        routes.fails(get, &missing, "", None, NOT_FOUND).await;
        routes
            .fails(delete, &missing, "allow_missing=maybe", None, INVALID)
            .await;
    }
}
