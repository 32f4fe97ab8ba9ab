//! The six verbs of any resource kind, derived from the API's descriptors.

use opi_spdk::api;
use prost_reflect::{Kind, MessageDescriptor, MethodDescriptor};
use serde_json::{Map, Value, json};
use tonic::{Code, Status};

use super::client::{Client, find_method};

/// Returns the message descriptor of a kind, in any package.
pub fn kind_of(message: &str) -> MessageDescriptor {
    let create = find_method(&format!("Create{message}"));
    let name = format!("{}.{message}", create.parent_service().package_name());
    let found = api::pool().get_message_by_name(&name);
    found.unwrap_or_else(|| panic!("the API has no kind {message}"))
}

/// One resource kind, through one client.
#[derive(Clone)]
pub struct Resource {
    /// The client.
    pub client: Client,
    /// The message, such as `NullVolume`.
    pub message: &'static str,
    /// The field of requests, such as `null_volume`.
    pub field: String,
    /// The repeated field of list responses, such as `null_volumes`.
    items: String,
    list: MethodDescriptor,
    /// Whether objects of the kind have a parent.
    pub nested: bool,
}

impl Resource {
    /// Finds the kind by the name of its message.
    pub fn new(client: &Client, message: &'static str) -> Self {
        let create = find_method(&format!("Create{message}"));
        let full_name = kind_of(message).full_name().to_owned();
        let holds =
            |kind: Kind| matches!(kind, Kind::Message(held) if held.full_name() == full_name);
        let field = create.input().fields().find(|f| holds(f.kind()));
        let lists = api::pool()
            .services()
            .flat_map(|s| s.methods().collect::<Vec<_>>());
        let (list, items) = lists
            .filter(|method| method.name().starts_with("List"))
            .find_map(|method| {
                let items = method.output().fields().find(|f| holds(f.kind()))?;
                Some((method, items.name().to_owned()))
            })
            .unwrap_or_else(|| panic!("nothing lists {message}"));
        Self {
            client: client.clone(),
            message,
            field: field.expect("create takes the object").name().to_owned(),
            items,
            list,
            nested: create.input().get_field_by_name("parent").is_some(),
        }
    }

    /// Returns the possible parents of objects: all existing parents, or the empty name for flat kinds.
    pub async fn parents(&self) -> Vec<String> {
        let parent = match self.message {
            _ if !self.nested => return vec![String::new()],
            "NvmePath" | "NvmeCredential" => "NvmeRemoteController",
            _ => "NvmeSubsystem",
        };
        Self::new(&self.client, parent).names("").await
    }

    /// Returns the methods of the kind's verbs.
    pub fn methods(&self) -> Vec<MethodDescriptor> {
        let verbs = ["Create", "Get", "Update", "Delete", "Stats"];
        let mut methods: Vec<_> = verbs
            .iter()
            .map(|verb| find_method(&format!("{verb}{}", self.message)))
            .collect();
        methods.push(self.list.clone());
        methods
    }

    /// Returns the method name of a verb.
    pub fn method(&self, verb: &str) -> String {
        match verb {
            "List" => self.list.name().to_owned(),
            _ => format!("{verb}{}", self.message),
        }
    }

    /// Builds a create request; `parent` is used by nested kinds only.
    pub fn create_request(&self, parent: &str, id: &str, object: Value) -> Value {
        let mut request = Map::new();
        if self.nested {
            request.insert("parent".into(), parent.into());
        }
        request.insert(format!("{}_id", self.field), id.into());
        request.insert(self.field.clone(), object);
        request.into()
    }

    /// Builds an update request.
    pub fn update_request(&self, name: &str, mut object: Value, mask: Option<&[&str]>) -> Value {
        object["name"] = name.into();
        let mut request = json!({ self.field.clone(): object });
        if let Some(paths) = mask {
            // A FieldMask in JSON is a comma-separated list of camelCase paths.
            request["update_mask"] = paths
                .iter()
                .map(|path| camel(path))
                .collect::<Vec<_>>()
                .join(",")
                .into();
        }
        request
    }

