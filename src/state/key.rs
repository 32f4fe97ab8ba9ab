//! The key that the state is sealed with, and where it comes from.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aes_gcm_siv::aead::Generate;
use zeroize::{Zeroize, Zeroizing};

use crate::private_file;

/// The key's file in the state directory, and its name among systemd's credentials.
const FILE: &str = "state-key";

/// Bytes of a key.
const LEN: usize = 32;

/// Most bytes of a key file: 64 hex digits and a line end.
const FILE_MAX: u64 = 66;

const FORMS: &str = "32 bytes, or 64 hex digits and nothing else, are needed";

/// A key. Wiped when it goes, and never shown.
pub struct StateKey(Zeroizing<[u8; LEN]>);

impl StateKey {
    pub(crate) fn bytes(&self) -> &[u8; LEN] {
        &self.0
    }
}

impl From<[u8; LEN]> for StateKey {
    fn from(mut bytes: [u8; LEN]) -> Self {
        let key = Self(Zeroizing::new(bytes));
        bytes.zeroize();
        key
    }
}

impl std::fmt::Debug for StateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StateKey")
    }
}

/// Where a key was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// The setting `state-key-file` names it.
    Setting(PathBuf),
    /// systemd passes it as a credential.
    Credential(PathBuf),
    /// It lies beside the state that it seals.
    StateDir(PathBuf),
}

impl KeySource {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Setting(path) | Self::Credential(path) | Self::StateDir(path) => path,
        }
    }
}

impl StateKey {
    /// A key of another's, in one of the forms of the state's.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        read(path)
    }

    /// The key of a state directory: of the file that is set, else systemd's credential `state-key`
    /// (`credentials` is its directory), else a file in the state directory. The last one is made when
    /// there is none and `may_make`.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn find(
        state_dir: &Path,
        setting: Option<&Path>,
        credentials: Option<&Path>,
        may_make: bool,
    ) -> Result<(Self, KeySource), String> {
        if let Some(path) = setting {
            let source = KeySource::Setting(path.to_owned());
            return read(path)
                .map(|key| (key, source))
                .map_err(|reason| format!("state-key-file {}: {reason}", path.display()));
        }
        let credential = credentials.map(|dir| dir.join(FILE));
        if let Some(path) = credential.filter(|path| path.exists()) {
            return match read(&path) {
                Ok(key) => Ok((key, KeySource::Credential(path))),
                Err(reason) => Err(format!("credential {}: {reason}", path.display())),
            };
        }
        let path = state_dir.join(FILE);
        let fail = |reason: String| format!("state-dir {}: {reason}", path.display());
        let key = match path.try_exists() {
            Ok(true) => read(&path).map_err(fail)?,
            Ok(false) if may_make => {
                make(state_dir, &path).map_err(|error| fail(error.to_string()))?
            }
            Ok(false) => {
                return Err(fail(
                    "is missing, and the state was sealed with it: restore it, or give the key with \
                     --state-key-file"
                        .to_owned(),
                ));
            }
            Err(error) => return Err(fail(error.to_string())),
        };
        Ok((key, KeySource::StateDir(path)))
    }
}

fn read(path: &Path) -> Result<StateKey, String> {
    let file = private_file::open(path, 0o077, |mode| {
        format!("others than its owner may use it (mode {mode:04o}): chmod 0600 is needed")
    })?;
    let mut content = Zeroizing::new(Vec::with_capacity(LEN * 3));
    (file.take(FILE_MAX + 1).read_to_end(&mut content)).map_err(|error| error.to_string())?;
    parse(&content).ok_or_else(|| match content.len() as u64 {
        length if length > FILE_MAX => format!("has more than {FILE_MAX} bytes: {FORMS}"),
        length => format!("has {length} bytes that are no key: {FORMS}"),
    })
}

fn parse(content: &[u8]) -> Option<StateKey> {
    let mut key = Zeroizing::new([0; LEN]);
    if content.len() == LEN {
        key.copy_from_slice(content);
        return Some(StateKey(key));
    }
    let digits = content.strip_suffix(b"\n").unwrap_or(content);
    let digits = digits.strip_suffix(b"\r").unwrap_or(digits);
    if digits.len() != 2 * LEN {
        return None;
    }
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|it| u8::try_from(it).ok())
    };
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(StateKey(key))
}

/// Makes a key: whole or not at all, and the owner's alone from the first moment.
fn make(dir: &Path, path: &Path) -> std::io::Result<StateKey> {
    let key = StateKey::from(<[u8; LEN]>::generate());
    let unfinished = dir.join(format!("{FILE}.new"));
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(key.bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    File::open(dir)?.sync_all()?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::fs::PermissionsExt;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

    fn bytes() -> [u8; LEN] {
        std::array::from_fn(|at| u8::try_from(at).unwrap())
    }

    fn write(path: &Path, content: &[u8], mode: u32) {
        std::fs::write(path, content).unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_is_32_bytes_or_64_hex_digits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for good in [
            bytes().to_vec(),
            HEX.as_bytes().to_vec(),
            format!("{HEX}\n").into_bytes(),
            format!("{HEX}\r\n").into_bytes(),
        ] {
            write(&path, &good, 0o600);
            assert_eq!(read(&path).unwrap().bytes(), &bytes());
        }
        let zeros = [b'0'; 1000];
        for bad in [
            &b""[..],
            &bytes()[1..],
            &HEX.as_bytes()[1..],
            &zeros[..33],
            &zeros[..65],
            &zeros,
            &[b'g'; 64],
        ] {
            write(&path, bad, 0o600);
            let error = read(&path).unwrap_err();
            assert!(error.contains(FORMS), "{error}");
        }
    }

    #[test]
    fn a_key_that_others_can_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for mode in [0o640, 0o604, 0o620, 0o601] {
            write(&path, HEX.as_bytes(), mode);
            let error = StateKey::find(dir.path(), Some(&path), None, true).unwrap_err();
            assert!(error.contains("chmod 0600"), "{error}");
        }
        write(&path, HEX.as_bytes(), 0o400);
        assert!(StateKey::find(dir.path(), Some(&path), None, true).is_ok());
    }

    #[test]
    fn the_setting_wins_over_the_credential_and_that_over_the_key_in_the_directory() {
        let [dir, credentials] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let set = credentials.path().join("set");
        let find = |setting, credentials| {
            StateKey::find(dir.path(), setting, credentials, true).map(|(_, source)| source)
        };
        let own = dir.path().join(FILE);
        assert_eq!(find(None, None), Ok(KeySource::StateDir(own.clone())));
        assert_eq!(std::fs::metadata(&own).unwrap().mode() & 0o777, 0o600);
        let first = std::fs::read(&own).unwrap();
        // A directory of credentials without this one.
        let with = Some(credentials.path());
        assert_eq!(find(None, with), Ok(KeySource::StateDir(own.clone())));
        assert_eq!(std::fs::read(&own).unwrap(), first, "it was made once");
        let credential = credentials.path().join(FILE);
        write(&credential, HEX.as_bytes(), 0o400);
        assert_eq!(find(None, with), Ok(KeySource::Credential(credential)));
        write(&set, HEX.as_bytes(), 0o400);
        assert_eq!(find(Some(&set), with), Ok(KeySource::Setting(set.clone())));
        std::fs::remove_file(&own).unwrap();
        let missing = StateKey::find(dir.path(), None, None, false).unwrap_err();
        assert!(missing.contains("is missing"), "{missing}");
        assert!(!own.exists());
    }

    #[test]
    fn a_key_is_not_shown() {
        assert_eq!(format!("{:?}", StateKey::from([7; LEN])), "StateKey");
    }
}
