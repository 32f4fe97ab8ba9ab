//! Lists that share one path: `GET /v1/volumes` answers all of them in one object, as one list.
//!
//! A page is filled from one list after the other, so `page_size` counts for all of them together.
//! The answer's `nextPageToken` names the list to go on with and holds that list's own token. Where
//! a page ends together with a list, the next page may be empty.

use axum::http::request::Parts;
use prost_reflect::DynamicMessage;
use serde_json::{Map, Value as Json};

use super::call::{self, Services};
use super::request;
use super::response::{self, Failure};
use super::route::Rule;
use super::template::Captures;
use crate::error::Error;
use crate::resource::paging;

const NEXT: &str = "nextPageToken";

/// Answers one page over all lists.
pub async fn list(
    services: &Services,
    rules: &[(&Rule, Captures)],
    from: &Parts,
    query: &[(String, String)],
) -> Result<Json, Failure> {
    let names: Vec<&str> = rules.iter().map(|(rule, _)| rule.rpc.name()).collect();
    let (size, token) = asked(rules, query)?;
    let mut left = paging::size(size)?;
    let (first, mut token) = open(&token, &names)?;
    let mut next = String::new();
    let mut answer = Map::new();
    for (at, (rule, captures)) in rules.iter().enumerate() {
        if left == 0 && next.is_empty() {
            next = close(names[at], "");
        }
        let page = if at < first || !next.is_empty() {
            DynamicMessage::new(rule.rpc.output())
        } else {
            let query = [
                ("page_size".to_owned(), left.to_string()),
                ("page_token".to_owned(), std::mem::take(&mut token)),
            ];
            let message = request::build(rule, captures, &query, &[])?;
            call::unary(services.clone(), rule, from, &message).await?
        };
        let Json::Object(mut page) = response::json(&page)? else {
            continue;
        };
        match page.remove(NEXT) {
            Some(Json::String(more)) if !more.is_empty() => next = close(names[at], &more),
            _ => {}
        }
        let found: usize = page.values().filter_map(Json::as_array).map(Vec::len).sum();
        left = left.saturating_sub(found);
        answer.append(&mut page);
    }
    answer.insert(NEXT.to_owned(), Json::String(next));
    Ok(Json::Object(answer))
}

/// The size and the token of the page that a query asks for, read as the first list reads them.
fn asked(rules: &[(&Rule, Captures)], query: &[(String, String)]) -> Result<(i32, String), Error> {
    let Some((rule, captures)) = rules.first() else {
        return Ok((0, String::new()));
    };
    let asked = request::build(rule, captures, query, &[])?;
    let size = asked.get_field_by_name("page_size");
    let token = asked.get_field_by_name("page_token");
    Ok((
        size.and_then(|size| size.as_i32()).unwrap_or_default(),
        token
            .and_then(|token| token.as_str().map(str::to_owned))
            .unwrap_or_default(),
    ))
}

/// A token of all lists: go on in this one, with its own token; with none, at its begin.
fn close(list: &str, token: &str) -> String {
    format!("{list}.{token}")
}

/// Which list a token goes on with, and the token of that list.
fn open(token: &str, lists: &[&str]) -> Result<(usize, String), Error> {
    if token.is_empty() {
        return Ok((0, String::new()));
    }
    let found = token.split_once('.').and_then(|(name, own)| {
        let at = lists.iter().position(|list| *list == name)?;
        Some((at, own.to_owned()))
    });
    found.ok_or_else(|| {
        Error::invalid(
            "page_token",
            format!("{token:?} is none: it must be the nextPageToken of an answer of this path"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS: [&str; 2] = ["ListEncryptedVolumes", "ListQosVolumes"];

    #[test]
    fn a_token_names_its_list_and_holds_the_token_of_it() {
        for (at, list) in LISTS.into_iter().enumerate() {
            for own in ["", "abc-_", "a.b"] {
                assert_eq!(open(&close(list, own), &LISTS), Ok((at, own.to_owned())));
            }
        }
        assert_eq!(open("", &LISTS), Ok((0, String::new())));
    }

    #[test]
    fn a_bad_token_is_refused() {
        for bad in ["x", "ListQosVolumes", "ListNullVolumes.a", ".", "%"] {
            assert!(open(bad, &LISTS).is_err(), "{bad}");
        }
    }
}
