//! OpenAPI description and server agree on the boundary values of every field: values that the request's
//! schema rejects get INVALID_ARGUMENT, values that it accepts do not.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use prost_reflect::{DynamicMessage, Kind as FieldKind, MessageDescriptor};
use serde_json::{Value, json};

use crate::common::kinds::{IMPLEMENTED, Lab, Place};
use crate::common::{Answer, Http, Options, Target, kind_of, name_of};

/// The gRPC code INVALID_ARGUMENT.
const INVALID: i64 = 3;

/// Strings at the boundaries of the fields' formats.
const TEXTS: &[&str] = &[
    "",
    "a",
    "A",
    "-a",
    "a-",
    "9a",
    "a b",
    "a\u{1}b",
    "a\u{7f}",
    "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
    "1B4E28BA2FA111D2883FB9A761BDE3FB",
    "1b4e28ba-2fa1-11d2-883f-b9a761bde3f",
    "1b4e28ba-2fa1-11d2-883f-b9a761bde3fbc",
    "1b4e28ba-2fa1-11d2-883f-b9a761bde3fg",
    "00000000-0000-0000-0000-000000000000",
    "{1b4e28ba-2fa1-11d2-883f-b9a761bde3fb}",
    "nqn.2016-06.io.spdk:edge",
    "nqn.2016-06.io.spdk:ed ge",
    "nqn.2016-00.io.spdk:edge",
    "nqn.2016-13.io.spdk:edge",
    "nqn.2016-12.io.spdk:e",
    "nqn.2016-06.io.spdk-:edge",
    "nqn.2016-06.io..spdk:edge",
    "nqn.2016-06.io.spdk:",
    "nqn.2014-08.org.nvmexpress.discovery",
    "nqn.2014-08.org.nvmexpress:uuid:1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
    "nqn.2014-08.org.nvmexpress:uuid:1b4e28ba",
    "0",
    "1",
    "65535",
    "65536",
    "-1",
    "127.0.0.1",
    "127.0.0.256",
    "127.0.0",
    "223.255.255.255",
    "224.0.0.1",
    "::1",
    "ff02::1",
    "::ffff:7f00:1",
    "1:2:3:4:5:6:7:8:9",
    "localhost",
    "/",
    "/nowhere",
    "nowhere",
    "volumes/nowhere",
    "nullVolumes/nowhere",
    "nvmeSubsystems/nowhere",
    "virtioScsiTargets/nowhere",
    "virtioScsiControllers/nowhere",
    "volumes/",
    "volumes/a/b",
];

/// The trial of one kind.
struct Trial<'a> {
    http: Http,
    description: &'a Value,
    place: &'a Place,
    calls: usize,
    faults: Vec<String>,
}

/// Returns whether a rejection depends on existing objects or other state rather than on the request's
/// form.
fn is_of_state(kind: &str, path: &str, answer: &Answer) -> bool {
    let message = answer.body["message"].as_str().unwrap_or_default();
    matches!(
        (kind, path),
        // Depends on the file.
        ("AioVolume", "filename" | "blockSize" | "blocksCount")
        // Depends on the subsystem's limit.
        | ("NvmeNamespace", "spec.hostNsid")
        // Keys contain a checksum.
        | (_, "spec.psk" | "tcp.psk" | "psk" | "dhchapKey" | "dhchapCtrlrKey")
    ) || message.contains("cannot change")
        || message.contains("more than 2^63")
}

