//! Export of the state to readable JSON, and import. Each record has a checksum and the end has one of the
//! whole: a truncated or edited export is refused with the place of the error.

use std::io::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage, Value as Field};
use serde_json::{Map, Value, json};

use super::{Change, Entry};
use crate::api;

/// Version of the export format.
const VERSION: u64 = 1;

/// Names of bytes fields that hold secrets, in any message.
const SECRETS: [&str; 4] = ["psk", "key", "dhchap_key", "dhchap_ctrlr_key"];

/// Kinds that store secrets in the fields appended to their messages.
const KEEP_SECRETS: [&str; 1] = ["opi_spdk.v1.NvmeHost"];

/// A parsed export.
#[derive(Debug)]
pub struct Import {
    /// Records.
    pub entries: Vec<Entry>,
    /// Highest revision that the exported state ever had.
    pub revision: u64,
}

impl Import {
    /// Returns the changes that import everything into an empty store in one commit.
    pub fn changes(self) -> Vec<Change> {
        // Removes no record: only carries the highest revision.
        let highest = Change::Remove {
            key: String::new(),
            revision: self.revision,
        };
        let puts = self.entries.into_iter().map(Change::Put);
        puts.chain([highest]).collect()
    }
}

/// Writes an export. Without `secrets` keys are left out, and records that had one cannot be imported.
///
/// # Errors
/// One line for the operator: a record of an unknown kind, or the writer's error.
pub fn export(
    entries: &[Entry],
    revision: u64,
    secrets: bool,
    to: &mut impl Write,
) -> Result<(), String> {
    let mut checks = String::new();
    let mut records = Vec::with_capacity(entries.len());
    for entry in entries {
        let mut record = record(entry, secrets).map_err(|why| format!("{}: {why}", entry.key))?;
        let check = checksum(&Value::Object(record.clone()))?;
        checks.push_str(&check);
        record.insert("check".to_owned(), Value::String(check));
        records.push(Value::Object(record));
    }
    let mut document = Map::new();
    document.insert("opiSpdkState".to_owned(), json!(VERSION));
    document.insert("revision".to_owned(), json!(revision));
    document.insert("secrets".to_owned(), json!(secrets));
    let end = end(&document, &checks, records.len())?;
    document.insert("records".to_owned(), Value::Array(records));
    document.insert("end".to_owned(), end);
    serde_json::to_writer_pretty(&mut *to, &document).map_err(|error| error.to_string())?;
    writeln!(to).map_err(|error| error.to_string())
}

fn record(entry: &Entry, secrets: bool) -> Result<Map<String, Value>, String> {
    let descriptor = descriptor(&entry.kind)?;
    let mut hidden = false;
    let mut message = |bytes: &[u8]| -> Result<(Value, Vec<u8>), String> {
        let message = DynamicMessage::decode(descriptor.clone(), bytes);
        let mut message = message.map_err(|error| error.to_string())?;
        let mut unknown = Vec::new();
        for field in message.unknown_fields() {
            field.encode(&mut unknown);
        }
        if !secrets {
            hidden |= hide(&mut message);
        }
        let value = serde_json::to_value(&message).map_err(|error| error.to_string())?;
        Ok((value, unknown))
    };
    let (wanted, _) = message(&entry.wanted)?;
    let (object, mut kept) = message(&entry.object)?;
    if !secrets && !kept.is_empty() && KEEP_SECRETS.contains(&entry.kind.as_str()) {
        kept.clear();
        hidden = true;
    }
    let mut record = Map::new();
    record.insert("key".to_owned(), json!(entry.key));
    record.insert("kind".to_owned(), json!(entry.kind));
    record.insert("created".to_owned(), json!(entry.created));
    record.insert("revision".to_owned(), json!(entry.revision));
    record.insert("deleting".to_owned(), json!(entry.deleting));
    record.insert("wanted".to_owned(), wanted);
    record.insert("object".to_owned(), object);
    // Choices of the server that have no field in the message.
    record.insert("kept".to_owned(), json!(STANDARD.encode(kept)));
    record.insert("hidden".to_owned(), json!(hidden));
    Ok(record)
}

/// Clears the secrets of a message, also in nested messages. Returns whether there were any.
fn hide(message: &mut DynamicMessage) -> bool {
    let mut hidden = false;
    let fields: Vec<_> = message.descriptor().fields().collect();
    for field in fields.into_iter().filter(|field| !field.is_map()) {
        if !message.has_field(&field) {
            continue;
        }
        if field.kind() == Kind::Bytes && SECRETS.contains(&field.name()) {
            message.clear_field(&field);
            hidden = true;
            continue;
        }
        match message.get_field_mut(&field) {
            Field::Message(inner) => hidden |= hide(inner),
            Field::List(list) => {
                for item in list {
                    if let Field::Message(inner) = item {
                        hidden |= hide(inner);
                    }
                }
            }
            _ => {}
        }
    }
    hidden
}

