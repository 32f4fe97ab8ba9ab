//! The OpenAPI 3.0 description of the gateway, from the descriptors: paths from the routes, schemas from the messages,
//! descriptions from the comments in `proto/`.

use std::collections::{BTreeMap, HashMap};

use axum::http::Method;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value,
};
use serde_json::{Map, Value as Json, json};

use super::given::{self, Purpose};
use super::mask;
use super::route::{Body, Route, Rule, Table};
use super::schema::{Schemas, reference};
use super::template::{Segment, Template};

/// Description of the whole API.
const GENERAL: &str = "HTTP/JSON over the gRPC services, as grpc-gateway has it. Names of fields and \
    parameters are taken in lowerCamelCase and snake_case, 64-bit numbers as strings and numbers; \
    answers and the schemas here have the first of each, and `x-also` is the other name. A message \
    that is not set is `null`. Fields and parameters that are not known are refused, and so are bodies \
    over 4 MiB (413).\n\n\
    The header `Grpc-Timeout` says how long the client waits, such as `500m` for 500 ms; 60 s at \
    most. Where the server has TLS, it asks for a client's certificate.\n\n\
    An error has the HTTP status of its gRPC code: 400 for INVALID_ARGUMENT, FAILED_PRECONDITION and \
    OUT_OF_RANGE, 404 NOT_FOUND, 409 ALREADY_EXISTS and ABORTED, 429 RESOURCE_EXHAUSTED, 500 INTERNAL, \
    501 UNIMPLEMENTED, 503 UNAVAILABLE, 504 DEADLINE_EXCEEDED; 405 for another method than those in \
    the header Allow.";

/// Description of field masks.
const MASK: &str = "\n\nPaths of fields between commas, such as `spec.hostnqn,spec.psk`, or `*` for \
    all of them. Without it the fields that the body names are meant, but for keys that are \
    empty beside others, as in answers: to take a key away, name it here.";

/// Describes a table of routes.
pub fn describe(pool: &DescriptorPool, table: &Table) -> Json {
    let mut writer = Writer {
        variables: variables(pool),
        schemas: Schemas::new(pool),
    };
    let mut paths: BTreeMap<String, Map<String, Json>> = BTreeMap::new();
    let mut tags = BTreeMap::new();
    for route in table.routes() {
        let (path, operation) = writer.operation(route);
        let method = route.method.as_str().to_lowercase();
        paths.entry(path).or_default().insert(method, operation);
        let service = route.rules[0].rpc.parent_service();
        let words = writer
            .schemas
            .words_of(&service.parent_file(), service.path());
        tags.insert(service.name().to_owned(), words);
    }
    let tags: Vec<Json> = tags
        .iter()
        .map(|(name, words)| json!({"name": name, "description": words}))
        .collect();
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "OPI storage and inventory",
            "description": GENERAL,
            "version": env!("CARGO_PKG_VERSION"),
        },
        "servers": [{"url": "/"}],
        "tags": tags,
        "paths": paths,
        "components": {"schemas": writer.schemas.into_json()},
    })
}

struct Writer {
    /// Names of path variables, by the shape of the resource name.
    variables: HashMap<String, Vec<String>>,
    schemas: Schemas,
}

