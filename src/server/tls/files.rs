//! The TLS files: permissions, changes and expiry.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use rustix::process::{getegid, geteuid, getgroups};
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use zeroize::Zeroizing;

use crate::config::TlsFiles;
use crate::distinguished_name;
use crate::private_file;

/// Maximum size of a file, in bytes.
const FILE_MAX: u64 = 16 << 20;

/// Permissions that a private key's file must not have: any of group and others.
const OTHERS: u32 = 0o077;

/// The permission that the group of a key's file may have in one case: see [`refused`].
const GROUP_READS: u32 = 0o040;

/// Contents of the files, in PEM.
pub(super) struct Texts {
    pub certificates: Vec<u8>,
    pub key: Zeroizing<Vec<u8>>,
    pub client_ca: Vec<u8>,
    pub revoked: Option<Vec<u8>>,
}

impl Texts {
    /// Reads all files.
    ///
    /// # Errors
    /// The file that cannot be read, or that others may read.
    pub fn read(files: &TlsFiles) -> Result<Self, String> {
        Ok(Self {
            certificates: read("certificate", &files.certificate, open)?,
            key: read("key", &files.key, open_key)?.into(),
            client_ca: read("client CA", &files.client_ca, open)?,
            revoked: files
                .crl
                .as_deref()
                .map(|file| read("CRL", file, open))
                .transpose()?,
        })
    }
}

fn open(path: &Path) -> Result<File, String> {
    File::open(path).map_err(|error| error.to_string())
}

/// Opens the file of a private key.
fn open_key(path: &Path) -> Result<File, String> {
    private_file::open_if(path, |metadata| {
        let (mode, gid) = (private_file::mode(metadata), metadata.gid());
        let groups = getgroups().unwrap_or_default();
        let is_ours = gid == getegid().as_raw() || groups.iter().any(|group| group.as_raw() == gid);
        let own = geteuid().as_raw();
        if mode & refused(metadata.uid(), own, gid, gid == 0 || is_ours) == 0 {
            return Ok(());
        }
        Err(format!(
            "users other than its owner have access to it (mode {mode:04o}, group {gid}): chmod 600"
        ))
    })
}

/// The permissions that a key's file of this owner and group must not have. A process may read root's file through a group of
/// its own: so are the secrets of Kubernetes (fsGroup) and the credentials of systemd (the mask of an ACL).
fn refused(owner: u32, own: u32, group: u32, is_ours: bool) -> u32 {
    let is_given = owner == 0 && is_ours && (own != 0 || group != 0);
    match is_given {
        true => OTHERS & !GROUP_READS,
        false => OTHERS,
    }
}

fn read(
    what: &str,
    path: &Path,
    open: impl FnOnce(&Path) -> Result<File, String>,
) -> Result<Vec<u8>, String> {
    let fail = |reason: String| format!("{what} file {}: {reason}", path.display());
    let io = |error: std::io::Error| fail(error.to_string());
    let mut file = open(path).map_err(fail)?;
    let mut text = Vec::new();
    file.by_ref()
        .take(FILE_MAX + 1)
        .read_to_end(&mut text)
        .map_err(io)?;
    match text.len() as u64 > FILE_MAX {
        true => Err(fail(format!("it has more than {FILE_MAX} bytes"))),
        false => Ok(text),
    }
}

/// Identifies versions of the files; `None` for a file that does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamps(Vec<Option<(u64, u64, i64, i64)>>);

impl Stamps {
    /// The stamps of the current files. May block on the disk.
    pub fn of(files: &TlsFiles) -> Self {
        let paths = [
            Some(&files.certificate),
            Some(&files.key),
            Some(&files.client_ca),
            files.crl.as_ref(),
        ];
        let stamp = |of: Metadata| (of.ino(), of.size(), of.mtime(), of.mtime_nsec());
        let stamps = paths
            .into_iter()
            .flatten()
            .map(|path| std::fs::metadata(path).ok().map(stamp));
        Self(stamps.collect())
    }
}

