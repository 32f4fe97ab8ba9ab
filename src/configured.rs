//! The volumes that the configuration names: made at start, and read-only objects of the API as long as
//! the process runs.

use uuid::Uuid;

use crate::api::storage::{AioVolume, MallocVolume, NullVolume};
use crate::backend::{Volumes, parse_uuid};
use crate::config::Volume;
use crate::error::Error;
use crate::resource::Collection;

/// The collections that volumes of the configuration stand in.
pub struct Collections<'a> {
    /// Of volumes in memory.
    pub malloc: &'a Collection<Volumes<MallocVolume>>,
    /// Of volumes that forget.
    pub null: &'a Collection<Volumes<NullVolume>>,
    /// Of volumes in files.
    pub aio: &'a Collection<Volumes<AioVolume>>,
}

/// Makes one, like any object of its kind, and places it among those.
///
/// # Errors
/// What is wrong with it, or with the file under it.
pub async fn make(volume: &Volume, into: &Collections<'_>) -> Result<(), Error> {
    // Without one it gets that of an API volume like it.
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

/// How many blocks make up the size; its check has refused a block size of 0.
fn blocks(size_mib: u64, block_size: u32) -> i64 {
    let blocks = size_mib.saturating_mul(1 << 20) / u64::from(block_size.max(1));
    blocks.cast_signed()
}
