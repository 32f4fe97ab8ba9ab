//! The fields of a request, those of the messages in it too.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

use crate::common::has_behaviour;

/// One field: the fields on the way to it from the request, and it.
#[derive(Clone)]
pub struct Field(Vec<FieldDescriptor>);

impl Field {
    /// All fields of a message and of those in it.
    pub fn all_of(message: &MessageDescriptor) -> Vec<Self> {
        let mut found = Vec::new();
        walk(&Self(Vec::new()), message, &mut found);
        found
    }

    /// The field itself.
    pub fn descriptor(&self) -> &FieldDescriptor {
        self.0.last().expect("a field has a way to it")
    }

    /// `nvme_subsystem.spec.nqn`; what a wrapper or a mask holds goes by the name of the wrapper.
    pub fn path(&self) -> String {
        path(&self.0)
    }

    /// Whether its value counts for nothing: only the server fills it in.
    pub fn is_ignored(&self) -> bool {
        let by_server = |field: &FieldDescriptor| {
            has_behaviour(field, "OUTPUT_ONLY") || has_behaviour(field, "IDENTIFIER")
        };
        self.0.iter().any(by_server)
    }

    /// Puts a value there, or takes the one there away.
    pub fn set(&self, message: &mut DynamicMessage, value: Option<Value>) {
        set(message, &self.0, value);
    }

    /// What an error over a value that is good by itself may name: what it goes with. A value that is
    /// bad is named itself, unless it pushes another member of a oneof aside, which then is missing.
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
            set(inner.expect("the way leads through messages"), rest, value);
        }
        ([], _) => {}
    }
}
