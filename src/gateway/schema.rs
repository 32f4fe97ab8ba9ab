//! OpenAPI schemas of messages, with descriptions from the comments in `proto/`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost_reflect::{
    DescriptorPool, EnumDescriptor, ExtensionDescriptor, FieldDescriptor, FileDescriptor, Kind,
    MessageDescriptor, Value,
};
use serde_json::{Map, Value as Json, json};

/// A timestamp in protobuf's JSON form (RFC 3339 with an offset), as a pattern since few validators check formats.
const TIME: &str = concat!(
    "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    "T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?",
    "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
);

/// Values of google.api.FieldBehavior that schemas express.
const REQUIRED: i32 = 2;
const OUTPUT_ONLY: i32 = 3;
const IDENTIFIER: i32 = 8;

/// The requested schemas and those they refer to.
pub struct Schemas {
    /// Comments, by file and path within the file.
    words: HashMap<(String, Vec<i32>), String>,
    behaviour: Option<ExtensionDescriptor>,
    written: BTreeMap<String, Json>,
    /// Schemas of messages used as fields, which are `null` when unset.
    unset: BTreeSet<String>,
}

impl Schemas {
    /// Starts with the schema `Error` of failed calls.
    pub fn new(pool: &DescriptorPool) -> Schemas {
        Schemas {
            words: words(pool),
            behaviour: pool.get_extension_by_name("google.api.field_behavior"),
            written: BTreeMap::from([("Error".to_owned(), error())]),
            unset: BTreeSet::new(),
        }
    }

    /// All schemas, by name.
    pub fn into_json(mut self) -> Json {
        // OpenAPI 3.0 allows `null` only if the schema itself is nullable and has a type.
        for name in self.unset {
            if let Some(schema) = self.written.get_mut(&name) {
                schema["nullable"] = Json::from(true);
            }
        }
        self.written.into_iter().collect::<Map<_, _>>().into()
    }

    /// Whether a caller must set a field.
    pub fn requires(&self, field: &FieldDescriptor) -> bool {
        self.behaves(field, REQUIRED)
    }

    /// Whether a field has a google.api.field_behavior.
    fn behaves(&self, field: &FieldDescriptor, behaviour: i32) -> bool {
        let options = field.options();
        self.behaviour.as_ref().is_some_and(|extension| {
            let behaviours = options.get_extension(extension);
            let behaviours = behaviours.as_list().unwrap_or_default();
            behaviours.contains(&Value::EnumNumber(behaviour))
        })
    }

    /// A reference to a message's schema, which is written on first use.
    pub fn message(&mut self, message: &MessageDescriptor) -> Json {
        if message.package_name() == "google.protobuf" {
            return of_protobuf(message);
        }
        let name = schema_name(message.full_name(), message.package_name());
        if !self.written.contains_key(&name) {
            // Placeholder that ends the recursion of a message that contains itself.
            self.written.insert(name.clone(), Json::Null);
            let mut schema = self.object(message.fields());
            let words = self.words_of(&message.parent_file(), message.path());
            schema["description"] = Json::from(words);
            self.written.insert(name.clone(), schema);
        }
        reference(&name)
    }

    /// The schema of an object with these fields, possibly of several messages. `allOf` of their schemas would not do,
    /// since each excludes unknown properties.
    pub fn object(&mut self, fields: impl IntoIterator<Item = FieldDescriptor>) -> Json {
        let mut properties = Map::new();
        for field in fields {
            properties.insert(field.json_name().to_owned(), self.property(&field));
        }
        json!({"type": "object", "properties": properties, "additionalProperties": false})
    }

    /// Stores a schema and returns a reference to it.
    pub fn write(&mut self, name: &str, schema: Json) -> Json {
        self.written.insert(name.to_owned(), schema);
        reference(name)
    }

    /// The schema of a field, with its description.
    pub fn property(&mut self, field: &FieldDescriptor) -> Json {
        let words = self.words_of(&field.parent_message().parent_file(), field.path());
        let mut schema = self.of_kind(field);
        let may_be_unset = field.kind().as_message().is_some() && !field.is_list();
        if let Some(to) = schema.get("$ref").and_then(Json::as_str) {
            let name = to.strip_prefix(SCHEMAS).map(str::to_owned);
            self.unset.extend(name.filter(|_| may_be_unset));
            // Siblings of `$ref` are ignored in OpenAPI 3.0, hence `allOf`.
            schema = json!({"allOf": [schema]});
        } else if may_be_unset {
            schema["nullable"] = Json::from(true);
        }
        schema["description"] = Json::from(words);
        if self.behaves(field, OUTPUT_ONLY) || self.behaves(field, IDENTIFIER) {
            schema["readOnly"] = Json::from(true);
        }
        schema
    }

