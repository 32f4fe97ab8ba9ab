//! Who this instance is: a UUID of its own that outlives the process. What the server has to name by
//! itself gets names that are derived from it: the same after each start, and others on each machine.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use uuid::Uuid;

use crate::backend::parse_uuid;

/// The file in the state directory.
const FILE: &str = "identity";

/// The UUID of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(Uuid);

impl Identity {
    /// The identity of the instance that has this state directory; the first start chooses it.
    ///
    /// # Errors
    /// One line for the operator: the file cannot be read or written, or holds no UUID.
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

    /// Whole or not at all: a start that is cut off must not leave half a UUID.
    fn write(self, dir: &Path) -> std::io::Result<()> {
        let unfinished = dir.join(format!("{FILE}.new"));
        let mut file = File::create(&unfinished)?;
        writeln!(file, "{}", self.0)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, dir.join(FILE))?;
        File::open(dir)?.sync_all()
    }

    /// The UUID (version 5) of what has this name in this instance.
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