impl Trial<'_> {
    /// Returns path and operation of the kind's RPC.
    fn operation(&self, verb: &str) -> (String, Value) {
        let plural = if verb == "List" { "s" } else { "" };
        let id = format!("_{verb}{}{plural}", self.place.kind.message);
        let paths = self.description["paths"].as_object().expect("paths");
        let all = paths.iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods").values();
            methods.map(move |operation| (path.clone(), operation.clone()))
        });
        let mut found = all.filter(|(_, operation)| {
            let ids = operation["operationId"].as_str().expect("an ID");
            ids.ends_with(&id)
        });
        found.next().unwrap_or_else(|| panic!("{id} is described"))
    }

    fn validator(&self, schema: &Value) -> jsonschema::Validator {
        let mut schema = schema.clone();
        schema["components"] = self.description["components"].clone();
        jsonschema::validator_for(&schema).expect("a schema")
    }

    /// Resolves a schema's reference.
    fn resolved(&self, schema: &Value) -> Value {
        match schema["$ref"].as_str() {
            Some(to) => {
                let found = to
                    .strip_prefix('#')
                    .and_then(|to| self.description.pointer(to));
                found.expect("a reference leads to a schema").clone()
            }
            None => schema.clone(),
        }
    }

    async fn send(&mut self, method: &str, path: &str, body: &Value) -> Answer {
        self.calls += 1;
        let body = body.to_string().into_bytes();
        self.http.send(method, path, &[], body).await
    }

    /// Records a disagreement between schema and server.
    fn judge(&mut self, what: &str, field: &str, is_valid: bool, answer: &Answer) {
        let refused = answer.status == 400 && answer.body["code"] == INVALID;
        let kind = self.place.kind.message;
        let agree = match is_valid {
            true => !refused || is_of_state(kind, field, answer),
            false => refused,
        };
        if !agree {
            let schema = if is_valid { "accepts" } else { "rejects" };
            let (status, message) = (answer.status, &answer.body["message"]);
            self.faults.push(format!(
                "{what}: the schema {schema} the value, the server returns {status} {message}"
            ));
        }
    }

    async fn creates(&mut self) {
        let (path, operation) = self.operation("Create");
        let path = self.in_parent(&path);
        let schema = operation["requestBody"]["content"]["application/json"]["schema"].clone();
        let validator = self.validator(&schema);
        let message = self.message();
        let base = in_json(&message, self.place.sample(1).await);
        assert!(
            validator.is_valid(&base),
            "{base}: {:?}",
            validator.validate(&base)
        );
        let mut leaves = Vec::new();
        leaves_of(&self.resolved(&schema), &message, "", &mut leaves);
        for leaf in leaves {
            for value in leaf.values() {
                let body = leaf.put(&base, value.as_ref());
                let is_valid = validator.is_valid(&body);
                if is_valid && self.leaves_the_machine(&leaf, value.as_ref()) {
                    continue;
                }
                let answer = self.send("POST", &path, &body).await;
                let what = format!("POST {path} {} = {}", leaf.path, shown(value.as_ref()));
                self.judge(&what, &leaf.path, is_valid, &answer);
                self.unmake(&answer).await;
            }
        }
        self.ids(&path, &operation, &base).await;
    }

    /// Returns whether a path to or from this address would send packets to the network.
    fn leaves_the_machine(&self, leaf: &Leaf, value: Option<&Value>) -> bool {
        let is_address = matches!(&*leaf.path, "traddr" | "fabrics.sourceTraddr");
        let ip = value.and_then(Value::as_str).map(str::parse::<IpAddr>);
        self.place.kind.message == "NvmePath"
            && is_address
            && ip.is_some_and(|ip| ip.is_ok_and(|ip| !ip.is_loopback()))
    }

    async fn ids(&mut self, path: &str, operation: &Value, base: &Value) {
        let parameters = operation["parameters"].as_array().expect("parameters");
        let of_id = parameters.iter().find(|parameter| {
            let name = parameter["name"].as_str().expect("a name");
            parameter["in"] == "query" && name.ends_with("Id")
        });
        let of_id = of_id.expect("an ID can be given");
        let validator = self.validator(&of_id["schema"]);
        let name = of_id["name"].as_str().expect("a name");
        let long = [49, 50, 63, 64].map(|length| "a".repeat(length));
        for text in TEXTS.iter().copied().chain(long.iter().map(String::as_str)) {
            let escaped =
                percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
            let path = format!("{path}?{name}={escaped}");
            let answer = self.send("POST", &path, base).await;
            let is_valid = validator.is_valid(&json!(text));
            self.judge(&format!("POST {path}"), name, is_valid, &answer);
            self.unmake(&answer).await;
        }
    }

    async fn updates(&mut self) {
        let (path, operation) = self.operation("Update");
        let schema = operation["requestBody"]["content"]["application/json"]["schema"].clone();
        let validator = self.validator(&schema);
        let message = self.message();
        let (_, creation) = self.operation("Create");
        let creation = &creation["requestBody"]["content"]["application/json"]["schema"];
        let whole = self.validator(creation);
        let sent = in_json(&message, self.place.sample(0).await);
        let (name, made) = self.place.make(0).await;
        let id = name.rsplit('/').next().expect("an ID").to_owned();
        let path = self.in_parent(&path);
        let from = path.find('{').expect("an ID");
        let path = format!("{}{id}", &path[..from]);
        let mut leaves = Vec::new();
        leaves_of(&self.resolved(&schema), &message, "", &mut leaves);
        for leaf in leaves {
            for value in leaf.values().into_iter().flatten() {
                let body = leaf.put(&json!({}), Some(&value));
                let is_valid = validator.is_valid(&body);
                // A value may be valid on its own but not in combination with the object's other fields.
                let fits = whole.is_valid(&leaf.put(&sent, Some(&value)));
                if is_valid && (!fits || self.leaves_the_machine(&leaf, Some(&value))) {
                    continue;
                }
                let answer = self.send("PATCH", &path, &body).await;
                let what = format!("PATCH {path} {} = {value}", leaf.path);
                self.judge(&what, &leaf.path, is_valid, &answer);
                if answer.status == 200 {
                    let back = format!("{path}?updateMask=*");
                    let answer = self.send("PATCH", &back, &sent).await;
                    assert_eq!(answer.status, 200, "{what}, and back: {}", answer.body);
                }
            }
        }
        let now = self.place.resource.get(&name).await.expect("an object");
        assert_eq!(
            now, made,
            "the object is unchanged after rejected and reverted updates"
        );
    }

    async fn lists(&mut self) {
        let (path, operation) = self.operation("List");
        let path = self.in_parent(&path);
        let parameters = operation["parameters"].as_array().expect("parameters");
        let size = parameters
            .iter()
            .find(|p| p["name"] == "pageSize")
            .expect("pages have sizes");
        let validator = self.validator(&size["schema"]);
        let numbers = edges(i32::MIN.into(), i32::MAX.into()).into_iter();
        for number in numbers.filter_map(|number| i64::try_from(number).ok()) {
            let path = format!("{path}?pageSize={number}");
            let answer = self.http.send("GET", &path, &[], Vec::new()).await;
            let is_valid = validator.is_valid(&json!(number));
            self.judge(&format!("GET {path}"), "pageSize", is_valid, &answer);
        }
    }

    fn in_parent(&self, path: &str) -> String {
        let parent = self.place.parent.rsplit('/').next().unwrap_or_default();
        match (parent, path.find('{'), path.find('}')) {
            ("", _, _) => path.to_owned(),
            (parent, Some(from), Some(to)) => {
                format!("{}{parent}{}", &path[..from], &path[to + 1..])
            }
            _ => path.to_owned(),
        }
    }

    fn message(&self) -> MessageDescriptor {
        kind_of(self.place.kind.message)
    }

    async fn unmake(&self, answer: &Answer) {
        if answer.status == 200 {
            self.place.resource.deleted(&name_of(&answer.body)).await;
        }
    }
}

