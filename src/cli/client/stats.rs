//! `opi-spdk stats`.

use serde_json::{Value as Json, json};

use super::get::{all_of, ask, name_of};
use super::kinds::{Kind, Verb};
use super::output::{Form, grid, structured};
use super::reference::Reference;
use super::{Connect, Connection, Failure, KindParser};
use crate::cli::print;
use crate::gateway::json_of;

/// `opi-spdk stats`.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_STATUS)]
/// Show the API's counters. They have 32 bits and saturate, which a table shows as `>=`. GET /metrics has all counters
/// in 64 bits, and times in seconds.
pub struct Args {
    /// The kind, or a full name
    #[arg(value_parser = KindParser)]
    kind: String,
    /// The ID or the name of one object; default: all objects of the kind
    name: Option<String>,
    /// Only objects within this one
    #[arg(long, value_name = "NAME")]
    parent: Option<String>,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the subcommand. With several objects, those without counters at the moment are reported and skipped.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let reference = Reference::parse(&args.kind, args.name.as_deref(), args.parent.as_deref())?;
    let kind = reference.kind;
    kind.needed(Verb::Stats)?;
    let connection = args.connect.connect().await?;
    if let Some(name) = reference.name {
        let stats = of(&connection, kind, &name).await?;
        return shown(args.output, &[(name, stats)], true);
    }
    let mut all = Vec::new();
    for object in all_of(&connection, kind, &reference.parent).await? {
        let name = name_of(&object);
        match of(&connection, kind, &name).await {
            Ok(stats) => all.push((name, stats)),
            Err(failure) => eprintln!("opi-spdk: {name}: {failure}"),
        }
    }
    shown(args.output, &all, false)
}

async fn of(connection: &Connection, kind: &Kind, name: &str) -> Result<Json, Failure> {
    let answer = ask(connection, kind, Verb::Stats, name).await?;
    json_of(&answer).map_err(|error| Failure::Here(error.to_string()))
}

fn shown(form: Form, all: &[(String, Json)], is_one: bool) -> Result<(), Failure> {
    let text = match form {
        Form::Table => table(all),
        Form::Json | Form::Yaml => {
            let named = |(name, stats): &(String, Json)| {
                let mut json = json!({ "name": name });
                if let (Some(all), Some(stats)) = (json.as_object_mut(), stats.as_object()) {
                    all.extend(stats.clone());
                }
                json
            };
            structured(form, all.iter().map(named).collect(), is_one)?
        }
    };
    print(&text).map_err(Failure::Here)
}

/// Collects the counters of a response, at any depth, with their names.
fn counters(json: &Json, found: &mut Vec<(String, String)>) {
    let Json::Object(object) = json else {
        return;
    };
    for (name, value) in object {
        match value {
            Json::Object(_) => counters(value, found),
            Json::String(text) => found.push((name.clone(), text.clone())),
            Json::Null | Json::Array(_) => {}
            // The API's counters saturate at 32 bits.
            Json::Number(number) if number.as_i64() == Some(i32::MAX.into()) => {
                found.push((name.clone(), format!(">={number}")));
            }
            other => found.push((name.clone(), other.to_string())),
        }
    }
}

fn table(all: &[(String, Json)]) -> String {
    let rows: Vec<Vec<(String, String)>> = all
        .iter()
        .map(|(_, stats)| {
            let mut found = Vec::new();
            counters(stats, &mut found);
            found
        })
        .collect();
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flatten() {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut columns = vec![(
        "NAME".to_owned(),
        all.iter().map(|(name, _)| name.clone()).collect(),
    )];
    for name in names {
        let of = |row: &Vec<(String, String)>| {
            let found = row.iter().find(|(other, _)| other == name);
            found.map_or_else(String::new, |(_, value)| value.clone())
        };
        columns.push((header(name), rows.iter().map(of).collect()));
    }
    grid(columns)
}

/// `readBytesCount` as `READ_BYTES`.
fn header(name: &str) -> String {
    let mut header = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            header.push('_');
        }
        header.extend(letter.to_uppercase());
    }
    let short = header.strip_suffix("_COUNT").map(str::to_owned);
    short.unwrap_or(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_columns_whichever_message_they_are_in() {
        let stats = json!({"stats": {"readOpsCount": 3, "writeBytesCount": "4"}});
        let text = table(&[("volumes/a".to_owned(), stats)]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], ["NAME", "READ_OPS", "WRITE_BYTES"]);
        assert_eq!(lines[1], ["volumes/a", "3", "4"]);
    }
}