    /// The schema of a field, without its description.
    pub fn of_kind(&mut self, field: &FieldDescriptor) -> Json {
        let one = match field.kind() {
            Kind::Message(message) => self.message(&message),
            Kind::Enum(values) => self.values(&values),
            Kind::Bool => json!({"type": "boolean"}),
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "format": "byte"}),
            Kind::Double => json!({"type": "number", "format": "double"}),
            Kind::Float => json!({"type": "number", "format": "float"}),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                json!({"type": "integer", "format": "int32"})
            }
            Kind::Uint32 | Kind::Fixed32 => {
                json!({"type": "integer", "format": "int64", "minimum": 0})
            }
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                json!({"type": "string", "format": "int64"})
            }
            Kind::Uint64 | Kind::Fixed64 => json!({"type": "string", "format": "uint64"}),
        };
        if field.is_list() {
            json!({"type": "array", "items": one})
        } else {
            one
        }
    }

    fn values(&mut self, values: &EnumDescriptor) -> Json {
        let name = schema_name(values.full_name(), values.package_name());
        if !self.written.contains_key(&name) {
            let file = values.parent_file();
            let names: Vec<String> = values.values().map(|v| v.name().to_owned()).collect();
            let mut words = self.words_of(&file, values.path());
            for value in values.values() {
                let about = self.words_of(&file, value.path());
                words.push_str(&format!("\n- `{}`: {about}", value.name()));
            }
            let schema = json!({"type": "string", "enum": names, "description": words});
            self.written.insert(name.clone(), schema);
        }
        reference(&name)
    }

    /// The comment at a path of a file; empty if there is none.
    pub fn words_of(&self, file: &FileDescriptor, path: &[i32]) -> String {
        let key = (file.name().to_owned(), path.to_vec());
        self.words.get(&key).cloned().unwrap_or_default()
    }
}

/// Prefix of references to schemas.
const SCHEMAS: &str = "#/components/schemas/";

/// A reference to a schema by its name.
pub fn reference(name: &str) -> Json {
    json!({"$ref": format!("{SCHEMAS}{name}")})
}

fn schema_name(full: &str, package: &str) -> String {
    let short = full.strip_prefix(package).unwrap_or(full);
    short.trim_start_matches('.').to_owned()
}

/// JSON forms of the well-known protobuf types.
fn of_protobuf(message: &MessageDescriptor) -> Json {
    match message.name() {
        "Int32Value" => json!({"type": "integer", "format": "int32"}),
        "UInt32Value" => json!({"type": "integer", "format": "int64", "minimum": 0}),
        "BoolValue" => json!({"type": "boolean"}),
        "Timestamp" => json!({"type": "string", "format": "date-time", "pattern": TIME}),
        "Empty" | "Struct" | "Any" => json!({"type": "object"}),
        "FloatValue" | "DoubleValue" => json!({"type": "number"}),
        _ => json!({"type": "string"}),
    }
}

fn error() -> Json {
    json!({
        "type": "object",
        "description": "What every failed call answers.",
        "required": ["code", "message", "details"],
        "properties": {
            "code": {"type": "integer", "format": "int32", "description": "The gRPC status code."},
            "message": {"type": "string", "description": "What was wrong, and what would be right."},
            "details": {
                "type": "array",
                "description": "google.rpc messages: fields at fault, the reason, the resource.",
                "items": {
                    "type": "object",
                    "required": ["@type"],
                    "properties": {"@type": {"type": "string"}},
                    "additionalProperties": true,
                },
            },
        },
    })
}

/// Collects the comments of all files.
fn words(pool: &DescriptorPool) -> HashMap<(String, Vec<i32>), String> {
    let mut words = HashMap::new();
    for file in pool.files() {
        let proto = file.file_descriptor_proto();
        for location in proto
            .source_code_info
            .iter()
            .flat_map(|info| &info.location)
        {
            let lines: Vec<&str> = location.leading_comments().lines().map(str::trim).collect();
            let text = lines.join(" ").trim().to_owned();
            if !text.is_empty() {
                words.insert((file.name().to_owned(), location.path.clone()), text);
            }
        }
    }
    words
}
