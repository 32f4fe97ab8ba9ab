//! Defends against web pages of other sites (CSRF, DNS rebinding), whose requests a browser sends with its user's
//! access.
//!
//! - `Host` is an IP address, `localhost`, or a configured name. With TLS, the certificate proves the host instead.
//! - `Origin` and `Sec-Fetch-Site` name this server, or an origin that is allowed by the configuration (CORS).
//! - A body has a JSON content type, which a page can only send after a CORS preflight.

use std::net::IpAddr;

use axum::body::Body;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    CONTENT_TYPE, HOST, HeaderName, ORIGIN, VARY,
};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Method, Response, StatusCode};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::service::Protocol;
use crate::config::Web;
use crate::error::{DOMAIN, Error};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Why a request is refused.
pub enum Refusal {
    /// This response is sent as it is.
    Answer(Box<Response<Body>>),
    /// An error; `http` overrides the HTTP status of the gRPC code.
    Error {
        /// The error.
        status: Status,
        /// The HTTP status.
        http: Option<StatusCode>,
    },
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error {
            status: error.into(),
            http: None,
        }
    }
}

/// The origin policy.
pub struct Guard {
    web: Web,
    tls: bool,
}

impl Guard {
    /// Allows the origins of `web` and the server's own.
    pub fn new(web: Web, tls: bool) -> Self {
        Self { web, tls }
    }

    /// Checks a request. Returns the foreign origin that may read the answer, if any.
    ///
    /// # Errors
    /// The response to a refused request.
    pub fn check(
        &self,
        protocol: Protocol,
        head: &Parts,
        has_body: bool,
    ) -> Result<Option<HeaderValue>, Refusal> {
        let host = host(head)?;
        if protocol != Protocol::Grpc {
            self.check_host(host.as_deref())?;
        }
        let allowed = self.check_origin(head, host.as_deref())?;
        if allowed.is_some()
            && head.method == Method::OPTIONS
            && head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
        {
            return Err(Refusal::Answer(Box::new(self.preflight(allowed))));
        }
        if protocol == Protocol::Grpc || has_body {
            check_content_type(protocol, head)?;
        }
        Ok(allowed)
    }

    /// Allows this origin to read the answer (CORS).
    pub fn admit<B>(&self, answer: &mut Response<B>, origin: HeaderValue) {
        let headers = answer.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let yes = HeaderValue::from_static("true");
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }

    fn check_host(&self, host: Option<&str>) -> Result<(), Refusal> {
        // Browsers always send `Host`.
        let Some(host) = host.filter(|_| !self.tls) else {
            return Ok(());
        };
        let name = host.parse::<Authority>().map(|found| {
            let name = found.host().trim_end_matches('.').to_ascii_lowercase();
            name.trim_matches(['[', ']']).to_owned()
        });
        let is_known = |name: &str| {
            name == "localhost"
                || name.parse::<IpAddr>().is_ok()
                || self.web.hosts.iter().any(|known| known == name)
        };
        match name {
            Ok(name) if is_known(&name) => Ok(()),
            _ => Err(forbidden(format!(
                "host {host:?} is not a name of this server: use its IP address, localhost, or a name \
                 given by http-hosts"
            ))),
        }
    }