/// Parses a whole export before any of it is used.
///
/// # Errors
/// One line for the operator: the place, and what is wrong there.
pub fn parse(text: &[u8]) -> Result<Import, String> {
    let document: Value =
        serde_json::from_slice(text).map_err(|error| format!("is cut or is no export: {error}"))?;
    let Value::Object(mut document) = document else {
        return Err("is no export of a state: it is no object".to_owned());
    };
    match document.get("opiSpdkState").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(other) => {
            return Err(format!(
                "has form {other}, and this opi-spdk knows form {VERSION}: import it with the version \
                 that wrote it"
            ));
        }
        None => return Err("is no export of a state: it has no opiSpdkState".to_owned()),
    }
    let Some(Value::Array(records)) = document.remove("records") else {
        return Err("has no records".to_owned());
    };
    let told_end = document.remove("end").unwrap_or_default();
    let mut entries: Vec<Entry> = Vec::with_capacity(records.len());
    let mut checks = String::new();
    for (at, value) in records.into_iter().enumerate() {
        let key = value.get("key").and_then(Value::as_str).unwrap_or_default();
        let place = format!("record {} ({key:?})", at + 1);
        let entry =
            parse_record(value, &mut checks).map_err(|reason| format!("{place}: {reason}"))?;
        if entries.last().is_some_and(|last| last.key >= entry.key) {
            return Err(format!("{place}: is not in the order of keys"));
        }
        entries.push(entry);
    }
    if told_end != end(&document, &checks, entries.len())? {
        return Err(format!(
            "was edited: its end does not fit its head and its {} records",
            entries.len()
        ));
    }
    let revision = document.get("revision").and_then(Value::as_u64);
    let revision = revision.ok_or("has no revision")?;
    if let Some(entry) = entries.iter().find(|entry| entry.revision > revision) {
        return Err(format!("{:?} is newer than the state", entry.key));
    }
    Ok(Import { entries, revision })
}

fn parse_record(value: Value, checks: &mut String) -> Result<Entry, String> {
    let Value::Object(mut record) = value else {
        return Err("is no object".to_owned());
    };
    let told = record.remove("check").unwrap_or_default();
    let check = checksum(&Value::Object(record.clone()))?;
    if told != Value::String(check.clone()) {
        return Err("was edited: its checksum does not fit".to_owned());
    }
    checks.push_str(&check);
    if record.get("hidden") != Some(&Value::Bool(false)) {
        return Err("lacks its keys: export with --with-secrets".to_owned());
    }
    let text = |field: &str| {
        let text = record.get(field).and_then(Value::as_str).map(str::to_owned);
        text.ok_or_else(|| format!("has no {field}"))
    };
    let number = |field: &str| {
        let number = record.get(field).and_then(Value::as_u64);
        number.ok_or_else(|| format!("has no {field}"))
    };
    let kind = text("kind")?;
    let descriptor = descriptor(&kind)?;
    let message = |field: &str| {
        let value = record.get(field).cloned().unwrap_or_default();
        let message = DynamicMessage::deserialize(descriptor.clone(), value);
        message
            .map(|message| message.encode_to_vec())
            .map_err(|error| format!("{field}: {error}"))
    };
    let mut object = message("object")?;
    let kept = STANDARD.decode(text("kept")?);
    object.extend(kept.map_err(|error| format!("kept: {error}"))?);
    Ok(Entry {
        key: text("key")?,
        created: number("created")?,
        revision: number("revision")?,
        deleting: record.get("deleting") == Some(&Value::Bool(true)),
        wanted: message("wanted")?,
        object,
        kind,
    })
}

fn descriptor(kind: &str) -> Result<MessageDescriptor, String> {
    let found = api::pool().get_message_by_name(kind);
    found.ok_or_else(|| format!("{kind:?} is no kind of this opi-spdk"))
}

fn end(head: &Map<String, Value>, checks: &str, records: usize) -> Result<Value, String> {
    let check = checksum(&json!([head, checks]))?;
    Ok(json!({ "records": records, "check": check }))
}

