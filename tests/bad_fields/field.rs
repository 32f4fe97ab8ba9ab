//! The fields of a request, including those of nested messages.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

use crate::common::has_behaviour;

/// One field: its path of descriptors from the request.
#[derive(Clone)]
pub struct Field(Vec<FieldDescriptor>);

impl Field {
    /// Returns all fields of a message, including those of nested messages.
    pub fn all_of(message: &MessageDescriptor) -> Vec<Self> {
        let mut found = Vec::new();
        walk(&Self(Vec::new()), message, &mut found);
        found
    }

    /// Returns the field's own descriptor.
    pub fn descriptor(&self) -> &FieldDescriptor {
        self.0.last().expect("the path is not empty")
    }

    /// Returns the field's path, such as `nvme_subsystem.spec.nqn`. The inner fields of google.protobuf
    /// wrappers and masks are left out.
    pub fn path(&self) -> String {
        path(&self.0)
    }

    /// Returns whether the server ignores the field in requests: OUTPUT_ONLY or IDENTIFIER, also of an
    /// enclosing message.
    pub fn is_ignored(&self) -> bool {
        let by_server = |field: &FieldDescriptor| {
            has_behaviour(field, "OUTPUT_ONLY") || has_behaviour(field, "IDENTIFIER")
        };
        self.0.iter().any(by_server)
    }

    /// Sets the field, or clears it if `value` is `None`.
    pub fn set(&self, message: &mut DynamicMessage, value: Option<Value>) {
        set(message, &self.0, value);
    }

    /// Returns the path that a field violation must overlap. A value that is valid on its own can only
    /// be wrong in combination: the path is that of the enclosing message. For other values it is the
    /// field's own path, unless setting the field clears another member of a oneof: then the message
    /// with the oneof may be reported, as the other member is missing.
    pub fn scope(&self, good_by_itself: bool, base: &DynamicMessage) -> String {
        let mut message = Some(base.clone());
        for (at, field) in self.0.iter().enumerate() {
            let there = message.as_ref().is_some_and(|m| m.has_field(field));
            if field.containing_oneof().is_some() && !there {
                return path(&self.0[..at]);
            }
            message = message.and_then(|m| m.get_field(field).as_message().cloned());
        }
        let own = if good_by_itself {
            &self.0[..self.0.len() - 1]
        } else {
            &self.0
        };
        path(own)
    }
}

fn walk(outer: &Field, message: &MessageDescriptor, found: &mut Vec<Field>) {
    for descriptor in message.fields() {
        let mut field = outer.clone();
        field.0.push(descriptor.clone());
        found.push(field.clone());
        if let Kind::Message(inner) = descriptor.kind()
            && !descriptor.is_list()
        {
            walk(&field, &inner, found);
        }
    }
}

fn path(fields: &[FieldDescriptor]) -> String {
    let own = fields
        .iter()
        .filter(|field| field.parent_message().package_name() != "google.protobuf");
    own.map(FieldDescriptor::name).collect::<Vec<_>>().join(".")
}

fn set(message: &mut DynamicMessage, way: &[FieldDescriptor], value: Option<Value>) {
    match (way, value) {
        ([field], Some(value)) => message.set_field(field, value),
        ([field], None) => message.clear_field(field),
        ([field, ..], None) if !message.has_field(field) => {}
        ([field, rest @ ..], value) => {
            let inner = message.get_field_mut(field).as_message_mut();
            set(
                inner.expect("every field on the path is a message"),
                rest,
                value,
            );
        }
        ([], _) => {}
    }
}
