//! Kinds without an implementation: every method returns UNIMPLEMENTED.

use std::collections::BTreeSet;

use opi_spdk::api;
use serde_json::json;
use tonic::Code;

use crate::common::Client;
use crate::kinds::{IMPLEMENTED, OBSERVED, UNIMPLEMENTED};

/// Calls every method of the kind.
pub async fn every_verb_returns_unimplemented(client: &Client, message: &str) {
    let mut called = 0;
    for method in api::pool()
        .services()
        .flat_map(|s| s.methods().collect::<Vec<_>>())
    {
        let name = method.name();
        let object = [
            "Create", "Get", "Update", "Delete", "Stats", "Reset", "List",
        ]
        .iter()
        .find_map(|verb| name.strip_prefix(verb));
        if object == Some(message) || object == Some(&format!("{message}s")) {
            client.fails(name, json!({}), Code::Unimplemented).await;
            called += 1;
        }
    }
    assert!(called >= 2, "{message} has {called} methods");
}

pub fn every_kind_of_the_api_is_in_one_of_the_tables() {
    let pool = api::pool();
    let resource = pool
        .get_extension_by_name("google.api.resource")
        .expect("the extension is imported");
    let kinds: BTreeSet<String> = pool
        .all_messages()
        .filter(|message| message.options().has_extension(&resource))
        .map(|message| message.name().to_owned())
        .collect();
    let implemented = IMPLEMENTED.iter().map(|kind| kind.message);
    let listed: Vec<String> = implemented
        .chain(UNIMPLEMENTED.iter().chain(OBSERVED).copied())
        .map(str::to_owned)
        .collect();
    assert_eq!(listed.len(), kinds.len(), "a kind is listed twice");
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), kinds);
}