impl Writer {
    fn operation(&mut self, route: &Route) -> (String, Json) {
        let rule = &route.rules[0];
        let (path, names) = self.path(&rule.template);
        let mut parameters: Vec<Json> = names
            .iter()
            .map(|name| {
                json!({
                    "name": name,
                    "in": "path",
                    "description": "An ID in the resource's name.",
                    "required": true,
                    "schema": match name.starts_with("id") {
                        true => given::any_text(),
                        false => given::id_in_path(),
                    },
                })
            })
            .collect();
        let mut known = Vec::new();
        for rule in &route.rules {
            for parameter in self.query(rule) {
                if !known.contains(&parameter["name"]) {
                    known.push(parameter["name"].clone());
                    parameters.push(parameter);
                }
            }
        }
        let each = |text: &dyn Fn(&Rule) -> String, with: &str| {
            let texts: Vec<String> = route.rules.iter().map(text).collect();
            texts.join(with)
        };
        let id = |r: &Rule| format!("{}_{}", r.rpc.parent_service().name(), r.rpc.name());
        let description = each(
            &|r| self.schemas.words_of(&r.rpc.parent_file(), r.rpc.path()),
            "\n\n",
        );
        let mut operation = json!({
            "operationId": each(&id, "_and_"),
            "summary": each(&|r| r.rpc.name().to_owned(), " and "),
            "description": description,
            "tags": [rule.rpc.parent_service().name()],
            "parameters": parameters,
        });
        if let Some(schema) = self.body(&route.method, rule) {
            operation["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": schema}}});
        }
        let outputs: Vec<_> = route.rules.iter().map(|rule| rule.rpc.output()).collect();
        let answer = match outputs.as_slice() {
            [one] => self.schemas.message(one),
            several => {
                let fields = several.iter().flat_map(MessageDescriptor::fields);
                self.schemas.object(fields)
            }
        };
        operation["responses"] = json!({
            "200": {"description": "Done.", "content": {"application/json": {"schema": answer}}},
            "default": {
                "description": "Why it failed.",
                "content": {"application/json": {"schema": reference("Error")}},
            },
        });
        (path, operation)
    }

    /// The schema of a rule's body; `None` if the path holds the whole request.
    fn body(&mut self, method: &Method, rule: &Rule) -> Option<Json> {
        match &rule.body {
            Body::None => None,
            Body::All => {
                let in_path: Vec<&str> = rule.template.fields().collect();
                let all = rule.rpc.input();
                let rest = all
                    .fields()
                    .filter(|field| !in_path.contains(&field.name()));
                let rest: Vec<_> = rest.collect();
                (!rest.is_empty()).then(|| self.schemas.object(rest))
            }
            Body::Field(field) => {
                let message = field.kind().as_message()?.clone();
                let purpose = match *method {
                    Method::PATCH => Purpose::Update,
                    _ => Purpose::Create,
                };
                Some(given::object(&mut self.schemas, &message, purpose))
            }
        }
    }

    /// The path in OpenAPI syntax, and the names of its variables.
    fn path(&self, template: &Template) -> (String, Vec<String>) {
        let shape = template.shape();
        let named = self.variables.iter().find_map(|(collection, names)| {
            let rest = shape.strip_prefix("/v1/")?.strip_prefix(collection)?;
            (!rest.contains('*') && (rest.is_empty() || rest.starts_with(['/', ':'])))
                .then(|| names.clone())
        });
        let mut names = Vec::new();
        let mut path = String::new();
        for segment in template.segments() {
            path.push('/');
            match segment {
                Segment::Literal(text) => path.push_str(text),
                Segment::Any => {
                    let position = names.len();
                    let name = named.as_ref().and_then(|all| all.get(position)).cloned();
                    let name = name.unwrap_or_else(|| format!("id{}", position + 1));
                    path.push_str(&format!("{{{name}}}"));
                    names.push(name);
                }
            }
        }
        if let Some(verb) = template.verb() {
            path.push_str(&format!(":{verb}"));
        }
        (path, names)
    }

    /// The query parameters of a rule: fields in neither path nor body.
    fn query(&mut self, rule: &Rule) -> Vec<Json> {
        let mut parameters = Vec::new();
        for field in rule.rpc.input().fields() {
            let elsewhere = match &rule.body {
                Body::None => false,
                Body::All => true,
                Body::Field(body) => *body == field,
            };
            let own = |m: &MessageDescriptor| m.package_name() != "google.protobuf";
            let nested = field.kind().as_message().is_some_and(own);
            if elsewhere || nested || rule.template.fields().any(|name| name == field.name()) {
                continue;
            }
            let schema = self.parameter(rule, &field);
            let file = field.parent_message().parent_file();
            let mut words = self.schemas.words_of(&file, field.path());
            if field
                .kind()
                .as_message()
                .is_some_and(|m| m.full_name() == mask::KIND)
            {
                words.push_str(MASK);
            }
            let mut parameter = json!({
                "name": field.json_name(),
                "in": "query",
                "description": words,
                // A list's parent is in the path where the kind has parents.
                "required": self.schemas.requires(&field) && field.name() != "parent",
                "schema": schema,
            });
            if field.name() != field.json_name() {
                parameter["x-also"] = Json::from(field.name());
            }
            parameters.push(parameter);
        }
        parameters
    }

    /// The schema of a query parameter.
    fn parameter(&mut self, rule: &Rule, field: &FieldDescriptor) -> Json {
        let object = match &rule.body {
            Body::Field(body) => body.kind().as_message().cloned(),
            _ => None,
        };
        match (field.kind(), object) {
            (Kind::Message(kind), Some(object)) if kind.full_name() == mask::KIND => {
                given::mask(&object)
            }
            (Kind::String, Some(_)) if field.name().ends_with("_id") => given::id(field.name()),
            (Kind::String, _) if !field.is_list() => given::any_text(),
            (Kind::Int32, _) if field.name() == "page_size" => {
                json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": i32::MAX})
            }
            _ => self.schemas.of_kind(field),
        }
    }
}

