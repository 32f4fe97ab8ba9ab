//! The API's methods and the fields of their messages that name the object, from the descriptors.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost_reflect::{Kind, MessageDescriptor, MethodDescriptor};

use super::wire;
use crate::api;

/// A method.
#[derive(Debug)]
pub(super) struct Method {
    /// gRPC path without the leading slash.
    pub(super) name: String,
    /// Whether it may change something.
    pub(super) changes: bool,
    /// Location of the object's name in the request.
    request: Place,
    /// Field of the object's name in the response: for created objects.
    answer: Option<u32>,
}

/// Location of an object's name in a request.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// The request names no object.
    Nowhere,
    /// In this field.
    Field(u32),
    /// A field of a nested message.
    Inside { message: u32, name: u32 },
    /// The object is being created: its parent and its ID.
    New {
        parent: Option<u32>,
        id: Option<u32>,
    },
}

static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(|| {
    let methods = api::pool()
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>());
    let methods = methods.map(|method| Method::new(&method));
    methods
        .map(|method| (format!("/{}", method.name), method))
        .collect()
});

/// Finds a method by its gRPC path.
pub(super) fn find(path: &str) -> Option<&'static Method> {
    METHODS.get(path)
}

impl Method {
    fn new(method: &MethodDescriptor) -> Self {
        let (input, output) = (method.input(), method.output());
        let verb = method.name();
        let number = |message: &MessageDescriptor, name: &str| {
            let field = message.get_field_by_name(name)?;
            (field.kind() == Kind::String && !field.is_list()).then(|| field.number())
        };
        let inside = || {
            let mut fields = input.fields();
            fields.find_map(|field| match field.kind() {
                Kind::Message(message) if message == output => Some(Place::Inside {
                    message: field.number(),
                    name: number(&message, "name")?,
                }),
                _ => None,
            })
        };
        let own_id = || {
            let mut fields = input.fields();
            let field = fields.find(|field| field.name().ends_with("_id"))?;
            Some(field.number())
        };
        let request = if verb.starts_with("Create") {
            Place::New {
                parent: number(&input, "parent"),
                id: own_id(),
            }
        } else {
            let named = number(&input, "name").or_else(|| number(&input, "parent"));
            named
                .map(Place::Field)
                .or_else(inside)
                .unwrap_or(Place::Nowhere)
        };
        Self {
            name: format!("{}/{verb}", method.parent_service().full_name()),
            changes: !api::is_read(method),
            answer: verb
                .starts_with("Create")
                .then(|| number(&output, "name"))
                .flatten(),
            request,
        }
    }

    /// Whether the request or the response names an object.
    pub(super) fn names(&self, is_answer: bool) -> bool {
        match is_answer {
            true => self.answer.is_some(),
            false => self.request != Place::Nowhere,
        }
    }

    /// The name of the object in a request or a response.
    pub(super) fn object(&self, message: &[u8], is_answer: bool) -> Option<String> {
        if is_answer {
            return wire::text(message, self.answer?);
        }
        match self.request {
            Place::Nowhere => None,
            Place::Field(number) => wire::text(message, number),
            Place::Inside { message: at, name } => wire::text(wire::field(message, at)?, name),
            Place::New { parent, id } => {
                let part = |number: Option<u32>| wire::text(message, number?);
                match (part(parent), part(id)) {
                    (Some(parent), Some(id)) => Some(format!("{parent}/{id}")),
                    (parent, id) => parent.or(id),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_method_names_its_object_and_reads_change_nothing() {
        assert!(METHODS.len() > 60, "{}", METHODS.len());
        for (path, method) in METHODS.iter() {
            let verb = path.rsplit('/').next().unwrap_or_default();
            let creates = verb.starts_with("Create");
            assert_eq!(method.names(true), creates, "{path}");
            let change = ["Create", "Update", "Delete", "Reset", "Disconnect", "Rekey"];
            let is_change = change.iter().any(|change| verb.starts_with(change));
            assert_eq!(method.changes, is_change, "{path}");
            if method.changes {
                assert!(method.names(false), "{path} names no object");
            }
            if let Place::New { id, .. } = method.request {
                assert!(id.is_some(), "{path} has no id");
            }
        }
    }
}