/// A scalar field.
struct Leaf {
    /// The field's path in JSON names.
    path: String,
    schema: Value,
    /// All values of its enum, whether the server supports them or not.
    names: Vec<String>,
}

fn leaves_of(schema: &Value, message: &MessageDescriptor, prefix: &str, leaves: &mut Vec<Leaf>) {
    for (name, schema) in schema["properties"].as_object().expect("properties") {
        if schema["readOnly"] == true {
            continue;
        }
        let field = message.get_field_by_json_name(name).expect("a field");
        let path = format!("{prefix}{name}");
        if let (Some(_), FieldKind::Message(inner)) = (schema.get("properties"), field.kind()) {
            leaves_of(schema, &inner, &format!("{path}."), leaves);
            continue;
        }
        let names = match field.kind() {
            FieldKind::Enum(values) => values
                .values()
                .map(|value| value.name().to_owned())
                .collect(),
            _ => Vec::new(),
        };
        let schema = schema.clone();
        leaves.push(Leaf {
            path,
            schema,
            names,
        });
    }
}

impl Leaf {
    /// Returns boundary values, valid and invalid ones, and `None` for an absent field.
    fn values(&self) -> Vec<Option<Value>> {
        let schema = &self.schema;
        let bound = |name: &str, otherwise: i64| {
            let text = schema[format!("x-{name}")].as_str().map(str::to_owned);
            let text = text.or_else(|| schema[name].as_i64().map(|number| number.to_string()));
            text.map_or(otherwise, |text| text.parse().expect("a number"))
        };
        let mut numbers = edges(bound("minimum", 0), bound("maximum", 0));
        for value in schema["enum"].as_array().into_iter().flatten() {
            let number = value.as_i64().or_else(|| value.as_str()?.parse().ok());
            numbers.extend(number.into_iter().flat_map(|n| edges(n, n)));
        }
        let values: Vec<Value> = match (schema["type"].as_str(), schema["format"].as_str()) {
            (Some("integer"), _) => {
                // Other numbers cannot be represented in the test's JSON.
                let numbers = numbers.into_iter().filter_map(|n| i64::try_from(n).ok());
                numbers.map(|n| json!(n)).collect()
            }
            (_, Some("int64")) => numbers.into_iter().map(|n| json!(n.to_string())).collect(),
            (_, Some("byte")) => [0, 1, 31, 32, 33, 63, 64, 65]
                .into_iter()
                .map(|length| json!(base64(length)))
                .chain([json!("!!!!")])
                .collect(),
            (Some("boolean"), _) => vec![json!(true), json!(false), json!("yes"), json!(1)],
            _ if !self.names.is_empty() => {
                let names = self.names.iter().map(|name| json!(name));
                names.chain([json!("NO_SUCH_VALUE"), json!("")]).collect()
            }
            _ => {
                let most = schema["maxLength"].as_u64().unwrap_or(0);
                let most = usize::try_from(most).expect("a length");
                let begins = ["", "/", "nqn.2016-06.io.spdk:"];
                let long = begins.into_iter().flat_map(|begin| {
                    [0, 1].map(|more| {
                        let rest = (most + more).saturating_sub(begin.len());
                        json!(format!("{begin}{}", "a".repeat(rest)))
                    })
                });
                TEXTS.iter().map(|text| json!(text)).chain(long).collect()
            }
        };
        values.into_iter().map(Some).chain([None]).collect()
    }

