//! Authentication: finds the grants of a request's sender.

use axum::http::Request;
use axum::http::header::AUTHORIZATION;
use rustix::process::getuid;

use super::policy::{Grant, Policy, Role};
use super::san::sans;
use crate::error::Error;
use crate::server::{Address, Caller};

/// The grants of a request's sender: by token, certificate and local user.
///
/// # Errors
/// UNAUTHENTICATED if no grant matches.
pub(super) fn grants<B>(policy: &Policy, request: &Request<B>) -> Result<Vec<Grant>, Error> {
    let mut found: Vec<Grant> = Vec::new();
    let caller = request.extensions().get::<Caller>();
    let token = request.headers().get(AUTHORIZATION);
    if let Some(token) = token {
        let token = bearer(token.as_bytes()).unwrap_or_default();
        found.extend(policy.of_token(token).cloned());
    }
    if let Some(caller) = caller {
        let sans = caller.certificate.as_deref().map(|der| sans(der));
        let sans = sans.unwrap_or_default();
        let subject = caller.subject.as_deref();
        found.extend(policy.of_certificate(subject, &sans).cloned());
        if let Address::User(uid) = caller.address {
            found.extend(policy.of_uid(uid).cloned());
            if is_owner(uid) {
                found.push(Grant {
                    role: Role::Admin,
                    prefix: None,
                    by: format!("owner uid {uid}").into(),
                });
            }
        }
    }
    if found.is_empty() {
        let who = caller.and_then(|caller| match (&caller.subject, caller.address) {
            (Some(subject), _) => Some(subject.to_string()),
            (None, user @ Address::User(_)) => Some(user.to_string()),
            (None, Address::Network(_)) => None,
        });
        return Err(Error::Unauthenticated(match (token, who) {
            (Some(_), _) => "no grant is for this token: send one of access-file as \
                             \"authorization: Bearer TOKEN\""
                .to_owned(),
            (None, Some(who)) => format!("no grant of access-file is for {who}"),
            (None, None) => "access-file has grants for known clients alone: send a token as \
                             \"authorization: Bearer TOKEN\", or a certificate"
                .to_owned(),
        }));
    }
    Ok(found)
}

/// Whether a user has all rights: root and the process's own user can read its memory and replace its files anyway.
pub(super) fn is_owner(uid: u32) -> bool {
    uid == 0 || uid == getuid().as_raw()
}

/// The token of an `Authorization` header (RFC 6750).
fn bearer(header: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, token) = header.split_at_checked(SCHEME.len())?;
    scheme
        .eq_ignore_ascii_case(SCHEME)
        .then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_follows_its_scheme() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        for other in [&b"Basic abc"[..], b"abc", b"", b"Bearer"] {
            assert_eq!(bearer(other), None);
        }
    }
}
