//! Lists that share one path: `GET /v1/volumes` answers all of them in one object.
//!
//! Each list is asked with the same query. `page_size` counts for each of them, and the answer's
//! `nextPageToken` holds a token for each list that has more; a list without a token in it has been
//! read to its end and answers nothing more.

use axum::http::request::Parts;
use serde_json::{Map, Value as Json};

use super::call::{self, Services};
use super::request;
use super::response::{self, Failure};
use super::route::Rule;
use super::template::Captures;
use crate::error::Error;
use prost_reflect::DynamicMessage;

const NEXT: &str = "nextPageToken";

/// Asks all lists, one after the other, and answers what they answered.
pub async fn list(
    services: &Services,
    rules: &[(&Rule, Captures)],
    from: &Parts,
    query: &[(String, String)],
) -> Result<Json, Failure> {
    let names: Vec<&str> = rules.iter().map(|(rule, _)| rule.rpc.name()).collect();
    let is_token = |name: &str| name == "page_token" || name == "pageToken";
    let (tokens, query): (Vec<_>, Vec<_>) = query.iter().cloned().partition(|(n, _)| is_token(n));
    let tokens = match tokens.as_slice() {
        [] => None,
        [(_, token)] if token.is_empty() => None,
        [(_, token)] => Some(open(token, &names)?),
        _ => return Err(Error::invalid("page_token", "it is given twice").into()),
    };
    let mut answer = Map::new();
    let mut next = Vec::new();
    for (rule, captures) in rules {
        let name = rule.rpc.name();
        let token = tokens
            .as_ref()
            .map(|all| all.iter().find(|(n, _)| n == name));
        let mut query = query.clone();
        let page = match token {
            Some(None) => DynamicMessage::new(rule.rpc.output()),
            more => {
                if let Some(Some((_, token))) = more {
                    query.push(("page_token".to_owned(), token.clone()));
                }
                let message = request::build(rule, captures, &query, &[])?;
                call::unary(services.clone(), rule, from, &message).await?
            }
        };
        let Json::Object(mut page) = response::json(&page)? else {
            continue;
        };
        if let Some(Json::String(token)) = page.remove(NEXT)
            && !token.is_empty()
        {
            next.push((name.to_owned(), token));
        }
        answer.append(&mut page);
    }
    answer.insert(NEXT.to_owned(), Json::String(close(&next)));
    Ok(Json::Object(answer))
}

/// One token out of those of several lists; empty for none.
fn close(tokens: &[(String, String)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(tokens)
        .finish()
}

/// The tokens in a token.
fn open(token: &str, lists: &[&str]) -> Result<Vec<(String, String)>, Error> {
    let tokens: Vec<(String, String)> = form_urlencoded::parse(token.as_bytes())
        .into_owned()
        .collect();
    let known =
        |(name, token): &(String, String)| lists.contains(&name.as_str()) && !token.is_empty();
    if tokens.is_empty() || !tokens.iter().all(known) || close(&tokens) != token {
        return Err(Error::invalid(
            "page_token",
            format!("{token:?} is none: it must be the nextPageToken of an answer of this path"),
        ));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS: [&str; 2] = ["ListEncryptedVolumes", "ListQosVolumes"];

    #[test]
    fn a_token_holds_those_of_the_lists_that_have_more() {
        let both = vec![
            ("ListEncryptedVolumes".to_owned(), "a=/&b".to_owned()),
            ("ListQosVolumes".to_owned(), "c".to_owned()),
        ];
        assert_eq!(open(&close(&both), &LISTS).unwrap(), both);
        assert_eq!(open(&close(&both[1..]), &LISTS).unwrap(), both[1..]);
        assert_eq!(close(&[]), "");
    }

    #[test]
    fn a_bad_token_is_refused() {
        for bad in [
            "x",
            "ListQosVolumes",
            "ListQosVolumes=",
            "ListNullVolumes=a",
            "&",
            "%",
        ] {
            assert!(open(bad, &LISTS).is_err(), "{bad}");
        }
    }
}