    /// Returns the object with the value set, or without the field.
    fn put(&self, object: &Value, value: Option<&Value>) -> Value {
        let mut object = object.clone();
        let mut inner = &mut object;
        let mut parts: Vec<&str> = self.path.split('.').collect();
        let last = parts.pop().expect("a path");
        for part in parts {
            if inner[part].is_null() {
                // The field is absent already.
                if value.is_none() {
                    return object;
                }
                inner[part] = json!({});
            }
            inner = &mut inner[part];
        }
        match value {
            Some(value) => inner[last] = value.clone(),
            None => {
                inner.as_object_mut().expect("an object").remove(last);
            }
        }
        object
    }
}

/// Returns the values next to the limits of the range and of the integer types.
fn edges(least: i64, most: i64) -> Vec<i128> {
    let (least, most) = (i128::from(least), i128::from(most));
    let types = [
        i32::MIN.into(),
        i32::MAX.into(),
        i64::MIN.into(),
        i64::MAX.into(),
    ];
    let mut all: Vec<i128> = vec![
        least - 1,
        least,
        least + 1,
        most - 1,
        most,
        most + 1,
        -1,
        0,
        1,
    ];
    all.extend(
        types
            .into_iter()
            .flat_map(|edge: i128| [edge - 1, edge, edge + 1]),
    );
    all.sort_unstable();
    all.dedup();
    all
}

fn base64(length: u8) -> String {
    base64::engine::general_purpose::STANDARD.encode((0..length).collect::<Vec<u8>>())
}

/// Converts an object to JSON with protobuf's default options.
fn in_json(message: &MessageDescriptor, object: Value) -> Value {
    let message = DynamicMessage::deserialize(message.clone(), object).expect("a sample");
    serde_json::to_value(&message).expect("JSON")
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(value) => value.to_string().chars().take(80).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn schemas_and_server_agree_on_the_boundaries_of_every_field() {
    let dir = Arc::new(tempfile::tempdir().expect("a directory"));
    let target = Target::start_with(Options::hugepages().in_dir(Arc::clone(&dir))).await;
    let http = Http(target.http);
    let description = http
        .send("GET", "/openapi.json", &[], Vec::new())
        .await
        .body;
    let mut faults = Vec::new();
    let mut calls = 0;
    for kind in IMPLEMENTED {
        let lab = Lab {
            target: target.grpc,
            peer: target.grpc,
            dir: target.scratch().to_owned(),
        };
        let place = Place::new(lab, kind, &kind.message.to_lowercase()).await;
        let mut trial = Trial {
            http,
            description: &description,
            place: &place,
            calls: 0,
            faults: Vec::new(),
        };
        trial.creates().await;
        trial.lists().await;
        trial.updates().await;
        calls += trial.calls;
        faults.append(&mut trial.faults);
        assert!(place.resource.client.is_serving().await, "{}", kind.message);
        place.clean().await;
    }
    eprintln!("{calls} calls");
    assert!(
        faults.is_empty(),
        "{} of {calls} calls:\n{}",
        faults.len(),
        faults.join("\n")
    );
    let log = target.log();
    assert!(!log.contains("panicked"), "{log}");
    target.stop();
}
