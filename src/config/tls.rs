//! The TLS files.

use std::path::PathBuf;

use super::ConfigError;

/// Paths of a TLS server's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Certificates of the client authorities, PEM.
    pub client_ca: PathBuf,
    /// Revocation lists of client certificates, PEM, if any.
    pub crl: Option<PathBuf>,
}

/// Splits the three paths at colons, and adds the file of revocation lists.
pub(super) fn check(
    text: Option<&str>,
    crl: Option<PathBuf>,
) -> Result<Option<TlsFiles>, ConfigError> {
    let Some(text) = text else {
        return match crl {
            None => Ok(None),
            Some(crl) => Err(ConfigError::Value {
                setting: "tls-crl",
                reason: format!("{} is of no use without tls", crl.display()),
            }),
        };
    };
    match text.split(':').collect::<Vec<_>>()[..] {
        [certificate, key, client_ca] if ![certificate, key, client_ca].contains(&"") => {
            Ok(Some(TlsFiles {
                certificate: certificate.into(),
                key: key.into(),
                client_ca: client_ca.into(),
                crl,
            }))
        }
        _ => Err(ConfigError::Value {
            setting: "tls",
            reason: format!(
                "{text:?} is not three files, certificate:key:ca: the server's certificate, its key, \
                 and the authority of clients' certificates"
            ),
        }),
    }
}
