//! `opi-spdk get`.

use prost_reflect::{DynamicMessage, ReflectMessage, Value};

use super::kinds::{self, Kind, Verb, listed};
use super::output::{Form, show};
use super::reference::Reference;
use super::{Connect, Connection, Failure, KindParser};

/// Page size of list requests.
const PAGE: i32 = 100;

/// `opi-spdk get`.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_STATUS)]
pub struct Args {
    /// The kind, or a name: nullVolumes, null-volume, nvmeSubsystems/ID/nvmeNamespaces; the word volumes for volumes
    /// of all kinds; default: all objects
    #[arg(value_parser = KindParser)]
    kind: Option<String>,
    /// The ID or the name of one object; ID/ID for an object within another
    name: Option<String>,
    /// Only objects within this one
    #[arg(long, value_name = "NAME", requires = "kind")]
    parent: Option<String>,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    #[command(flatten)]
    connect: Connect,
}

/// The collection in the names of volumes of every kind.
const VOLUMES: &str = "volumes";

/// Runs the subcommand.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    if let Some(name) = volume_of(&args) {
        let connection = args.connect.connect().await?;
        return volumes(&connection, args.output, name.as_deref()).await;
    }
    let reference = args
        .kind
        .as_deref()
        .map(|kind| Reference::parse(kind, args.name.as_deref(), args.parent.as_deref()));
    let reference = reference.transpose()?;
    let connection = args.connect.connect().await?;
    let Some(Reference { kind, parent, name }) = reference else {
        return list_of(args.output, &everything(&connection).await?);
    };
    match name {
        Some(name) => {
            let object = ask(&connection, kind, Verb::Get, &name).await?;
            show(args.output, &[object], true)
        }
        None => list_of(args.output, &all_of(&connection, kind, &parent).await?),
    }
}

/// Shows a list. An empty table would print nothing, so a message is printed instead.
fn list_of(form: Form, objects: &[DynamicMessage]) -> Result<(), Failure> {
    if objects.is_empty() && form == Form::Table {
        eprintln!("opi-spdk: there are none");
    }
    show(form, objects, false)
}

/// The name of a volume that is requested without its kind: `Some(None)` for all volumes, `None` if the kind is given.
fn volume_of(args: &Args) -> Option<Option<String>> {
    let kind = args.kind.as_deref()?;
    let id = match (kind.split_once('/'), args.name.as_deref()) {
        (None, id) if kind == VOLUMES => id,
        (Some((VOLUMES, id)), None) if !id.is_empty() => Some(id),
        _ => return None,
    };
    Some(id.map(|id| match id.starts_with("volumes/") {
        true => id.to_owned(),
        false => format!("{VOLUMES}/{id}"),
    }))
}

/// Shows volumes of all kinds: every one, or the one of this name.
async fn volumes(connection: &Connection, form: Form, name: Option<&str>) -> Result<(), Failure> {
    let mut found = all_of_kinds(connection, Kind::is_volume).await?;
    found.retain(|object| name.is_none_or(|name| name_of(object) == name));
    match name {
        None => list_of(form, &found),
        Some(name) if found.is_empty() => {
            let what = format!("there is no volume {name:?}");
            Err(Failure::refused(tonic::Status::not_found(what), None))
        }
        Some(_) => show(form, &found, found.len() == 1),
    }
}

/// Calls a method that takes only the name of an object.
pub(super) async fn ask(
    connection: &Connection,
    kind: &Kind,
    verb: Verb,
    name: &str,
) -> Result<DynamicMessage, Failure> {
    let method = kind.needed(verb)?;
    let mut request = DynamicMessage::new(method.input());
    request.set_field_by_name("name", Value::String(name.to_owned()));
    let answer = connection.call(method, request).await;
    answer.map_err(|status| Failure::refused(status, None))
}

/// Lists all objects of all kinds.
pub(super) async fn everything(connection: &Connection) -> Result<Vec<DynamicMessage>, Failure> {
    all_of_kinds(connection, |_| true).await
}

/// Lists all objects of these kinds.
async fn all_of_kinds(
    connection: &Connection,
    is_wanted: impl Fn(&Kind) -> bool,
) -> Result<Vec<DynamicMessage>, Failure> {
    let mut found = Vec::new();
    for kind in kinds::all()
        .iter()
        .filter(|kind| kind.method(Verb::List).is_some() && is_wanted(kind))
    {
        match all_of(connection, kind, "").await {
            Ok(objects) => found.extend(objects),
            // An older server does not have all kinds.
            Err(Failure::Refused { status, .. }) if status.code() == tonic::Code::Unimplemented => {
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(found)
}

/// Lists the objects of a kind within one parent, or within all parents if none is given.
pub(super) async fn all_of(
    connection: &Connection,
    kind: &Kind,
    parent: &str,
) -> Result<Vec<DynamicMessage>, Failure> {
    let above = kind
        .collections
        .split_last()
        .map_or(&[][..], |(_, above)| above);
    if above.is_empty() || !parent.is_empty() {
        return list(connection, kind, parent).await;
    }
    let collections: Vec<&str> = above.iter().map(String::as_str).collect();
    let Some(parents) = kinds::of_collections(&collections) else {
        let what = format!(
            "{} are within {}: give --parent",
            kind.plural(),
            above.join("/")
        );
        return Err(Failure::Usage(what));
    };
    let mut found = Vec::new();
    for parent in Box::pin(all_of(connection, parents, "")).await? {
        match list(connection, kind, &name_of(&parent)).await {
            Ok(objects) => found.extend(objects),
            // The parent was deleted in the meantime.
            Err(Failure::Refused { status, .. }) if status.code() == tonic::Code::NotFound => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(found)
}

async fn list(
    connection: &Connection,
    kind: &Kind,
    parent: &str,
) -> Result<Vec<DynamicMessage>, Failure> {
    let method = kind.needed(Verb::List)?;
    let Some(field) = listed(method, &kind.message) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let mut request = DynamicMessage::new(method.input());
        let has = |name: &str| request.descriptor().get_field_by_name(name).is_some();
        let (is_paged, has_parent) = (has("page_token"), has("parent") && !parent.is_empty());
        if is_paged {
            request.set_field_by_name("page_size", Value::I32(PAGE));
            request.set_field_by_name("page_token", Value::String(token));
        }
        if has_parent {
            request.set_field_by_name("parent", Value::String(parent.to_owned()));
        }
        let answer = connection.call(method, request).await;
        let answer = answer.map_err(|status| Failure::refused(status, None))?;
        let objects = answer.get_field(&field).into_owned();
        let before = found.len();
        if let Value::List(objects) = objects {
            found.extend(
                objects
                    .into_iter()
                    .filter_map(|one| one.as_message().cloned()),
            );
        }
        let next = answer.get_field_by_name("next_page_token");
        token = next
            .and_then(|next| Some(next.as_str()?.to_owned()))
            .unwrap_or_default();
        // An empty page with a next-page token would loop forever.
        if token.is_empty() || found.len() == before {
            return Ok(found);
        }
    }
}

/// The name of an object.
pub(super) fn name_of(object: &DynamicMessage) -> String {
    let name = object.get_field_by_name("name");
    name.and_then(|name| Some(name.as_str()?.to_owned()))
        .unwrap_or_default()
}