    fn check_origin(
        &self,
        head: &Parts,
        host: Option<&str>,
    ) -> Result<Option<HeaderValue>, Refusal> {
        let mut origins = head.headers.get_all(ORIGIN).iter();
        if let Some(origin) = origins.next() {
            let text = origin.to_str().unwrap_or_default().to_ascii_lowercase();
            let own = if self.tls { "https://" } else { "http://" };
            let is_own = text
                .strip_prefix(own)
                .is_some_and(|from| host.is_some_and(|host| host.eq_ignore_ascii_case(from)));
            let one = origins.next().is_none();
            if one && self.web.origins.contains(&text) {
                return Ok(Some(origin.clone()));
            }
            if !one || !is_own {
                return Err(forbidden(format!(
                    "origin {text:?} may not use this server: http-origins lists those that may"
                )));
            }
        }
        match head.headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes) {
            None | Some(b"same-origin" | b"none") => Ok(None),
            Some(site) => Err(forbidden(format!(
                "a request of another site (sec-fetch-site: {}) is not served: http-origins lists the \
                 origins that may use this server",
                String::from_utf8_lossy(site)
            ))),
        }
    }

    /// The answer to a CORS preflight.
    fn preflight(&self, origin: Option<HeaderValue>) -> Response<Body> {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        let headers = answer.headers_mut();
        for (name, value) in [
            (
                ACCESS_CONTROL_ALLOW_METHODS,
                "GET, HEAD, POST, PUT, PATCH, DELETE",
            ),
            (
                ACCESS_CONTROL_ALLOW_HEADERS,
                "authorization, content-type, grpc-timeout",
            ),
            (ACCESS_CONTROL_MAX_AGE, "600"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Some(origin) = origin {
            self.admit(&mut answer, origin);
        }
        answer
    }
}

/// The host of the request; several are refused.
fn host(head: &Parts) -> Result<Option<String>, Refusal> {
    if let Some(authority) = head.uri.authority() {
        return Ok(Some(authority.as_str().to_owned()));
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let Some(host) = hosts.next() else {
        return Ok(None);
    };
    match (host.to_str(), hosts.next()) {
        (Ok(host), None) => Ok(Some(host.to_owned())),
        _ => Err(Error::invalid("host", "the header must be there once, in ASCII").into()),
    }
}

fn check_content_type(protocol: Protocol, head: &Parts) -> Result<(), Refusal> {
    let value = head.headers.get(CONTENT_TYPE);
    let text = value.and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = text.split(';').next().unwrap_or("").trim();
    let essence = essence.to_ascii_lowercase();
    let (good, right) = match protocol {
        Protocol::Grpc => (essence.starts_with("application/grpc"), "application/grpc"),
        Protocol::Http | Protocol::Rpc => {
            let json = essence == "application/json"
                || (essence.starts_with("application/") && essence.ends_with("+json"));
            (json, "application/json")
        }
    };
    if good {
        return Ok(());
    }
    let what = format!("{text:?}: a body needs {right}");
    Err(Refusal::Error {
        status: Error::invalid("content-type", what).into(),
        http: Some(StatusCode::UNSUPPORTED_MEDIA_TYPE),
    })
}

fn forbidden(message: String) -> Refusal {
    let details = ErrorDetails::with_error_info("FOREIGN_SITE", DOMAIN, []);
    Refusal::Error {
        status: Status::with_error_details(Code::PermissionDenied, message, details),
        http: Some(StatusCode::FORBIDDEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    fn verdict(tls: bool, headers: &[(&str, &str)], has_body: bool) -> Result<bool, u16> {
        let web = Web {
            hosts: vec!["dpu.example".to_owned()],
            origins: vec!["https://console.example".to_owned()],
        };
        let mut request = Request::post("/v1/x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        match Guard::new(web, tls).check(Protocol::Http, &head, has_body) {
            Ok(allowed) => Ok(allowed.is_some()),
            Err(Refusal::Answer(answer)) => Err(answer.status().as_u16()),
            Err(Refusal::Error { http, .. }) => Err(http.map_or(0, |http| http.as_u16())),
        }
    }

    #[test]
    fn a_host_is_an_address_localhost_or_a_given_name() {
        for host in [
            "127.0.0.1:8082",
            "[::1]:8082",
            "[fe80::1]",
            "localhost",
            "LocalHost.:80",
            "dpu.example:8082",
        ] {
            assert_eq!(
                verdict(false, &[("host", host)], false),
                Ok(false),
                "{host}"
            );
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "a@localhost.example",
            "",
        ] {
            assert_eq!(verdict(false, &[("host", host)], false), Err(403), "{host}");
        }
        let two = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(verdict(false, &two, false), Err(0));
        assert_eq!(verdict(true, &[("host", "any.example")], false), Ok(false));
        assert_eq!(verdict(false, &[], false), Ok(false));
    }

    #[test]
    fn an_origin_is_this_server_or_an_allowed_one() {
        let from = |origin, site| {
            let headers = [
                ("host", "localhost:8082"),
                ("origin", origin),
                ("sec-fetch-site", site),
            ];
            verdict(false, &headers, false)
        };
        assert_eq!(from("http://localhost:8082", "same-origin"), Ok(false));
        assert_eq!(from("https://console.example", "cross-site"), Ok(true));
        for (origin, site) in [
            ("http://localhost:8083", "same-site"),
            ("https://localhost:8082", "same-origin"),
            ("null", "cross-site"),
            ("https://console.example.evil", "cross-site"),
            ("http://localhost:8082", "cross-site"),
        ] {
            assert_eq!(from(origin, site), Err(403), "{origin} {site}");
        }
        let alone = |site| verdict(false, &[("sec-fetch-site", site)], false);
        assert_eq!((alone("none"), alone("cross-site")), (Ok(false), Err(403)));
    }

    #[test]
    fn a_body_is_json() {
        let with = |kind| verdict(false, &[("content-type", kind)], true);
        for kind in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/merge-patch+json",
        ] {
            assert_eq!(with(kind), Ok(false), "{kind}");
        }
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "text/plain;application/json",
            "multipart/form-data",
        ] {
            assert_eq!(with(kind), Err(415), "{kind}");
        }
        assert_eq!(verdict(false, &[], true), Err(415));
        assert_eq!(
            verdict(false, &[("content-type", "text/plain")], false),
            Ok(false)
        );
    }
}