/// Detects accidental damage, not forgery.
fn checksum(value: &Value) -> Result<String, String> {
    let text = serde_json::to_vec(value).map_err(|error| error.to_string())?;
    Ok(format!("{:08x}", crc32fast::hash(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::storage::{EncryptedVolume, NullVolume, NvmeSubsystem, NvmeSubsystemSpec};

    fn entry(key: &str, kind: &str, revision: u64, message: &impl Message) -> Entry {
        Entry {
            key: key.to_owned(),
            kind: format!("opi_api.storage.v1.{kind}"),
            created: 1,
            revision,
            deleting: false,
            wanted: message.encode_to_vec(),
            object: message.encode_to_vec(),
        }
    }

    fn entries() -> Vec<Entry> {
        let encrypted = EncryptedVolume {
            name: "volumes/e".to_owned(),
            key: b"0123456789abcdef0123456789abcdef".to_vec(),
            ..EncryptedVolume::default()
        };
        let null = NullVolume {
            name: "volumes/n".to_owned(),
            block_size: 512,
            blocks_count: i64::MAX,
            ..NullVolume::default()
        };
        let subsystem = NvmeSubsystem {
            spec: Some(NvmeSubsystemSpec {
                nqn: "nqn.2022-09.io.spdk:s".to_owned(),
                psk: b"NVMeTLSkey-1:01:secret:".to_vec(),
                ..NvmeSubsystemSpec::default()
            }),
            ..NvmeSubsystem::default()
        };
        let mut entries = vec![
            entry("encryptedVolumes/e", "EncryptedVolume", 2, &encrypted),
            entry("nullVolumes/n", "NullVolume", 3, &null),
            entry("nvmeSubsystems/s", "NvmeSubsystem", 4, &subsystem),
        ];
        // Field 1000 with the value 7, as kinds append what has no field.
        entries[1].object.extend([0xC0, 0x3E, 7]);
        entries
    }

    fn exported(secrets: bool) -> String {
        let mut text = Vec::new();
        export(&entries(), 9, secrets, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn an_export_with_secrets_is_imported_as_it_was() {
        let import = parse(exported(true).as_bytes()).unwrap();
        assert_eq!(import.revision, 9);
        assert_eq!(import.entries, entries());
    }

    #[test]
    fn an_export_without_secrets_has_none_and_is_refused_where_they_lack() {
        let text = exported(false);
        let whole = exported(true);
        for secret in [
            STANDARD.encode("0123456789abcdef0123456789abcdef"),
            STANDARD.encode("NVMeTLSkey-1:01:secret:"),
        ] {
            assert!(whole.contains(&secret) && !text.contains(&secret), "{text}");
        }
        let error = parse(text.as_bytes()).unwrap_err();
        assert!(
            error.contains("encryptedVolumes/e") && error.contains("--with-secrets"),
            "{error}"
        );
    }

    #[test]
    fn keys_of_before_are_in_an_export_with_secrets_alone() {
        let mut host = entry("nvmeHosts/a", "", 2, &crate::api::own::NvmeHost::default());
        host.kind = "opi_spdk.v1.NvmeHost".to_owned();
        // Field 1000, six bytes long.
        host.object.extend(b"\xC2\x3E\x06SECRET");
        let exported = |secrets| {
            let mut text = Vec::new();
            export(std::slice::from_ref(&host), 9, secrets, &mut text).unwrap();
            text
        };
        let import = parse(&exported(true)).unwrap();
        assert_eq!(import.entries, [host.clone()]);
        let text = String::from_utf8(exported(false)).unwrap();
        assert!(text.contains("\"kept\": \"\""), "{text}");
        assert!(parse(text.as_bytes()).is_err(), "it has lost them");
    }

    #[test]
    fn an_export_that_was_edited_is_refused_at_the_place() {
        let text = exported(true);
        let edit = |from: &str, to: &str| {
            let edited = text.replacen(from, to, 1);
            assert_ne!(edited, text, "{from}");
            parse(edited.as_bytes()).unwrap_err()
        };
        let error = edit("512", "4096");
        assert!(
            error.contains("nullVolumes/n") && error.contains("edited"),
            "{error}"
        );
        assert!(edit("\"revision\": 9", "\"revision\": 8").contains("edited"));
        assert!(edit("\"opiSpdkState\": 1", "\"opiSpdkState\": 2").contains("form 2"));
        let mut document: Value = serde_json::from_str(&text).unwrap();
        document["records"].as_array_mut().unwrap().remove(1);
        let error = parse(document.to_string().as_bytes()).unwrap_err();
        assert!(error.contains("its end does not fit"), "{error}");
    }

    #[test]
    fn an_export_that_was_cut_is_refused_wherever_it_was() {
        let text = exported(true);
        for length in 0..text.trim_end().len() {
            assert!(parse(&text.as_bytes()[..length]).is_err(), "{length} bytes");
        }
    }

    /// A new bytes field must be listed as a secret or, here, as none.
    #[test]
    fn every_field_of_bytes_is_known() {
        let messages = api::pool().all_messages();
        let ours = messages.filter(|it| {
            let mut packages = ["opi_api.storage.", "opi_spdk.v1."].into_iter();
            packages.any(|package| it.full_name().starts_with(package))
        });
        let mut known: Vec<_> = ours
            .flat_map(|it| it.fields().collect::<Vec<_>>())
            .filter(|it| it.kind() == Kind::Bytes)
            .map(|it| it.full_name().to_owned())
            .filter(|it| {
                !SECRETS
                    .iter()
                    .any(|secret| it.ends_with(&format!(".{secret}")))
            })
            .collect();
        known.sort();
        assert_eq!(known, ["opi_api.storage.v1.NvmeSubsystemStatus.fru_guid"]);
    }
}
