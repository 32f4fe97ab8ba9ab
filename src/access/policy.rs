//! The file of grants.
//!
//! ```toml
//! [[grant]]
//! role = "operator"                      # viewer, operator or admin
//! subject = "CN=orchestrator"            # who: one of subject, san, token-file, uid
//! prefix = "tenant-a-"                   # of the IDs of objects; all objects without it
//! ```

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{Digest, SHA256, digest};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::san::San;
use crate::config::one_line;
use crate::distinguished_name;
use crate::private_file;
use crate::resource::id;

/// What a client may do. Ordered: each role includes the lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read: Get, List, Stats, Watch, metrics.
    Viewer,
    /// Also change everything but hosts and keys.
    Operator,
    /// Also change hosts and keys.
    Admin,
}

impl Role {
    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// A role, and the objects that it applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The role.
    pub role: Role,
    /// Prefix of the IDs of its objects; `None` for all objects.
    pub prefix: Option<String>,
    /// How it knows its client, for the audit log: `uid 1001`, `subject CN=a`, `san dns:a.example`,
    /// `token-file FILE`.
    pub by: Arc<str>,
}

/// Identity of a client.
enum Who {
    /// As [`distinguished_name::text`] formats it.
    Subject(String),
    San(San),
    Token(Digest),
    Uid(u32),
}

/// All grants.
pub struct Policy(Vec<(Who, Grant)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "grant")]
    grants: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Line {
    role: Role,
    subject: Option<String>,
    san: Option<String>,
    token_file: Option<PathBuf>,
    uid: Option<u32>,
    prefix: Option<String>,
}

/// Maximum size of the file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Length of a token in bytes: long enough not to be guessed, short enough for a header.
const TOKEN: std::ops::RangeInclusive<usize> = 32..=1024;

impl Policy {
    /// Reads the file and the token files it names.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn read(file: &Path) -> Result<Self, String> {
        let fail = |reason: String| format!("access-file {}: {reason}", file.display());
        let text = read(file, FILE_MAX, 0o022, "others may write to it").map_err(fail)?;
        let text = String::from_utf8(text).map_err(|_| fail("it is no text".to_owned()))?;
        let document: Document =
            toml::from_str(&text).map_err(|error| fail(one_line(&text, &error)))?;
        if document.grants.is_empty() {
            return Err(fail(
                "it has no [[grant]], so nobody could do anything".to_owned(),
            ));
        }
        let grants = document
            .grants
            .into_iter()
            .enumerate()
            .map(|(index, line)| {
                line.read()
                    .map_err(|reason| fail(format!("grant {}: {reason}", index + 1)))
            });
        grants.collect::<Result<_, _>>().map(Self)
    }

    /// Whether a client is identified by a token.
    pub fn has_tokens(&self) -> bool {
        self.0.iter().any(|(who, _)| matches!(who, Who::Token(_)))
    }

    /// Whether a client is identified by a certificate.
    pub fn has_certificates(&self) -> bool {
        let mut all = self.0.iter();
        all.any(|(who, _)| matches!(who, Who::Subject(_) | Who::San(_)))
    }

    /// Whether a client is identified as a user of this machine.
    pub fn has_users(&self) -> bool {
        self.0.iter().any(|(who, _)| matches!(who, Who::Uid(_)))
    }

    /// The grants of a certificate, whose subject is formatted by [`distinguished_name::text`]; `None` without one.
    pub fn of_certificate<'a>(
        &'a self,
        subject: Option<&'a str>,
        sans: &'a [San],
    ) -> impl Iterator<Item = &'a Grant> {
        self.of(move |who| match who {
            Who::Subject(known) => subject == Some(known.as_str()),
            Who::San(known) => sans.contains(known),
            _ => false,
        })
    }

    /// The grants of a token, compared in constant time.
    pub fn of_token(&self, token: &[u8]) -> impl Iterator<Item = &Grant> {
        let sent = digest(&SHA256, token);
        self.of(move |who| match who {
            Who::Token(known) => known.as_ref().ct_eq(sent.as_ref()).into(),
            _ => false,
        })
    }

    /// The grants of a local user.
    pub fn of_uid(&self, uid: u32) -> impl Iterator<Item = &Grant> {
        self.of(move |who| matches!(who, Who::Uid(known) if *known == uid))
    }

    fn of(&self, is: impl Fn(&Who) -> bool) -> impl Iterator<Item = &Grant> {
        let all = self.0.iter().filter(move |(who, _)| is(who));
        all.map(|(_, grant)| grant)
    }
}

