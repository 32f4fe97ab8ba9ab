//! Nearly valid requests generated from the descriptors.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};
use serde_json::{Map, Value, json};

use crate::common::{Random, base64, dhchap_key, nqn_of, route};

/// Percent-encode everything except characters of resource names and existing escapes.
const ESCAPED: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'%')
    .remove(b'.')
    .remove(b'_')
    .remove(b'-');

const IDS: [&str; 4] = ["a", "b", "c", "d"];

/// A client's random generator, and the values that are useful on the machine.
pub struct Fuzz {
    pub random: Random,
    pub files: Vec<String>,
    pub ports: Vec<u16>,
}

impl Fuzz {
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len())].clone()
    }

    fn id(&mut self) -> &'static str {
        if self.random.one_in(25) {
            self.pick(&["", "A", "a b", "%2F", "..", "ä"])
        } else {
            self.pick(&IDS)
        }
    }

    fn message(&mut self, message: &MessageDescriptor) -> Value {
        let mut object = Map::new();
        for field in message.fields() {
            let one_of_many = field.containing_oneof().is_some() && self.random.one_in(2);
            if one_of_many
                || field.name() == "name"
                || field.name() == "status"
                || self.random.one_in(8)
            {
                continue;
            }
            let name = if self.random.one_in(2) {
                field.name()
            } else {
                field.json_name()
            };
            object.insert(name.to_owned(), self.value(&field));
        }
        object.into()
    }

    /// Returns a value that mostly fits the field's meaning.
    fn value(&mut self, field: &FieldDescriptor) -> Value {
        if self.random.one_in(80) {
            return self.random.anything(3);
        }
        match field.name() {
            "block_size" => {
                self.pick(&[json!(512), json!("4096"), json!(512), json!(513), json!(-1)])
            }
            "blocks_count" => self.pick(&[
                json!(8),
                json!("64"),
                json!(2048),
                json!(0),
                json!(i64::MAX),
            ]),
            "metadata_size" | "min_limit" | "min" => json!(null),
            "volume_name_ref" => {
                let id = self.id();
                let form = self.pick(&["volumes/ID", "volumes/ID", "ID", "nullVolumes/ID"]);
                json!(form.replace("ID", id))
            }
            "target_name_ref" => {
                let id = self.id();
                let form = self.pick(&["virtioScsiTargets/ID", "virtioScsiControllers/ID", "ID"]);
                json!(form.replace("ID", id))
            }
            "filename" => json!(self.pick(&self.files.clone())),
            "nqn" | "subnqn" => json!(nqn_of(self.id())),
            "hostnqn" if self.random.one_in(10) => json!("nqn"),
            "hostnqn" => self.pick(&[json!(""), json!(nqn_of("host"))]),
            "dhchap_key" if field.parent_message().name() == "NvmeCredential" => {
                let key = base64(dhchap_key(1));
                self.pick(&[json!(key), json!(key), json!("")])
            }
            "psk" | "dhchap_key" | "dhchap_ctrlr_key" => json!(""),
            "traddr" => json!(self.pick(&[
                "127.0.0.1",
                "127.0.0.1",
                "127.0.0.1",
                "::1",
                "localhost",
                "300.0.0.1"
            ])),
            "trsvcid" => json!(self.pick(&self.ports.clone()).to_string()),
            "adrfam" => json!(self.pick(&[
                "NVME_ADDRESS_FAMILY_IPV4",
                "NVME_ADDRESS_FAMILY_IPV4",
                "NVME_ADDRESS_FAMILY_IPV6"
            ])),
            "trtype" => json!(self.pick(&[
                "NVME_TRANSPORT_TYPE_TCP",
                "NVME_TRANSPORT_TYPE_TCP",
                "NVME_TRANSPORT_TYPE_PCIE"
            ])),
            "uuid" => self.pick(&[
                json!(""),
                json!("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"),
                json!("x"),
            ]),
            "cipher" => json!(self.pick(&[
                "ENCRYPTION_TYPE_AES_XTS_128",
                "ENCRYPTION_TYPE_AES_XTS_256",
                "ENCRYPTION_TYPE_AES_CBC_128"
            ])),
            "key" => {
                let bytes: Vec<u8> = (0..self.pick(&[32_u8, 64, 31])).collect();
                json!(base64(bytes))
            }
            _ => self.of_its_type(field),
        }
    }

    fn of_its_type(&mut self, field: &FieldDescriptor) -> Value {
        match field.kind() {
            Kind::Message(wrapper) if wrapper.full_name() == "google.protobuf.Int32Value" => {
                let number = if self.random.one_in(8) { -1 } else { 0 };
                json!(number)
            }
            Kind::Message(inside) => self.message(&inside),
            Kind::Int32 | Kind::Int64 => self.pick(&[
                json!(0),
                json!(0),
                json!(1),
                json!("2"),
                json!(16),
                json!(-1),
                json!(i64::MAX),
            ]),
            Kind::String => json!(self.pick(&["", "", "text"])),
            _ => self.random.field(field, 3),
        }
    }

    /// Returns method, path and body of a random request of this RPC.
    pub fn request(&mut self, rpc: &MethodDescriptor) -> (String, String, Vec<u8>) {
        let (method, template, body) = route(rpc);
        let mut path = template.replace(['{', '}'], "");
        if let Some((before, after)) = path.split_once('=') {
            path = format!("{}{after}", &before[..=before.rfind('/').expect("a path")]);
        }
        while path.contains('*') {
            let id = if self.random.one_in(40) {
                self.random.segment().trim_matches('*')
            } else {
                self.id()
            };
            path = path.replacen('*', &escape(id), 1);
        }
        let input = rpc.input();
        let mut query = Vec::new();
        for field in input.fields().filter(|field| field.name() != body) {
            let value = match field.name() {
                name if name.ends_with("_id") => self.id().to_owned(),
                "update_mask" => self
                    .pick(&[
                        "*",
                        "blocks_count",
                        "spec",
                        "volume_name_ref",
                        "spec.nqn",
                        "x",
                    ])
                    .to_owned(),
                "allow_missing" => self.pick(&["true", "false", "1"]).to_owned(),
                "page_size" => self.pick(&["0", "1", "250", "-1", "x"]).to_owned(),
                _ => continue,
            };
            if field.name().ends_with("_id") || self.random.one_in(3) {
                query.push(format!("{}={}", field.name(), escape(&value)));
            }
        }
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        let body = match input.get_field_by_name(&body) {
            Some(field) => self
                .message(field.kind().as_message().expect("a body is a message"))
                .to_string(),
            None => {
                if body == "*" {
                    "{}".to_owned()
                } else {
                    String::new()
                }
            }
        };
        let body = body.into_bytes();
        let body = if self.random.one_in(50) {
            self.random.damage(body)
        } else {
            body
        };
        (method, path, body)
    }
}

fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, ESCAPED).to_string()
}
