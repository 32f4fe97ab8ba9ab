//! The routes of the API's table and of this project's kinds, and assertions on their responses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use opi_spdk::api;
use serde_json::Value;

use crate::common::{Answer, Http, Target, route};
use crate::described::Described;

const TABLE: &str = include_str!("../data/opi-api.tsv");

/// The package of this project's kinds. Its ObjectService is not a kind and has its own tests.
const OWN: &str = "opi_spdk.v1";
const OF_ALL_OBJECTS: &str = "ObjectService";

/// The HTTP route of an RPC.
pub struct Rpc {
    method: String,
    template: String,
}

/// Returns the table's routes by RPC.
fn published() -> impl Iterator<Item = (String, Rpc)> {
    TABLE.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split('\t').collect();
        let ("rpc", name) = (columns[0], columns[1].rsplit('.').next()?) else {
            return None;
        };
        let (method, template) = columns[4].split_once(' ')?;
        let (method, template) = (method.to_owned(), template.to_owned());
        Some((name.to_owned(), Rpc { method, template }))
    })
}

/// Returns the routes of this project's kinds by RPC.
fn own() -> impl Iterator<Item = (String, Rpc)> {
    let services = api::pool().services();
    let own = services.filter(|s| s.package_name() == OWN && s.name() != OF_ALL_OBJECTS);
    own.flat_map(|service| {
        let rpcs = service.methods().map(|rpc| {
            let (method, template, _) = route(&rpc);
            (rpc.name().to_owned(), Rpc { method, template })
        });
        rpcs.collect::<Vec<_>>()
    })
}

/// The routes, and the set of those exercised so far.
pub struct Routes {
    pub http: Http,
    pub rpcs: BTreeMap<String, Rpc>,
    pub taken: Mutex<BTreeSet<String>>,
    described: Described,
}

impl Routes {
    pub async fn new(target: &Target) -> Self {
        let http = Http(target.http);
        Self {
            http,
            rpcs: published().chain(own()).collect(),
            taken: Mutex::default(),
            described: Described::by(&http).await,
        }
    }

    /// Calls an RPC over its route; `name` fills the path's variable.
    pub async fn call(&self, rpc: &str, name: &str, query: &str, body: Option<&Value>) -> Answer {
        let (rpc, Rpc { method, template }) = self
            .rpcs
            .get_key_value(rpc)
            .unwrap_or_else(|| panic!("no {rpc}"));
        let path = match (template.find('{'), template.find('}')) {
            (Some(from), Some(to)) => {
                let (_, pattern) = template[from + 1..to].split_once('=').expect("a pattern");
                let name = if pattern.contains('*') { name } else { pattern };
                format!("{}{name}{}", &template[..from], &template[to + 1..])
            }
            _ => template.clone(),
        };
        let query = if query.is_empty() {
            String::new()
        } else {
            format!("?{query}")
        };
        let body = body
            .map(|body| body.to_string().into_bytes())
            .unwrap_or_default();
        self.taken.lock().expect("no panic").insert(rpc.clone());
        let answer = self
            .http
            .send(method, &format!("{path}{query}"), &[], body)
            .await;
        self.described.check(rpc, &answer);
        answer
    }

    /// Makes a call that must succeed; returns the body.
    pub async fn ok(&self, rpc: &str, name: &str, query: &str, body: Option<&Value>) -> Value {
        let answer = self.call(rpc, name, query, body).await;
        assert_eq!(
            answer.status, 200,
            "{rpc} {name}?{query} {body:?}: {}",
            answer.body
        );
        assert_eq!(answer.headers["content-type"], "application/json");
        answer.body
    }

    /// Makes a call that must fail with this HTTP status and gRPC code.
    pub async fn fails(
        &self,
        rpc: &str,
        name: &str,
        query: &str,
        body: Option<&Value>,
        wanted: (u16, i32),
    ) {
        let answer = self.call(rpc, name, query, body).await;
        expect_error(&answer, wanted, &format!("{rpc} {name}?{query} {body:?}"));
    }
}

pub fn expect_error(answer: &Answer, (status, code): (u16, i32), call: &str) {
    assert_eq!(answer.status, status, "{call}: {}", answer.body);
    let fields: Vec<&String> = answer.body.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["code", "details", "message"], "{call}");
    assert_eq!(answer.body["code"], code, "{call}: {}", answer.body);
    assert!(
        !answer.body["message"].as_str().expect("a text").is_empty(),
        "{call}"
    );
    let details = answer.body["details"].as_array().expect("a list");
    let reason = |detail: &Value| detail["@type"] == "type.googleapis.com/google.rpc.ErrorInfo";
    assert!(details.iter().any(reason), "{call}: {}", answer.body);
}

pub const NOT_FOUND: (u16, i32) = (404, 5);
pub const ALREADY_EXISTS: (u16, i32) = (409, 6);
pub const INVALID: (u16, i32) = (400, 3);
pub const WRONG_STATE: (u16, i32) = (400, 9);
