//! Credentials of the proxy: one user with a password (RFC 7617, basic authentication).

use std::io::Read;
use std::path::Path;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use crate::private_file;

/// Maximum length of a password, in bytes.
const PASSWORD_MAX: u64 = 1024;

/// Permissions that a password file must not have: any of group and others.
const OTHERS: u32 = 0o077;

/// User and password. Not printable.
pub struct Credentials {
    /// In the client's form: `user:password`.
    pair: Vec<u8>,
}

impl Credentials {
    /// Reads the password: the single line of the file, without its end.
    ///
    /// # Errors
    /// What is wrong with the file: its permissions or its content.
    pub fn read(user: &str, file: &Path) -> Result<Self, String> {
        let fail = |reason: String| format!("{}: {reason}", file.display());
        let opened = private_file::open(file, OTHERS, |mode| {
            format!("others have access to it (mode {mode:04o}); only its owner may: chmod 600")
        });
        let mut password = Vec::new();
        let read = opened
            .map_err(fail)?
            .take(PASSWORD_MAX + 1)
            .read_to_end(&mut password);
        read.map_err(|error| fail(error.to_string()))?;
        let password = password.strip_suffix(b"\n").unwrap_or(&password);
        let password = password.strip_suffix(b"\r").unwrap_or(password);
        if password.is_empty() || password.len() as u64 > PASSWORD_MAX || password.contains(&b'\n')
        {
            return Err(fail(format!(
                "the password is one line of 1 to {PASSWORD_MAX} bytes"
            )));
        }
        Ok(Self {
            pair: [user.as_bytes(), b":", password].concat(),
        })
    }

    /// Whether a request has these credentials, compared in constant time.
    pub fn are_in(&self, headers: &HeaderMap) -> bool {
        let Some(sent) = headers
            .get(AUTHORIZATION)
            .and_then(|value| decode(value.as_bytes()))
        else {
            return false;
        };
        sent.ct_eq(&self.pair).into()
    }
}

fn decode(header: &[u8]) -> Option<Vec<u8>> {
    const SCHEME: &[u8] = b"basic ";
    let (scheme, rest) = header.split_at_checked(SCHEME.len())?;
    scheme
        .eq_ignore_ascii_case(SCHEME)
        .then(|| STANDARD.decode(rest.trim_ascii()).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn file(content: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), content).expect("it is writable");
        std::fs::set_permissions(file.path(), Permissions::from_mode(mode)).expect("it is ours");
        file
    }

    fn read(content: &[u8], mode: u32) -> Result<Credentials, String> {
        Credentials::read("admin", file(content, mode).path())
    }

    fn headers(value: &str) -> HeaderMap {
        let value = value.parse().expect("a header");
        HeaderMap::from_iter([(AUTHORIZATION, value)])
    }

    #[test]
    fn only_the_pair_itself_is_accepted() {
        let credentials = read(b"s3:cret\n", 0o600).expect("valid");
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        assert!(credentials.are_in(&headers(&basic("admin:s3:cret"))));
        let lower = basic("admin:s3:cret").replace("Basic", "basic");
        assert!(credentials.are_in(&headers(&lower)));
        assert!(!credentials.are_in(&HeaderMap::new()));
        for wrong in [
            "admin:s3:cre",
            "admin:s3:cret\n",
            "admin:",
            "Admin:s3:cret",
            "",
        ] {
            assert!(!credentials.are_in(&headers(&basic(wrong))), "{wrong:?}");
        }
        for wrong in [
            "",
            "Basic",
            "Basic ",
            "Basic %",
            "Bearer YWRtaW46czM6Y3JldA==",
            "admin:s3:cret",
        ] {
            assert!(!credentials.are_in(&headers(wrong)), "{wrong:?}");
        }
    }

    #[test]
    fn a_password_is_one_line_in_a_file_of_its_owner() {
        assert!(read(b"x", 0o400).is_ok());
        assert!(read(b"x\r\n", 0o600).is_ok());
        for content in [&b""[..], b"\n", b"a\nb\n", &[b'x'; 1025]] {
            let error = read(content, 0o600).err().expect("no password");
            assert!(error.contains("one line of 1 to 1024 bytes"), "{error}");
        }
        for mode in [0o640, 0o604, 0o622] {
            let error = read(b"x", mode).err().expect("too open");
            assert!(error.contains(&format!("(mode {mode:04o})")), "{error}");
        }
        let error = Credentials::read("admin", Path::new("/"))
            .err()
            .expect("a directory");
        assert!(error.contains("not a regular file"), "{error}");
    }
}