/// Names of the variables in resource names, by the shape of the name: `nvmeSubsystems/*` has `subsystem`.
fn variables(pool: &DescriptorPool) -> HashMap<String, Vec<String>> {
    let mut found = HashMap::new();
    let Some(extension) = pool.get_extension_by_name("google.api.resource") else {
        return found;
    };
    for message in pool.all_messages() {
        let options = message.options();
        let resource = options.get_extension(&extension);
        let patterns = resource
            .as_message()
            .and_then(|resource: &DynamicMessage| resource.get_field_by_name("pattern"));
        for pattern in patterns
            .as_deref()
            .and_then(Value::as_list)
            .unwrap_or_default()
        {
            let mut shape = Vec::new();
            let mut names = Vec::new();
            for segment in pattern.as_str().unwrap_or_default().split('/') {
                match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
                    Some(name) => {
                        names.push(name.to_owned());
                        shape.push("*");
                    }
                    None => shape.push(segment),
                }
            }
            found.insert(shape.join("/"), names);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    fn description() -> Json {
        let table = Table::new(api::pool()).unwrap();
        describe(api::pool(), &table)
    }

    #[test]
    fn every_rpc_is_described() {
        let description = description();
        let paths = description["paths"].as_object().unwrap();
        let ids: Vec<&str> = paths
            .values()
            .flat_map(|path| path.as_object().unwrap().values())
            .map(|operation| operation["operationId"].as_str().unwrap())
            .collect();
        for service in api::pool().services() {
            // Streams are served as server-sent events, outside of the gateway.
            for rpc in service.methods().filter(|rpc| !rpc.is_server_streaming()) {
                let id = format!("{}_{}", service.name(), rpc.name());
                assert!(ids.contains(&id.as_str()), "{id}");
            }
        }
        let mut unique = ids.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), ids.len(), "an operationId is used twice");
    }

    #[test]
    fn paths_name_their_variables() {
        let description = description();
        for path in [
            "/v1/nullVolumes/{volume}:stats",
            "/v1/nvmeSubsystems/{subsystem}/nvmeControllers/{controller}",
            "/v1/nvmeSubsystems/{subsystem}/nvmeControllers",
            "/v1/inventory/{id1}/inventory/{id2}",
            "/v1/volumes",
        ] {
            assert!(description["paths"].get(path).is_some(), "{path}");
        }
        let get = &description["paths"]["/v1/nullVolumes/{volume}"]["get"];
        assert_eq!(get["parameters"][0]["name"], "volume");
        assert_eq!(get["parameters"][0]["in"], "path");
        let list = &description["paths"]["/v1/nullVolumes"]["get"]["parameters"];
        assert_eq!(list[0]["name"], "pageSize");
        assert_eq!(list[0]["schema"]["type"], "integer");
    }

    #[test]
    fn comments_are_the_words() {
        let schema = &description()["components"]["schemas"]["NullVolume"];
        assert!(
            schema["description"]
                .as_str()
                .unwrap()
                .starts_with("A volume")
        );
        let size = &schema["properties"]["blockSize"];
        assert_eq!(size["type"], "string");
        let description = self::description();
        let given = &description["components"]["schemas"]["CreateNullVolume"];
        let size = &given["properties"]["blockSize"];
        assert!(size["description"].as_str().unwrap().ends_with("Required."));
        assert_eq!(schema["properties"]["name"]["readOnly"], true);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(json: &Json, found: &mut Vec<String>) {
            match json {
                Json::Object(object) => {
                    if let Some(Json::String(to)) = object.get("$ref") {
                        found.push(to.clone());
                    }
                    object.values().for_each(|json| references(json, found));
                }
                Json::Array(array) => array.iter().for_each(|json| references(json, found)),
                _ => {}
            }
        }
        let description = description();
        let mut found = Vec::new();
        references(&description, &mut found);
        assert!(found.len() > 200);
        for to in found {
            let pointer = to.strip_prefix('#').unwrap();
            assert!(
                description.pointer(pointer).is_some_and(Json::is_object),
                "{to}"
            );
        }
    }
}
