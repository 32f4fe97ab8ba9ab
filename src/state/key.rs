//! The encryption key of the state, and the places where it is looked up.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use aes_gcm_siv::aead::Generate;
use zeroize::{Zeroize, Zeroizing};

use crate::private_file;

/// Name of the key file in the state directory, and of the systemd credential.
const FILE: &str = "state-key";

/// Key length in bytes.
const LEN: usize = 32;

/// Maximum size of a key file in bytes: 64 hex digits and a line end.
const FILE_MAX: u64 = 66;

const FORMS: &str = "32 bytes, or 64 hex digits and nothing else, are needed";

/// Encryption key. Zeroized on drop, and never printed.
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

/// Source of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// File named by the setting `state-key-file`.
    Setting(PathBuf),
    /// Credential passed by systemd.
    Credential(PathBuf),
    /// File beside the state that it seals.
    StateDir(PathBuf),
}

impl KeySource {
    /// Returns the path of the key file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Setting(path) | Self::Credential(path) | Self::StateDir(path) => path,
        }
    }
}

impl StateKey {
    /// Reads a key that is not the state's own, in the file formats of state keys.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        read(path)
    }

    /// Finds the key of a state directory: the configured file, else systemd's credential `state-key` (in the
    /// directory `credentials`), else a file in the state directory, which is created if it is missing and
    /// `may_make` is set.
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

    /// Checks the key that [`find`](Self::find) would find, without creating one. None is no error: the first start
    /// makes a key, and a credential is there only for the service.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn check(
        state_dir: &Path,
        setting: Option<&Path>,
        credentials: Option<&Path>,
    ) -> Result<(), String> {
        let named = credentials.is_some_and(|dir| dir.join(FILE).exists());
        match setting.is_some() || named || state_dir.join(FILE).exists() {
            true => Self::find(state_dir, setting, credentials, false).map(|_| ()),
            false => Ok(()),
        }
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

/// Generates a key file, atomically, readable by its owner alone from the start.
fn make(dir: &Path, path: &Path) -> std::io::Result<StateKey> {
    let key = StateKey::from(<[u8; LEN]>::generate());
    private_file::replace(path, key.bytes())?;
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
        // A credentials directory without this credential.
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
