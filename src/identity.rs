//! Identity of this instance: a persistent UUID. Names that the server has to choose are derived from it, so they are
//! stable across restarts and differ between machines.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use uuid::Uuid;

use crate::backend::parse_uuid;

/// Name of the file in the state directory.
const FILE: &str = "identity";

/// UUID of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(Uuid);

impl Identity {
    /// Reads the identity from the state directory; the first start creates it.
    ///
    /// # Errors
    /// The file cannot be read or written, or has no UUID. One line for the operator.
    pub fn of_state_dir(dir: &Path) -> Result<Self, String> {
        let path = dir.join(FILE);
        let fail = |error: std::io::Error| format!("state-dir {}: {error}", path.display());
        match std::fs::read_to_string(&path) {
            Ok(text) => parse_uuid(text.trim())
                .map(|bytes| Self(Uuid::from_bytes(bytes)))
                .ok_or_else(|| {
                    format!(
                        "state-dir {}: {:?} is not a UUID: restore the file, or remove it for a new \
                         identity, with which hosts take volumes without uuid for other ones",
                        path.display(),
                        text.trim()
                    )
                }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let new = Self(Uuid::new_v4());
                new.write(dir).map_err(fail)?;
                Ok(new)
            }
            Err(error) => Err(fail(error)),
        }
    }

    /// Writes the file atomically: an interrupted start must not leave a partial UUID.
    fn write(self, dir: &Path) -> std::io::Result<()> {
        let unfinished = dir.join(format!("{FILE}.new"));
        let mut file = File::create(&unfinished)?;
        writeln!(file, "{}", self.0)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, dir.join(FILE))?;
        File::open(dir)?.sync_all()
    }

    /// Derives a UUID (version 5) for a name in this instance.
    pub fn derive(self, name: &str) -> [u8; 16] {
        Uuid::new_v5(&self.0, name.as_bytes()).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_keeps_its_identity_and_others_have_others() {
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let first = Identity::of_state_dir(one.path()).unwrap();
        assert_eq!(Identity::of_state_dir(one.path()), Ok(first));
        assert_eq!(first.derive("a"), first.derive("a"));
        assert_ne!(first.derive("a"), first.derive("b"));
        let second = Identity::of_state_dir(two.path()).unwrap();
        assert_ne!(first.derive("a"), second.derive("a"));
    }

    #[test]
    fn a_broken_file_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "7\n").unwrap();
        let error = Identity::of_state_dir(dir.path()).unwrap_err();
        assert!(error.contains("\"7\" is not a UUID"), "{error}");
    }
}
