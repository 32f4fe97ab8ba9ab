//! `opi-spdk create`, `update`, `delete`.

use std::collections::HashSet;
use std::path::PathBuf;

use futures_util::future::join_all;
use prost_reflect::{DynamicMessage, MethodDescriptor, Value};

use super::kinds::{Kind, Verb};
use super::output::{Form, show};
use super::reference::Reference;
use super::{Connect, Connection, Failure, KindParser, fields, file};
use crate::cli::print;
use crate::gateway::paths_in;

/// Source of the objects' fields.
#[derive(Debug, clap::Args)]
struct Source {
    /// Fields: block_size=512 spec.nqn=nqn.2016-06.io.spdk:a trtype=tcp; key=@FILE reads a file, @- the standard input
    #[arg(value_name = "KEY=VALUE")]
    fields: Vec<String>,
    /// JSON or YAML: an object, a list of objects, or several YAML documents; - is the standard input. Each object is
    /// identified by its name (nullVolumes/ID) or by kind and name, unless KIND and ID are given
    #[arg(short, long, value_name = "FILE", conflicts_with = "fields")]
    file: Option<PathBuf>,
    /// The form of the answer; default: only the names of the objects
    #[arg(short, long, value_enum)]
    output: Option<Form>,
}

/// `opi-spdk create`.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_STATUS)]
pub struct CreateArgs {
    /// The kind, such as null-volume or nvmeNamespaces
    #[arg(value_parser = KindParser, required_unless_present = "file")]
    kind: Option<String>,
    /// The object's ID; ID/ID for an object within another
    #[arg(required_unless_present = "file")]
    id: Option<String>,
    /// The parent object
    #[arg(long, value_name = "NAME", requires = "kind")]
    parent: Option<String>,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    connect: Connect,
}

/// `opi-spdk update`.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_STATUS)]
pub struct UpdateArgs {
    /// The kind, or a full name
    #[arg(value_parser = KindParser, required_unless_present = "file")]
    kind: Option<String>,
    /// The ID or the name of the object; ID/ID for an object within another
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// The parent object
    #[arg(long, value_name = "NAME", requires = "kind")]
    parent: Option<String>,
    /// The fields to change, if not exactly the given ones
    #[arg(long, value_name = "FIELD,...")]
    mask: Option<String>,
    /// Create the object if it does not exist
    #[arg(long)]
    allow_missing: bool,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    connect: Connect,
}

