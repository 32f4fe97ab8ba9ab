//! `opi-spdk events`, `opi-spdk watch`.

use std::time::Duration;

use tonic::Code;

use super::output::{grid, json_object};
use super::{Connect, Connection, Failure, failure::plain};
use crate::api::own::object_service_client::ObjectServiceClient;
use crate::api::own::{
    Condition, Event, EventType, ListObjectsRequest, Object, WatchEventsRequest,
};
use crate::cli::printed;

/// Page size of list requests.
const PAGE: i32 = 250;

/// `opi-spdk events`.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_STATUS)]
pub struct EventsArgs {
    /// Events after this revision; default: events from now on
    #[arg(long, value_name = "REVISION")]
    after: Option<i64>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

/// `opi-spdk watch`.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_STATUS)]
pub struct WatchArgs {
    /// Only objects whose typed names start with this: nullVolumes, nvmeSubsystems/disks
    #[arg(default_value = "")]
    prefix: String,
    #[command(flatten)]
    connect: Connect,
}

/// Why following the events ended.
enum Ended {
    /// The reader of the standard output is gone.
    Unread,
    /// The server ended the stream with this status.
    Refused(Failure),
}

/// Runs `events`.
pub(super) async fn events(args: EventsArgs) -> Result<(), Failure> {
    let connection = args.connect.connect().await?;
    let show = |event: &Event| match args.json {
        true => json(event),
        false => Ok(Some(line(event))),
    };
    match follow(&connection, args.after, show).await? {
        Ended::Unread => Ok(()),
        Ended::Refused(failure) => Err(failure),
    }
}

/// Runs `watch`: prints the objects, then their events, and starts over after events were missed.
pub(super) async fn watch(args: WatchArgs) -> Result<(), Failure> {
    let connection = args.connect.connect().await?;
    let concerns = |name: &str| name.starts_with(&args.prefix);
    loop {
        let (objects, revision) = all(&connection).await?;
        let objects: Vec<Object> = objects
            .into_iter()
            .filter(|one| concerns(&one.typed_name))
            .collect();
        if !printed(&table(&objects)).map_err(Failure::Here)? {
            return Ok(());
        }
        let show = |event: &Event| Ok(concerns(&event.object).then(|| line(event)));
        match follow(&connection, Some(revision), show).await? {
            Ended::Unread => return Ok(()),
            Ended::Refused(Failure::Refused { status, .. })
                if status.code() == Code::OutOfRange =>
            {
                eprintln!("opi-spdk: {}", plain(status.message()));
            }
            Ended::Refused(failure) => return Err(failure),
        }
    }
}

/// Prints the text that `show` makes of each event, until the stream ends.
async fn follow(
    connection: &Connection,
    after_revision: Option<i64>,
    show: impl Fn(&Event) -> Result<Option<String>, Failure>,
) -> Result<Ended, Failure> {
    let mut client = ObjectServiceClient::new(connection.service());
    let refused = |status| Ended::Refused(Failure::refused(status, None));
    let mut events = match client
        .watch_events(WatchEventsRequest { after_revision })
        .await
    {
        Ok(events) => events.into_inner(),
        Err(status) => return Ok(refused(connection.explained(status))),
    };
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                if let Some(text) = show(&event)?
                    && !printed(&text).map_err(Failure::Here)?
                {
                    return Ok(Ended::Unread);
                }
            }
            Ok(None) => {
                let status = tonic::Status::unavailable("the server ended the stream");
                return Ok(refused(status));
            }
            Err(status) => return Ok(refused(connection.explained(status))),
        }
    }
}

/// Lists all objects. Also returns the revision to watch from.
pub(super) async fn all(connection: &Connection) -> Result<(Vec<Object>, i64), Failure> {
    let mut client = ObjectServiceClient::new(connection.service());
    let mut request = ListObjectsRequest {
        page_size: PAGE,
        page_token: String::new(),
    };
    let mut objects = Vec::new();
    let mut revision = None;
    loop {
        let answer = client.list_objects(request.clone()).await;
        let page = answer.map_err(|status| Failure::refused(connection.explained(status), None))?;
        let page = page.into_inner();
        let from = *revision.get_or_insert(page.revision);
        let is_empty = page.objects.is_empty();
        objects.extend(page.objects);
        if page.next_page_token.is_empty() || is_empty {
            return Ok((objects, from));
        }
        request.page_token = page.next_page_token;
    }
}

/// Reads the events that the server still keeps, until none arrives for `quiet`.
pub(super) async fn last(
    connection: &Connection,
    revision: i64,
    most: usize,
    quiet: Duration,
) -> Result<Vec<Event>, Failure> {
    /// Revisions to go back, tried in turn: the server refuses a revision older than its log, and a revision has one
    /// event or more.
    const BACK: [i64; 8] = [i64::MAX, 4096, 2048, 1024, 256, 64, 8, 0];
    let refused = |status| Failure::refused(connection.explained(status), None);
    let mut client = ObjectServiceClient::new(connection.service());
    let mut stream = None;
    for back in BACK {
        let after_revision = Some(revision.saturating_sub(back).max(0));
        match client
            .watch_events(WatchEventsRequest { after_revision })
            .await
        {
            Ok(events) => {
                stream = Some(events.into_inner());
                break;
            }
            Err(status) if status.code() == Code::OutOfRange => {}
            Err(status) => return Err(refused(status)),
        }
    }
    let mut found = Vec::new();
    let Some(mut stream) = stream else {
        return Ok(found);
    };
    while found.len() < most {
        match tokio::time::timeout(quiet, stream.message()).await {
            Ok(Ok(Some(event))) => found.push(event),
            Ok(Ok(None)) | Err(_) => break,
            Ok(Err(status)) => return Err(refused(status)),
        }
    }
    Ok(found)
}

fn table(objects: &[Object]) -> String {
    let column = |header: &str, cell: fn(&Object) -> String| {
        (header.to_owned(), objects.iter().map(cell).collect())
    };
    grid(vec![
        column("NAME", |one| one.typed_name.clone()),
        column("REVISION", |one| one.revision.to_string()),
        column("CONDITION", |one| condition(one.condition())),
        column("USED BY", |one| one.used_by.join(",")),
        column("REASON", |one| one.reason.clone()),
    ])
}

fn condition(condition: Condition) -> String {
    short(condition.as_str_name(), "CONDITION_")
}

fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .to_lowercase()
        .replace('_', " ")
}

/// Formats one event as a line.
fn line(event: &Event) -> String {
    let time = event.time.map(|time| time.to_string()).unwrap_or_default();
    let what = short(event.r#type().as_str_name(), "EVENT_TYPE_");
    let more = match event.r#type() {
        EventType::ConditionChanged => condition(event.condition()),
        EventType::VolumeResized => format!("{} bytes", event.size_bytes),
        EventType::HostConnected | EventType::HostDisconnected => {
            let host = Some(event.host_nqn.as_str()).filter(|nqn| !nqn.is_empty());
            let (host, address) = (host.unwrap_or("-"), &event.address);
            format!("{host}  {address}  controller {}", event.controller_id)
        }
        _ => String::new(),
    };
    let parts = [
        time.as_str(),
        &event.revision.to_string(),
        &what,
        &event.object,
        &more,
        &event.reason,
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(plain)
        .collect();
    parts.join("  ") + "\n"
}

fn json(event: &Event) -> Result<Option<String>, Failure> {
    json_object(event).map(|json| Some(format!("{json}\n")))
}
