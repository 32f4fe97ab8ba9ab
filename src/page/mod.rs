//! The page at `GET /` of the HTTP port: data path, load, conditions and events, in one document that loads nothing
//! but the API and `/metrics`.
//!
//! Its Content-Security-Policy allows its one style and one script by hash, so that nothing injected through an
//! object's name can run.

use axum::Router;
use axum::http::Method;
use axum::routing::get;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use ring::digest::{SHA256, digest};

use crate::gateway;

const DOCUMENT: &str = include_str!("index.html");
const STYLE: &str = include_str!("style.css");
/// In order of dependency.
const SCRIPTS: [&str; 6] = [
    include_str!("core.js"),
    include_str!("feed.js"),
    include_str!("picture.js"),
    include_str!("plots.js"),
    include_str!("lists.js"),
    include_str!("main.js"),
];

/// Routes `GET /`.
pub fn router() -> Router {
    let script = format!("'use strict';\n{}", SCRIPTS.concat());
    let policy = policy(STYLE, &script);
    let page = Bytes::from(document(STYLE, &script));
    let page = async move || {
        let headers = [
            ("content-type", "text/html; charset=utf-8".to_owned()),
            ("content-security-policy", policy),
            ("x-content-type-options", "nosniff".to_owned()),
            ("referrer-policy", "no-referrer".to_owned()),
            ("cache-control", "no-cache".to_owned()),
        ];
        (headers, page)
    };
    let refuse = async |method: Method| gateway::only_get(&method);
    Router::new().route("/", get(page).fallback(refuse))
}

fn document(style: &str, script: &str) -> String {
    DOCUMENT
        .replacen("/*STYLE*/", style, 1)
        .replacen("/*SCRIPT*/", script, 1)
}

/// The Content-Security-Policy: nothing else may be loaded, sent or framed.
fn policy(style: &str, script: &str) -> String {
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        source(script),
        source(style)
    )
}

/// A CSP source given by the content's hash.
fn source(text: &str) -> String {
    let hash = digest(&SHA256, text.as_bytes());
    format!("'sha256-{}'", BASE64_STANDARD.encode(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_its_parts_whole_and_once() {
        let page = document("STYLE", "let a = '$&';");
        assert!(page.contains("<style>STYLE</style>"));
        assert!(page.contains("<script>let a = '$&';</script>"));
        assert_eq!(page.matches("<script").count(), 1);
    }

    #[test]
    fn a_script_cannot_end_before_its_end() {
        for script in SCRIPTS {
            assert!(!script.contains("</script") && !script.contains("<!--"));
        }
        assert!(!STYLE.contains("</style"));
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        for part in SCRIPTS.into_iter().chain([STYLE, DOCUMENT]) {
            let outside = part.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !outside.contains("http://") && !outside.contains("https://"),
                "{part}"
            );
        }
    }
}