impl Line {
    fn read(self) -> Result<(Who, Grant), String> {
        let by_file = |file: PathBuf| {
            let by = format!("token-file {}", file.display());
            token(&file).map(|token| (Who::Token(token), by))
        };
        let by_subject = |given: String| {
            let subject = distinguished_name::canonical(&given)
                .map_err(|reason| format!("subject {given:?}: {reason}"))?;
            let by = format!("subject {subject}");
            Ok::<_, String>((Who::Subject(subject), by))
        };
        let by_san = |given: String| {
            let san = San::read(&given)?;
            let by = format!("san {san}");
            Ok::<_, String>((Who::San(san), by))
        };
        let all = [
            self.subject.map(by_subject).transpose()?,
            self.san.map(by_san).transpose()?,
            self.token_file.map(by_file).transpose()?,
            self.uid.map(|uid| (Who::Uid(uid), format!("uid {uid}"))),
        ];
        let mut all = all.into_iter().flatten();
        let (Some((who, by)), None) = (all.next(), all.next()) else {
            return Err("who it is for is told by one of subject, san, token-file, uid".to_owned());
        };
        if let Some(prefix) = &self.prefix {
            check_prefix(prefix)?;
        }
        let grant = Grant {
            role: self.role,
            prefix: self.prefix,
            by: by.into(),
        };
        Ok((who, grant))
    }
}

/// Checks a prefix: it ends with a hyphen, so that `tenant-a-` does not match `tenant-ab-1`, and it cannot be the start
/// of a UUID, which may denote any volume.
fn check_prefix(prefix: &str) -> Result<(), String> {
    let begins = prefix
        .strip_suffix('-')
        .is_some_and(|name| id::check(name).is_ok());
    let is_hex = |part: &str| part.len() == 8 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !begins || is_hex(prefix.split('-').next().unwrap_or_default()) {
        return Err(format!(
            "prefix {prefix:?} is not the begin of an ID that ends in a hyphen, such as \"tenant-a-\""
        ));
    }
    Ok(())
}

fn token(file: &Path) -> Result<Digest, String> {
    let fail = |reason: String| format!("token-file {}: {reason}", file.display());
    let most = *TOKEN.end() as u64 + 2;
    let text = read(file, most, 0o077, "others have access to it").map_err(fail)?;
    let token = text.trim_ascii_end();
    let is_token = TOKEN.contains(&token.len()) && token.iter().all(u8::is_ascii_graphic);
    if !is_token {
        return Err(fail(format!(
            "a token is one line of {} to {} printable characters without spaces; make one with \
             openssl rand -hex 32",
            TOKEN.start(),
            TOKEN.end()
        )));
    }
    Ok(digest(&SHA256, token))
}

