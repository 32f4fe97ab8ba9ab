//! Authorization: whether a grant allows a call.

use prost_reflect::{DynamicMessage, Value};

use super::methods::{self, Method};
use super::policy::{Grant, Role};
use crate::error::Error;
use crate::resource::{Scope, is_of};

/// The grant that allows the method for any request, so that the request need not be decoded; the lowest of them.
pub(super) fn allowing_any_request<'a>(method: &Method, grants: &'a [Grant]) -> Option<&'a Grant> {
    let all = grants.iter().filter(|grant| grant.prefix.is_none());
    let all = all.filter(|grant| grant.role == Role::Admin || method.needs == Role::Viewer);
    all.min_by_key(|grant| grant.role)
}

/// Allows reading all objects.
///
/// # Errors
/// PERMISSION_DENIED without a grant for all objects.
pub(super) fn read_all(grants: &[Grant]) -> Result<(), Error> {
    match grants.iter().any(|grant| grant.prefix.is_none()) {
        true => Ok(()),
        false => Err(Error::PermissionDenied(format!(
            "this tells of all objects, and yours are those of {}",
            prefixes(grants)
        ))),
    }
}

/// The grant that allows a request; the lowest of them.
///
/// # Errors
/// PERMISSION_DENIED, with what would be needed.
pub(super) fn request<'a>(
    method: &Method,
    message: &DynamicMessage,
    grants: &'a [Grant],
) -> Result<&'a Grant, Error> {
    let mut refused = String::new();
    // The refusal reported is that of the highest role.
    let mut grants: Vec<&Grant> = grants.iter().collect();
    grants.sort_by_key(|grant| grant.role);
    for grant in grants {
        match allowed_by(grant, method, message) {
            Ok(()) => return Ok(grant),
            Err(reason) => refused = reason,
        }
    }
    Err(Error::PermissionDenied(format!(
        "{}: {refused}",
        method.name
    )))
}

fn allowed_by(grant: &Grant, method: &Method, message: &DynamicMessage) -> Result<(), String> {
    if grant.role < method.needs {
        let least = match method.needs {
            Role::Admin => "the role admin",
            _ => "the role operator or admin",
        };
        return Err(format!("a {} may not: it takes {least}", grant.role.name()));
    }
    if grant.role < Role::Admin && method.touches_keys(message) {
        return Err(format!(
            "a {} may not set or take away hosts and keys: it takes the role admin",
            grant.role.name()
        ));
    }
    match &grant.prefix {
        None => Ok(()),
        Some(prefix) => check_within(prefix, method, message),
    }
}

/// Checks that a request concerns only objects of a prefix.
fn check_within(prefix: &str, method: &Method, message: &DynamicMessage) -> Result<(), String> {
    if method.reaches_beyond {
        return Err(format!(
            "it reaches files or peers beyond the objects of {prefix:?}: it takes a grant without a prefix"
        ));
    }
    let mut names = Vec::new();
    match method.creates {
        // In a create request the object's own name field carries no meaning.
        true => names.push(future_owner(message)),
        false => add_names(message, &mut names),
    }
    if method.listed.is_some() {
        // `GET /v1/volumes` has this as the parent, which the kinds that it lists ignore.
        names.retain(|name| name != "volumes");
    }
    if method.is_of_machine || names.is_empty() && method.listed.is_none() {
        return Err(format!("it is not about an object of {prefix:?}"));
    }
    methods::references(message, &mut names);
    match names.iter().find(|name| !is_of(name, prefix)) {
        None => Ok(()),
        Some(name) if name.is_empty() => Err(format!("give it an ID that begins with {prefix:?}")),
        Some(name) => Err(format!("{name:?} is not of {prefix:?}")),
    }
}

/// Collects the names of the object and its parent in a request, and those in the object it contains.
fn add_names(message: &DynamicMessage, names: &mut Vec<String>) {
    for (field, value) in message.fields() {
        match value {
            Value::String(text) if matches!(field.name(), "name" | "parent") => {
                names.push(text.clone());
            }
            Value::Message(object) => {
                if let Some(name) = object.get_field_by_name("name")
                    && let Some(name) = name.as_str().filter(|name| !name.is_empty())
                {
                    names.push(name.to_owned());
                }
            }
            _ => {}
        }
    }
}

/// The name that decides the ownership of an object to be created: its parent if it has one, else its ID; empty if the
/// server is to choose the ID.
fn future_owner(message: &DynamicMessage) -> String {
    if let Some(parent) = message.get_field_by_name("parent") {
        return parent.as_str().unwrap_or_default().to_owned();
    }
    let mut fields = message.fields();
    let id = fields.find_map(|(field, value)| match value {
        Value::String(text) if field.name().ends_with("_id") => Some(text.clone()),
        _ => None,
    });
    id.unwrap_or_default()
}

/// Removes objects outside of the scope from a list response. Lists select by the scope themselves; this is for one that
/// fails to.
pub(super) fn filter(method: &Method, answer: &mut DynamicMessage, scope: &Scope) {
    let Some((_, field)) = &method.listed else {
        return;
    };
    let is_known = |object: &Value| {
        let name = object
            .as_message()
            .and_then(|object| object.get_field_by_name("name"));
        let name = name.as_deref().and_then(Value::as_str).unwrap_or_default();
        scope.has(name)
    };
    if let Value::List(objects) = answer.get_field_mut(field) {
        objects.retain(is_known);
    }
}

fn prefixes(grants: &[Grant]) -> String {
    let all = grants.iter().filter_map(|grant| grant.prefix.as_deref());
    all.map(|prefix| format!("{prefix:?}"))
        .collect::<Vec<_>>()
        .join(", ")
}
