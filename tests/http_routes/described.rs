//! Checks that responses match the schemas of `GET /openapi.json`.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::common::{Answer, Http};

/// A target's OpenAPI description, for checking responses.
pub struct Described {
    /// By RPC name, for each of its paths: the schemas of a successful response and of an error.
    answers: BTreeMap<String, Vec<Rc<[jsonschema::Validator; 2]>>>,
}

impl Described {
    /// Fetches the description from a target.
    pub async fn by(http: &Http) -> Self {
        let description = http.send("GET", "/openapi.json", &[], Vec::new()).await;
        let description = plain(&description.body);
        let mut answers = BTreeMap::<String, Vec<_>>::new();
        for (path, methods) in description["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("methods") {
                let id = operation["operationId"].as_str().expect("an ID");
                let at = format!("/paths/{}/{method}/responses", path.replace('/', "~1"));
                let both = ["200", "default"].map(|status| {
                    let content = format!("{at}/{status}/content/application~1json/schema");
                    let mut schema = description.clone();
                    schema["$ref"] = json!(format!("#{}", encoded(&content)));
                    jsonschema::validator_for(&schema).expect("a schema")
                });
                let both = Rc::new(both);
                // Two lists share a path, and each has its own path too.
                for rpc in id
                    .split("_and_")
                    .filter_map(|rpc| rpc.split('_').next_back())
                {
                    let all = answers.entry(rpc.to_owned()).or_default();
                    all.push(Rc::clone(&both));
                }
            }
        }
        Self { answers }
    }

    /// Asserts that an RPC's response matches its schema.
    pub fn check(&self, rpc: &str, answer: &Answer) {
        let described = self.answers.get(rpc).expect("the RPC is described");
        let wrong: Vec<String> = described
            .iter()
            .filter_map(|both| {
                let schema = &both[usize::from(answer.status != 200)];
                let error = schema.validate(&answer.body).err()?;
                Some(format!("{error} at {}", error.instance_path()))
            })
            .collect();
        let fits = wrong.len() < described.len();
        assert!(fits, "{rpc}: {}:\n{}", wrong.join("; or "), answer.body);
    }
}

/// Encodes a JSON pointer as a URI fragment.
fn encoded(pointer: &str) -> String {
    pointer.replace('{', "%7B").replace('}', "%7D")
}

/// Converts OpenAPI 3.0 schemas to JSON Schema, which has no `nullable`: null becomes a type.
fn plain(json: &Value) -> Value {
    match json {
        Value::Object(object) => {
            let mut object: Map<String, Value> = object
                .iter()
                .map(|(name, value)| (name.clone(), plain(value)))
                .collect();
            // `nullable` has a meaning only next to `type`.
            if let (Some(Value::Bool(true)), Some(Value::String(kind))) =
                (object.get("nullable"), object.get("type"))
            {
                let both = json!([kind, "null"]);
                object.insert("type".to_owned(), both);
            }
            Value::Object(object)
        }
        Value::Array(array) => array.iter().map(plain).collect(),
        other => other.clone(),
    }
}