/// Reads a regular file whose mode has none of the bits in `refused`.
fn read(path: &Path, most: u64, refused: u32, why: &str) -> Result<Vec<u8>, String> {
    let file = private_file::open(path, refused, |mode| {
        format!("{why} (mode {mode:04o}): chmod 600")
    })?;
    let mut bytes = Vec::new();
    let read = file.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > most {
        return Err(format!("it has more than {most} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn written(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let file = dir.join(name);
        std::fs::write(&file, text).expect("it is writable");
        std::fs::set_permissions(&file, Permissions::from_mode(mode)).expect("it is ours");
        file
    }

    #[test]
    fn each_way_to_be_known_has_its_grants_and_no_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let token = "0123456789abcdef0123456789abcdef";
        let of_token = written(dir.path(), "token", &format!("{token}\n"), 0o600);
        let text = format!(
            "[[grant]]\nrole = \"viewer\"\nsubject = \"CN=a\"\n\
             [[grant]]\nrole = \"admin\"\nsan = \"b.example\"\n\
             [[grant]]\nrole = \"operator\"\ntoken-file = {of_token:?}\nprefix = \"t-\"\n\
             [[grant]]\nrole = \"admin\"\nuid = 7\n"
        );
        let policy = Policy::read(&written(dir.path(), "access", &text, 0o644)).expect("valid");
        assert!(policy.has_tokens() && policy.has_certificates());
        let of = |subject, sans: &[&str]| {
            let sans: Vec<San> = sans
                .iter()
                .map(|san| San::read(san).expect("a name"))
                .collect();
            let grants = policy.of_certificate(Some(subject), &sans);
            grants.map(|grant| grant.role).collect::<Vec<_>>()
        };
        assert_eq!(of("CN=a", &[]), [Role::Viewer]);
        assert_eq!(of("CN=a, O=b", &["c", "b.example"]), [Role::Admin]);
        assert_eq!(of("CN=c", &["uri:CN=a", "uri:b.example"]), []);
        let mut tenant = policy.of_token(token.as_bytes());
        let tenant = tenant.next().expect("it is the token");
        assert_eq!(tenant.prefix.as_deref(), Some("t-"));
        assert_eq!(*tenant.by, format!("token-file {}", of_token.display()));
        assert_eq!(policy.of_token(&token.as_bytes()[1..]).count(), 0);
        assert_eq!(policy.of_uid(7).count(), 1);
        assert_eq!(policy.of_uid(0).count(), 0);
    }

    #[test]
    fn what_cannot_be_is_refused_with_where_and_why() {
        let dir = tempfile::tempdir().expect("a directory");
        let of = |text: &str, mode| {
            let read = Policy::read(&written(dir.path(), "access", text, mode));
            read.err().expect("it is refused")
        };
        let short = written(dir.path(), "short", "abc", 0o600);
        let open = written(dir.path(), "open", &"a".repeat(32), 0o644);
        for (text, why) in [
            ("", "missing field"),
            ("grant = []", "no [[grant]]"),
            ("[[grant]]\nrole = \"root\"\nuid = 1", "root"),
            ("[[grant]]\nrole = \"admin\"", "grant 1: who it is for"),
            (
                "[[grant]]\nrole = \"admin\"\nuid = 1\nsan = \"a\"",
                "one of subject",
            ),
            (
                "[[grant]]\nrole = \"admin\"\nuid = 1\nprefix = \"a\"",
                "prefix \"a\"",
            ),
            (
                "[[grant]]\nrole = \"admin\"\nuid = 1\nprefix = \"-\"",
                "prefix \"-\"",
            ),
            (
                "[[grant]]\nrole = \"admin\"\nuid = 1\nprefix = \"deadbeef-\"",
                "deadbeef-",
            ),
            ("[[grant]]\nrole = \"admin\"\nuid = 1\ncolour = 1", "colour"),
            (
                "[[grant]]\nrole = \"admin\"\nsubject = \"CN=Acme, Inc.\"",
                "grant 1: subject \"CN=Acme, Inc.\": \"Inc.\"",
            ),
            (
                "[[grant]]\nrole = \"admin\"\nsan = \"spiffe://a\"",
                "write uri:NAME",
            ),
            (
                &format!("[[grant]]\nrole = \"admin\"\ntoken-file = {short:?}"),
                "32 to 1024",
            ),
            (
                &format!("[[grant]]\nrole = \"admin\"\ntoken-file = {open:?}"),
                "chmod 600",
            ),
        ] {
            let error = of(text, 0o600);
            assert!(
                error.contains(why) && !error.contains('\n'),
                "{text}: {error}"
            );
        }
        assert!(of("[[grant]]", 0o622).contains("others may write"));
    }
}
