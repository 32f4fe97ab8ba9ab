//! The files of TLS.

use std::path::PathBuf;

use super::ConfigError;

/// Where the files of a TLS server are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Certificates of those who sign clients' certificates, PEM.
    pub client_ca: PathBuf,
    /// Lists of clients' certificates that are revoked, PEM, if there are some.
    pub crl: Option<PathBuf>,
}

/// Reads the three files' names, which stand between colons, and takes the file of revoked certificates along.
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