    /// Builds a list request.
    pub fn list_request(&self, parent: &str, page_size: i64, page_token: &str) -> Value {
        let mut request = json!({ "page_size": page_size, "page_token": page_token });
        if self.list.input().get_field_by_name("parent").is_some() {
            request["parent"] = if self.nested { parent } else { "todo" }.into();
        }
        request
    }

    /// Creates an object.
    pub async fn create(&self, parent: &str, id: &str, object: Value) -> Result<Value, Status> {
        let request = self.create_request(parent, id, object);
        self.client.call(&self.method("Create"), request).await
    }

    /// Creates an object; must succeed.
    pub async fn created(&self, parent: &str, id: &str, object: Value) -> Value {
        let request = self.create_request(parent, id, object);
        self.client.ok(&self.method("Create"), request).await
    }

    /// Creates an object; must fail with `code`. Returns the status.
    pub async fn refused(&self, parent: &str, id: &str, object: Value, code: Code) -> Status {
        let request = self.create_request(parent, id, object);
        self.client
            .fails(&self.method("Create"), request, code)
            .await
    }

    /// Reads an object.
    pub async fn get(&self, name: &str) -> Result<Value, Status> {
        self.client
            .call(&self.method("Get"), json!({ "name": name }))
            .await
    }

    /// Updates an object.
    pub async fn update(
        &self,
        name: &str,
        object: Value,
        mask: Option<&[&str]>,
    ) -> Result<Value, Status> {
        let request = self.update_request(name, object, mask);
        self.client.call(&self.method("Update"), request).await
    }

    /// Updates an object; must succeed.
    pub async fn updated(&self, name: &str, object: Value, mask: Option<&[&str]>) -> Value {
        let request = self.update_request(name, object, mask);
        self.client.ok(&self.method("Update"), request).await
    }

    /// Updates an object; must fail with `code`. Returns the status.
    pub async fn update_refused(
        &self,
        name: &str,
        object: Value,
        mask: Option<&[&str]>,
        code: Code,
    ) -> Status {
        let request = self.update_request(name, object, mask);
        self.client
            .fails(&self.method("Update"), request, code)
            .await
    }

    /// Deletes an object.
    pub async fn delete(&self, name: &str) -> Result<(), Status> {
        let request = json!({ "name": name });
        self.client
            .call(&self.method("Delete"), request)
            .await
            .map(drop)
    }

    /// Deletes an object; must succeed.
    pub async fn deleted(&self, name: &str) {
        self.client
            .ok(&self.method("Delete"), json!({ "name": name }))
            .await;
    }

    /// Returns the statistics of an object.
    pub async fn stats(&self, name: &str) -> Value {
        let request = json!({ "name": name });
        self.client.ok(&self.method("Stats"), request).await["stats"].take()
    }

    /// Returns one page and the token of the next.
    pub async fn page(&self, parent: &str, size: i64, token: &str) -> (Vec<Value>, String) {
        let request = self.list_request(parent, size, token);
        let mut answer = self.client.ok(&self.method("List"), request).await;
        let items = answer[&self.items].take();
        let token = answer["next_page_token"]
            .as_str()
            .expect("a token")
            .to_owned();
        (items.as_array().expect("a list").clone(), token)
    }

    /// Lists all pages.
    pub async fn list(&self, parent: &str) -> Vec<Value> {
        let (mut all, mut token) = self.page(parent, 0, "").await;
        while !token.is_empty() {
            let (items, next) = self.page(parent, 0, &token).await;
            all.extend(items);
            token = next;
        }
        all
    }

    /// Lists the names of all objects.
    pub async fn names(&self, parent: &str) -> Vec<String> {
        let all = self.list(parent).await;
        all.iter().map(name_of).collect()
    }
}

/// Returns an object's name.
pub fn name_of(object: &Value) -> String {
    object["name"]
        .as_str()
        .expect("objects have names")
        .to_owned()
}

/// Converts `spec.host_nsid` to `spec.hostNsid`.
fn camel(path: &str) -> String {
    let mut out = String::new();
    let mut upper = false;
    for c in path.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.push(c.to_ascii_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out
}