/// Expiry of the first certificate in a file to expire, or of a list of revoked certificates (CRL).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// The file: `certificate`, `client-ca` or [`CRL`].
    pub file: &'static str,
    /// Subject of the certificate, or issuer of the list.
    pub subject: String,
    /// End of its validity, or time of the list's next update, in seconds since 1970.
    pub not_after: i64,
    /// Warning period before the expiry, in seconds.
    notice: i64,
}

/// Name of the file with lists of revoked certificates.
pub const CRL: &str = "crl";

/// Longest warning period before an expiry, in seconds.
const NOTICE: i64 = 30 * 24 * 60 * 60;

/// A list is warned of in this part of its life, the time between two updates: 1/3.
const LIST_NOTICE: i64 = 3;

impl Expiry {
    pub(super) fn of(file: &'static str, certificates: &[CertificateDer<'_>]) -> Option<Self> {
        let ends = certificates.iter().filter_map(|certificate| {
            let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
            Some(Self {
                file,
                subject: distinguished_name::text(certificate.subject()).unwrap_or_default(),
                not_after: certificate.validity().not_after.timestamp(),
                notice: NOTICE,
            })
        });
        ends.min_by_key(|expiry| expiry.not_after)
    }

    /// The expiry of a list; `None` if it does not tell of its next update.
    pub(super) fn of_list(list: &CertificateRevocationListDer<'_>) -> Option<Self> {
        let (_, list) = x509_parser::parse_x509_crl(list).ok()?;
        let next = list.next_update()?.timestamp();
        let life = next.saturating_sub(list.last_update().timestamp());
        Some(Self {
            file: CRL,
            subject: distinguished_name::text(list.issuer()).unwrap_or_default(),
            not_after: next,
            notice: (life / LIST_NOTICE).clamp(0, NOTICE),
        })
    }

    /// Whole days left within the warning period; negative after the expiry.
    pub fn days_left(&self, now: SystemTime) -> Option<i64> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let left = self
            .not_after
            .saturating_sub(i64::try_from(now.as_secs()).ok()?);
        (left < self.notice).then(|| left.div_euclid(24 * 60 * 60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_group_of_a_key_reads_it_only_where_the_process_needs_that() {
        for (own, group) in [(7, 0), (7, 5), (0, 5)] {
            assert_eq!(refused(0, own, group, true), 0o037, "{own} {group}");
        }
        for (owner, own, group, is_ours) in [
            (0, 0, 0, true),
            (0, 0, 5, false),
            (0, 7, 5, false),
            (7, 7, 7, true),
            (8, 7, 7, true),
            (7, 0, 7, true),
        ] {
            let refused = refused(owner, own, group, is_ours);
            assert_eq!(refused, 0o077, "{owner} {own} {group}");
        }
    }

    #[test]
    fn a_certificate_is_warned_of_thirty_days_before_its_end() {
        const DAY: u64 = 24 * 60 * 60;
        let expiry = Expiry {
            file: "certificate",
            subject: "CN=a".to_owned(),
            not_after: 100 * 24 * 60 * 60,
            notice: NOTICE,
        };
        assert_eq!(expiry.days_left(at(70 * DAY)), None);
        assert_eq!(expiry.days_left(at(70 * DAY + 1)), Some(29));
        assert_eq!(expiry.days_left(at(99 * DAY + 1)), Some(0));
        assert_eq!(expiry.days_left(at(100 * DAY + 1)), Some(-1));
    }

    #[test]
    fn a_file_that_is_written_or_replaced_has_another_stamp() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str| dir.path().join(name);
        let files = TlsFiles {
            certificate: file("c"),
            key: file("k"),
            client_ca: file("a"),
            crl: Some(file("r")),
        };
        let mut seen = vec![Stamps::of(&files)];
        for (name, text) in [("c", "1"), ("k", "1"), ("a", "1"), ("r", "1"), ("r", "12")] {
            std::fs::write(file(name), text).expect("it is writable");
            seen.push(Stamps::of(&files));
        }
        std::fs::write(file("new"), "12").expect("it is writable");
        std::fs::rename(file("new"), file("r")).expect("it is ours");
        seen.push(Stamps::of(&files));
        for pair in seen.windows(2) {
            assert_ne!(pair[0], pair[1]);
        }
        assert_eq!(Stamps::of(&files), seen[seen.len() - 1]);
    }
}
