//! Lists that share one path: `GET /v1/volumes` merges them into one list.
//!
//! A page is filled from one list after the other, and `page_size` limits them together. `nextPageToken` names the
//! list to continue with and contains that list's own token. If a page ends exactly at the end of a list, the next
//! page may be empty.

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

/// Lists one page over all lists.
pub async fn list(
    services: &Services,
    rules: &[(&Rule, Captures)],
    from: &Parts,
    query: &[(String, String)],
) -> Result<Json, Failure> {
    let names: Vec<&str> = rules.iter().map(|(rule, _)| rule.rpc.name()).collect();
    let (size, token) = page_of(rules, query)?;
    let mut left = paging::size(size)?;
    let (first, mut token) = split_token(&token, &names)?;
    let mut next = String::new();
    let mut answer = Map::new();
    for (at, (rule, captures)) in rules.iter().enumerate() {
        if left == 0 && next.is_empty() {
            next = join_token(names[at], "");
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
            Some(Json::String(more)) if !more.is_empty() => next = join_token(names[at], &more),
            _ => {}
        }
        let found: usize = page.values().filter_map(Json::as_array).map(Vec::len).sum();
        left = left.saturating_sub(found);
        answer.append(&mut page);
    }
    answer.insert(NEXT.to_owned(), Json::String(next));
    Ok(Json::Object(answer))
}

/// The page size and token of a query, parsed by the first list's rules.
fn page_of(
    rules: &[(&Rule, Captures)],
    query: &[(String, String)],
) -> Result<(i32, String), Error> {
    let Some((rule, captures)) = rules.first() else {
        return Ok((0, String::new()));
    };
    let page = request::build(rule, captures, query, &[])?;
    let size = page.get_field_by_name("page_size");
    let token = page.get_field_by_name("page_token");
    Ok((
        size.and_then(|size| size.as_i32()).unwrap_or_default(),
        token
            .and_then(|token| token.as_str().map(str::to_owned))
            .unwrap_or_default(),
    ))
}

/// Builds a merged token: the list to continue with, and its own token (empty for its start).
fn join_token(list: &str, token: &str) -> String {
    format!("{list}.{token}")
}

/// Splits a merged token into the index of its list and that list's own token.
fn split_token(token: &str, lists: &[&str]) -> Result<(usize, String), Error> {
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
                assert_eq!(
                    split_token(&join_token(list, own), &LISTS),
                    Ok((at, own.to_owned()))
                );
            }
        }
        assert_eq!(split_token("", &LISTS), Ok((0, String::new())));
    }

    #[test]
    fn a_bad_token_is_refused() {
        for bad in ["x", "ListQosVolumes", "ListNullVolumes.a", ".", "%"] {
            assert!(split_token(bad, &LISTS).is_err(), "{bad}");
        }
    }
}
