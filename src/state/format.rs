//! File format: two tables, in which every value but the format version is sealed.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format` | version, 4 bytes, little endian |
//! | `meta` | `head` | sealed [`Head`] |
//! | `records` | the record's key | sealed [`Kept`] |

use prost::Message;
use redb::TableDefinition;

use super::seal::Sealer;
use super::{Entry, Error};

/// Format version that is written.
pub(super) const VERSION: u32 = 1;

/// Table of the metadata of the whole state.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Table of the records.
pub(super) const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");

/// Key of the version in [`META`].
pub(super) const FORMAT: &str = "format";

/// Key of the head in [`META`].
pub(super) const HEAD: &str = "head";

/// Maximum size in bytes of one record: its key and its messages together.
pub(super) const RECORD_MAX: usize = 16 << 20;

/// Metadata of the whole state, rewritten by each commit.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Head {
    /// Highest revision ever committed.
    #[prost(uint64, tag = "1")]
    pub revision: u64,
    /// Number of records.
    #[prost(uint64, tag = "2")]
    pub records: u64,
    /// Number of commits ever: tells after a failure whether the commit is durable.
    #[prost(uint64, tag = "3")]
    pub commits: u64,
}

impl Head {
    pub fn seal(&self, sealer: &Sealer) -> Result<Vec<u8>, Error> {
        sealer.seal(&place(META_PLACE, HEAD), &self.encode_to_vec())
    }

    /// Decrypts a head; `None` when the key is another one.
    pub fn open(sealer: &Sealer, sealed: &[u8]) -> Option<Self> {
        Self::decode(sealer.open(&place(META_PLACE, HEAD), sealed)?.as_slice()).ok()
    }
}

/// An entry without its key, as it is stored.
#[derive(Message)]
struct Kept {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(uint64, tag = "2")]
    created: u64,
    #[prost(uint64, tag = "3")]
    revision: u64,
    #[prost(bool, tag = "4")]
    deleting: bool,
    #[prost(bytes = "vec", tag = "5")]
    wanted: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    object: Vec<u8>,
}

const META_PLACE: &str = "meta";
const RECORD_PLACE: &str = "record";

/// Associated data that binds a sealed value to its table and key.
fn place(table: &str, key: &str) -> String {
    format!("opi-spdk state {table} {key}")
}

/// Encodes and seals a record for its key.
pub(super) fn seal(sealer: &Sealer, entry: &Entry) -> Result<Vec<u8>, Error> {
    let size = [&entry.wanted, &entry.object].map(Vec::len);
    let size = (size.iter()).fold(entry.key.len(), |sum, size| sum.saturating_add(*size));
    if size > RECORD_MAX {
        return Err(Error::TooLarge(format!(
            "{} has {size} bytes, and a record has {RECORD_MAX} at most",
            entry.key
        )));
    }
    let kept = Kept {
        kind: entry.kind.clone(),
        created: entry.created,
        revision: entry.revision,
        deleting: entry.deleting,
        wanted: entry.wanted.clone(),
        object: entry.object.clone(),
    };
    let plain = zeroize::Zeroizing::new(kept.encode_to_vec());
    wipe(kept);
    sealer.seal(&place(RECORD_PLACE, &entry.key), &plain)
}

/// Opens a record sealed for this key; `None` for anything else.
pub(super) fn open(sealer: &Sealer, key: &str, sealed: &[u8]) -> Option<Entry> {
    let plain = sealer.open(&place(RECORD_PLACE, key), sealed)?;
    let kept = Kept::decode(plain.as_slice()).ok()?;
    Some(Entry {
        key: key.to_owned(),
        kind: kept.kind,
        created: kept.created,
        revision: kept.revision,
        deleting: kept.deleting,
        wanted: kept.wanted,
        object: kept.object,
    })
}

fn wipe(mut kept: Kept) {
    zeroize::Zeroize::zeroize(&mut kept.wanted);
    zeroize::Zeroize::zeroize(&mut kept.object);
}

/// Checks that this version can be read, after a migration if necessary. Returns it.
///
/// # Errors
/// Which versions would be accepted.
pub(super) fn check_version(version: &[u8], known: u32) -> Result<u32, String> {
    let version: Result<[u8; 4], _> = version.try_into();
    match version.map(u32::from_le_bytes) {
        Ok(0) | Err(_) => Err("is damaged: its format version is none".to_owned()),
        Ok(version) if version <= known => Ok(version),
        Ok(newer) => Err(format!(
            "has format {newer}, and this opi-spdk knows formats up to {known}: run the version of \
             opi-spdk that wrote it, or export the state there and import it here"
        )),
    }
}

/// Migration from one version to the next, in the write transaction that also writes the new version.
pub(super) type Migration = fn(&redb::WriteTransaction, &Sealer) -> Result<(), redb::Error>;

/// All migrations: the first one leads from version 1 to version 2.
pub(super) const MIGRATIONS: [Migration; VERSION as usize - 1] = [];

#[cfg(test)]
mod tests {
    use super::super::StateKey;
    use super::super::tests::entry;
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_only_under_its_own_key() {
        let sealer = Sealer::new(&StateKey::from([1; 32]));
        let entry = entry("nullVolumes/a", 7);
        let sealed = seal(&sealer, &entry).unwrap();
        assert_eq!(open(&sealer, "nullVolumes/a", &sealed), Some(entry));
        assert_eq!(open(&sealer, "nullVolumes/b", &sealed), None);
    }

    #[test]
    fn a_newer_format_is_named() {
        assert_eq!(check_version(&VERSION.to_le_bytes(), VERSION), Ok(VERSION));
        let newer = check_version(&9_u32.to_le_bytes(), VERSION).unwrap_err();
        assert!(newer.starts_with("has format 9, "), "{newer}");
        for none in [&[][..], &[0; 4], &[1; 5]] {
            assert!(
                check_version(none, VERSION)
                    .unwrap_err()
                    .contains("damaged")
            );
        }
    }

    #[test]
    fn a_record_that_is_too_large_is_named() {
        let sealer = Sealer::new(&StateKey::from([1; 32]));
        let mut entry = entry("nullVolumes/a", 7);
        entry.wanted = vec![0; RECORD_MAX];
        let error = seal(&sealer, &entry).unwrap_err().to_string();
        assert!(error.starts_with("nullVolumes/a has 167"), "{error}");
    }
}
