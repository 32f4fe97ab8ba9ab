//! What `GET /openapi.json` says of answers, and whether they are so.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::common::{Answer, Http};

/// The description of a target, by which its answers can be checked.
pub struct Described {
    /// For each RPC by its name the schemas of a good answer and of an error, on each of its paths.
    answers: BTreeMap<String, Vec<Rc<[jsonschema::Validator; 2]>>>,
}

impl Described {
    /// By the target that is there.
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
                // Two lists have one path, and each another of its own.
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

    /// The answer of an RPC is as described.
    pub fn check(&self, rpc: &str, answer: &Answer) {
        let described = self.answers.get(rpc).expect("it is described");
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

/// A pointer as a fragment of a URI.
fn encoded(pointer: &str) -> String {
    pointer.replace('{', "%7B").replace('}', "%7D")
}

/// Schemas of OpenAPI 3.0 as those of JSON Schema: there a type says by itself that null is one.
fn plain(json: &Value) -> Value {
    match json {
        Value::Object(object) => {
            let mut object: Map<String, Value> = object
                .iter()
                .map(|(name, value)| (name.clone(), plain(value)))
                .collect();
            // Beside a type alone it means something.
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