/// `opi-spdk delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_STATUS)]
pub struct DeleteArgs {
    /// The kind, or a full name
    #[arg(value_parser = KindParser)]
    kind: String,
    /// The IDs or the names of the objects; ID/ID for objects within another
    names: Vec<String>,
    /// The parent of the objects
    #[arg(long, value_name = "NAME")]
    parent: Option<String>,
    /// Succeed also for objects that do not exist
    #[arg(long)]
    allow_missing: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Creates in flight at most.
const AT_ONCE: usize = 32;

/// An object to be created or updated.
struct Wanted {
    kind: &'static Kind,
    name: String,
    object: DynamicMessage,
    /// Paths of the fields that were given.
    paths: Vec<String>,
}

/// Parses the objects of a command line.
fn wanted(
    source: &mut Source,
    verb: Verb,
    kind: Option<&str>,
    name: Option<&str>,
    parent: Option<&str>,
) -> Result<Vec<Wanted>, Failure> {
    // After a full name the next argument is already the first field.
    let name = match (kind, name) {
        (Some(kind), Some(field)) if kind.contains('/') && field.contains('=') => {
            source.fields.insert(0, field.to_owned());
            None
        }
        (_, name) => name,
    };
    let said = kind
        .map(|kind| Reference::parse(kind, name, parent))
        .transpose()?;
    let Some(file) = &source.file else {
        let reference = said.ok_or_else(|| Failure::Usage("there is no kind".to_owned()))?;
        let (kind, name) = named(reference, verb)?;
        let mut object = DynamicMessage::new(kind.message.clone());
        let paths = fields::apply(&mut object, &kind.message, &source.fields)?;
        return Ok(vec![Wanted {
            kind,
            name,
            object,
            paths,
        }]);
    };
    let given = file::read(file)?;
    if said.is_some() && given.len() > 1 {
        return Err(Failure::Usage(format!(
            "{} has {} objects, and KIND and ID are one",
            file.display(),
            given.len()
        )));
    }
    let mut said = said;
    let mut all = Vec::with_capacity(given.len());
    for (at, one) in given.into_iter().enumerate() {
        let place = || format!("{}: object {}", file.display(), at + 1);
        let reference = said.take().or(one.reference);
        let reference = reference.ok_or_else(|| {
            Failure::Here(format!(
                "{}: neither kind nor a name such as nullVolumes/ID says what it is",
                place()
            ))
        })?;
        let (kind, name) = named(reference, verb)?;
        let object = file::message(&kind.message, &one.json);
        let object = object.map_err(|reason| Failure::Here(format!("{}: {reason}", place())))?;
        let paths = paths_in(&kind.message, &one.json);
        let paths = paths.into_iter().filter(|path| path != "name").collect();
        all.push(Wanted {
            kind,
            name,
            object,
            paths,
        });
    }
    Ok(all)
}

/// A reference to exactly one object. A create may omit the ID, which the server then assigns.
fn named(reference: Reference, verb: Verb) -> Result<(&'static Kind, String), Failure> {
    reference.kind.needed(verb)?;
    match reference.name {
        Some(name) => Ok((reference.kind, name)),
        None => Err(Failure::Usage(format!(
            "which of {} is it: give its ID",
            reference.kind.plural()
        ))),
    }
}

/// Runs `create`.
pub(super) async fn create(mut args: CreateArgs) -> Result<(), Failure> {
    let (kind, id, parent) = (
        args.kind.as_deref(),
        args.id.as_deref(),
        args.parent.as_deref(),
    );
    let wanted = wanted(&mut args.source, Verb::Create, kind, id, parent)?;
    let connection = args.connect.connect().await?;
    let is_one = wanted.len() == 1;
    let mut made = Vec::with_capacity(wanted.len());
    let mut rest = wanted.as_slice();
    while !rest.is_empty() {
        let (now, after) = rest.split_at(concurrent_prefix(rest));
        let answers = join_all(now.iter().map(|one| create_one(&connection, one, is_one))).await;
        for answer in answers {
            made.push(answer?);
        }
        rest = after;
    }
    print_names(args.source.output, &made, is_one, "created")
}

/// Creates one object.
async fn create_one(
    connection: &Connection,
    one: &Wanted,
    is_one: bool,
) -> Result<DynamicMessage, Failure> {
    let Wanted {
        kind, name, object, ..
    } = one;
    let method = kind.needed(Verb::Create)?;
    let (above, id) = split(kind, name);
    let mut request = DynamicMessage::new(method.input());
    let field = set_object(kind, method, &mut request, object.clone())?;
    request.set_field_by_name(&format!("{field}_id"), Value::String(id.to_owned()));
    if kind.collections.len() > 1 {
        request.set_field_by_name("parent", Value::String(above.to_owned()));
    }
    send(connection, method, request, &field, name, is_one).await
}

/// How many leading objects can be created concurrently: a run of one kind in which no object refers to an earlier
/// one. An object of another kind may depend on them, as a child or as a user.
fn concurrent_prefix(wanted: &[Wanted]) -> usize {
    let mut ids = HashSet::new();
    let first = wanted.first().map(|one| one.kind.plural());
    let alike = wanted.iter().take(AT_ONCE).take_while(|one| {
        let (_, id) = split(one.kind, &one.name);
        let names_none = !refers_to(&Value::Message(one.object.clone()), &ids);
        let is_alike = Some(one.kind.plural()) == first && names_none;
        // A duplicate ID is left to the server to refuse, in order.
        is_alike && ids.insert(id.to_owned())
    });
    alike.count().max(1)
}

/// Whether a string in the object ends with one of the IDs, which makes it a reference to that object.
fn refers_to(value: &Value, ids: &HashSet<String>) -> bool {
    match value {
        Value::String(text) => {
            let id = text.rsplit_once('/').map_or(text.as_str(), |(_, id)| id);
            ids.contains(id)
        }
        Value::Message(message) => message.fields().any(|(_, value)| refers_to(value, ids)),
        Value::List(values) => values.iter().any(|value| refers_to(value, ids)),
        Value::Map(values) => values.values().any(|value| refers_to(value, ids)),
        _ => false,
    }
}

/// Runs `update`.
pub(super) async fn update(mut args: UpdateArgs) -> Result<(), Failure> {
    let (kind, name, parent) = (
        args.kind.as_deref(),
        args.name.as_deref(),
        args.parent.as_deref(),
    );
    let wanted = wanted(&mut args.source, Verb::Update, kind, name, parent)?;
    let mask = args
        .mask
        .as_deref()
        .map(|mask| mask.split(',').map(str::to_owned).collect());
    let connection = args.connect.connect().await?;
    let is_one = wanted.len() == 1;
    let mut changed = Vec::new();
    for one in wanted {
        let Wanted {
            kind,
            name,
            mut object,
            paths,
        } = one;
        let method = kind.needed(Verb::Update)?;
        object.set_field_by_name("name", Value::String(name.clone()));
        let mut request = DynamicMessage::new(method.input());
        let field = set_object(kind, method, &mut request, object)?;
        let paths: Vec<String> = mask.clone().unwrap_or(paths);
        if paths.is_empty() {
            return Err(Failure::Usage(format!(
                "{name}: there is no field to change"
            )));
        }
        set_mask(&mut request, &paths);
        if args.allow_missing {
            request.set_field_by_name("allow_missing", Value::Bool(true));
        }
        changed.push(send(&connection, method, request, &field, &name, is_one).await?);
    }
    print_names(args.source.output, &changed, is_one, "updated")
}

/// Runs `delete`. A failed delete does not stop the following ones; the first failure is the exit status.
pub(super) async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    let parent = args.parent.as_deref();
    let parse = |name: Option<&str>| {
        Reference::parse(&args.kind, name, parent).and_then(|found| named(found, Verb::Delete))
    };
    let wanted: Vec<(&Kind, String)> = match args.names.as_slice() {
        [] => vec![parse(None)?],
        names => names
            .iter()
            .map(|name| parse(Some(name)))
            .collect::<Result<_, _>>()?,
    };
    let connection = args.connect.connect().await?;
    let mut failed = None;
    for (kind, name) in wanted {
        let method = kind.needed(Verb::Delete)?;
        let mut request = DynamicMessage::new(method.input());
        request.set_field_by_name("name", Value::String(name.clone()));
        if args.allow_missing {
            request.set_field_by_name("allow_missing", Value::Bool(true));
        }
        match connection.call(method, request).await {
            Ok(_) => print(&format!("{name} deleted\n")).map_err(Failure::Here)?,
            Err(status) => {
                let failure = Failure::refused(status, None);
                // The first failure is returned at the end and sets the exit status.
                match failed {
                    None => failed = Some(failure),
                    Some(_) => eprintln!("opi-spdk: {failure}"),
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Splits a name into the parent's name and the ID.
fn split<'a>(kind: &Kind, name: &'a str) -> (&'a str, &'a str) {
    let end = format!("/{}/", kind.plural());
    if let Some((parent, id)) = name.rsplit_once(end.as_str()) {
        return (parent, id);
    }
    ("", name.rsplit_once('/').map_or(name, |(_, id)| id))
}

/// Sets the object in its field of a request. Returns the field's name.
fn set_object(
    kind: &Kind,
    method: &MethodDescriptor,
    request: &mut DynamicMessage,
    object: DynamicMessage,
) -> Result<String, Failure> {
    let field = kind.object_field(method).ok_or_else(|| {
        Failure::Usage(format!(
            "{} takes no {}",
            method.name(),
            kind.message.name()
        ))
    })?;
    request.set_field(&field, Value::Message(object));
    Ok(field.name().to_owned())
}

fn set_mask(request: &mut DynamicMessage, paths: &[String]) {
    if let Some(Value::Message(mask)) = request.get_field_by_name_mut("update_mask") {
        let paths = paths.iter().cloned().map(Value::String);
        mask.set_field_by_name("paths", Value::List(paths.collect()));
    }
}

/// Sends a change. With several objects, the failure names the object.
async fn send(
    connection: &Connection,
    method: &MethodDescriptor,
    request: DynamicMessage,
    field: &str,
    name: &str,
    is_one: bool,
) -> Result<DynamicMessage, Failure> {
    let answer = connection.call(method, request).await;
    answer.map_err(|status| {
        if !is_one {
            eprintln!("opi-spdk: {name}: it was not done, and what follows may not be");
        }
        Failure::refused(status, Some(field))
    })
}

fn print_names(
    form: Option<Form>,
    objects: &[DynamicMessage],
    is_one: bool,
    done: &str,
) -> Result<(), Failure> {
    if let Some(form) = form {
        return show(form, objects, is_one);
    }
    let lines = objects
        .iter()
        .map(|object| format!("{} {done}\n", super::get::name_of(object)));
    print(&lines.collect::<String>()).map_err(Failure::Here)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(given: &[(&str, &str, &str)]) -> Vec<Wanted> {
        let wanted = given.iter().map(|(name, field, text)| {
            let (plural, _) = name.split_once('/').expect("a name");
            let kind = super::super::kinds::find(plural).expect("a kind");
            let mut object = DynamicMessage::new(kind.message.clone());
            object.set_field_by_name(field, Value::String((*text).to_owned()));
            Wanted {
                kind,
                name: (*name).to_owned(),
                object,
                paths: Vec::new(),
            }
        });
        wanted.collect()
    }

    #[test]
    fn what_may_need_another_object_is_sent_after_it() {
        let volumes: Vec<String> = (0..40).map(|n| format!("nullVolumes/v{n}")).collect();
        let volumes: Vec<_> = volumes
            .iter()
            .map(|name| (name.as_str(), "uuid", ""))
            .collect();
        assert_eq!(concurrent_prefix(&of(&volumes)), AT_ONCE);
        let two_kinds = [
            ("nullVolumes/a", "uuid", ""),
            ("nullVolumes/b", "uuid", ""),
            ("qosVolumes/q", "volume_name_ref", "volumes/a"),
        ];
        assert_eq!(concurrent_prefix(&of(&two_kinds)), 2);
        let stacked = [
            ("qosVolumes/q", "volume_name_ref", "volumes/a"),
            ("qosVolumes/r", "volume_name_ref", "volumes/q"),
        ];
        assert_eq!(concurrent_prefix(&of(&stacked)), 1);
        let twice = [("nullVolumes/a", "uuid", ""), ("nullVolumes/a", "uuid", "")];
        assert_eq!(concurrent_prefix(&of(&twice)), 1);
    }
}
