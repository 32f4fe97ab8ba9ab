//! The volumes that the configuration names: made at start, and read-only objects of the API as long as
//! the process runs.

use std::sync::Arc;

use spdk::Handle;
use spdk::bdev::{self, aio, malloc, null};

use uuid::Uuid;

use crate::api::storage::{AioVolume, MallocVolume, NullVolume};
use crate::backend::{Claim, Volume as _, Volumes, parse_uuid};
use crate::config::Volume;
use crate::error::Error;
use crate::identity::Identity;
use crate::resource::Collection;

/// What a volume has of the system: its file.
pub type Held = Option<Arc<Claim>>;

/// Makes one. What is answered must live as long as the volume.
///
/// # Errors
/// What is wrong with it, or with the file under it.
pub async fn make(spdk: &Handle, identity: Identity, volume: &Volume) -> Result<Held, Error> {
    let uuid = uuid(volume, identity);
    match volume.clone() {
        Volume::Malloc {
            name,
            size_mib,
            block_size,
            ..
        } => {
            let options = malloc::Options {
                name,
                uuid: Some(uuid),
                num_blocks: blocks(size_mib, block_size),
                block_size,
                metadata_size: 0,
            };
            let make = async move |spdk| malloc::create(spdk, &options).await;
            spdk.call(make).await??;
            Ok(None)
        }
        Volume::Null {
            name,
            size_mib,
            block_size,
            ..
        } => {
            let options = null::Options {
                name,
                uuid: Some(uuid),
                num_blocks: blocks(size_mib, block_size),
                block_size,
            };
            let make = async move |spdk| null::create(spdk, &options).await;
            spdk.call(make).await??;
            Ok(None)
        }
        Volume::Aio {
            name,
            filename,
            block_size,
            ..
        } => {
            // The file is looked at here, where waiting for it is allowed.
            let object = object(&filename, block_size);
            let held = object.hold(&name).await?;
            let options = object.recipe(name, uuid).await?;
            let make = async move |spdk| aio::create(spdk, &options).await;
            spdk.call(make).await??;
            Ok(Some(held))
        }
    }
}

/// How many blocks make up the size; its check has refused a block size of 0.
fn blocks(size_mib: u64, block_size: u32) -> u64 {
    size_mib.saturating_mul(1 << 20) / u64::from(block_size.max(1))
}

/// Its UUID: that of the configuration, or one that an API volume like it would get.
fn uuid(volume: &Volume, identity: Identity) -> [u8; 16] {
    let given = volume.uuid().and_then(parse_uuid);
    given.unwrap_or_else(|| {
        identity.derive(&match volume {
            Volume::Malloc { name, .. } => format!("mallocVolumes/{name}"),
            Volume::Null { name, .. } => format!("nullVolumes/{name}"),
            Volume::Aio { filename, .. } => format!("file/{filename}"),
        })
    })
}

fn object(filename: &str, block_size: u32) -> AioVolume {
    AioVolume {
        filename: filename.to_owned(),
        block_size: block_size.into(),
        ..Default::default()
    }
}

/// The collections that volumes of the configuration stand in.
pub struct Collections<'a> {
    /// Of volumes in memory.
    pub malloc: &'a Collection<Volumes<MallocVolume>>,
    /// Of volumes that forget.
    pub null: &'a Collection<Volumes<NullVolume>>,
    /// Of volumes in files.
    pub aio: &'a Collection<Volumes<AioVolume>>,
}

/// Places a volume that was made among the objects of its kind.
///
/// # Errors
/// SPDK takes no more calls, or has lost the volume.
pub async fn place(
    spdk: &Handle,
    identity: Identity,
    volume: &Volume,
    into: &Collections<'_>,
) -> Result<(), Error> {
    let name = volume.name().to_owned();
    let found = spdk.call(async move |spdk| bdev::lookup(spdk, &name));
    let Some(info) = found.await?? else {
        let what = format!("the volume {:?} has gone", volume.name());
        return Err(Error::failed_precondition(volume.name(), what));
    };
    let uuid = Uuid::from_bytes(uuid(volume, identity)).to_string();
    match volume {
        Volume::Malloc {
            name,
            size_mib,
            block_size,
            ..
        } => {
            let object = MallocVolume {
                block_size: (*block_size).into(),
                blocks_count: blocks(*size_mib, *block_size).cast_signed(),
                uuid,
                ..Default::default()
            };
            into.malloc.place_configured(name, object);
        }
        Volume::Null {
            name,
            size_mib,
            block_size,
            ..
        } => {
            let object = NullVolume {
                block_size: (*block_size).into(),
                blocks_count: blocks(*size_mib, *block_size).cast_signed(),
                uuid,
                ..Default::default()
            };
            into.null.place_configured(name, object);
        }
        Volume::Aio {
            name,
            filename,
            block_size,
            ..
        } => {
            let mut object = AioVolume {
                uuid,
                ..object(filename, *block_size)
            };
            // The one that is made again after a loss must be the same to hosts.
            object.complete(&info);
            into.aio.place_configured(name, object);
        }
    }
    Ok(())
}
