//! Volumes of the configuration: created at start, and read-only objects of the API for the lifetime of the process.

use uuid::Uuid;

use crate::api::storage::{AioVolume, MallocVolume, NullVolume};
use crate::backend::{Volumes, parse_uuid};
use crate::config::Volume;
use crate::error::Error;
use crate::resource::Collection;

/// The collections of the kinds that the configuration can have.
pub struct Collections<'a> {
    /// Malloc volumes.
    pub malloc: &'a Collection<Volumes<MallocVolume>>,
    /// Null volumes.
    pub null: &'a Collection<Volumes<NullVolume>>,
    /// Aio volumes.
    pub aio: &'a Collection<Volumes<AioVolume>>,
}

/// Creates a volume like any object of its kind, and adds it to its collection.
///
/// # Errors
/// What is wrong with the volume or its file.
pub async fn make(volume: &Volume, into: &Collections<'_>) -> Result<(), Error> {
    // Without a configured UUID the volume gets that of an equal API volume.
    let uuid = volume.uuid().and_then(parse_uuid);
    let uuid = uuid.map(|uuid| Uuid::from_bytes(uuid).to_string());
    let uuid = uuid.unwrap_or_default();
    match volume {
        Volume::Malloc {
            name,
            size_mib,
            block_size,
            ..
        } => {
            let object = MallocVolume {
                block_size: (*block_size).into(),
                blocks_count: blocks(*size_mib, *block_size),
                uuid,
                ..Default::default()
            };
            into.malloc.make_configured(name, object).await
        }
        Volume::Null {
            name,
            size_mib,
            block_size,
            ..
        } => {
            let object = NullVolume {
                block_size: (*block_size).into(),
                blocks_count: blocks(*size_mib, *block_size),
                uuid,
                ..Default::default()
            };
            into.null.make_configured(name, object).await
        }
        Volume::Aio {
            name,
            filename,
            block_size,
            ..
        } => {
            let object = AioVolume {
                filename: filename.clone(),
                block_size: (*block_size).into(),
                uuid,
                ..Default::default()
            };
            into.aio.make_configured(name, object).await
        }
    }
}

/// Number of blocks. Validation has refused a block size of 0.
fn blocks(size_mib: u64, block_size: u32) -> i64 {
    let blocks = size_mib.saturating_mul(1 << 20) / u64::from(block_size.max(1));
    blocks.cast_signed()
}
