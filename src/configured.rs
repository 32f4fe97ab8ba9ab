//! The volumes that the configuration names: made at start, and their names kept for them as long as the
//! process runs. They are no objects of the API.

use std::sync::Arc;

use spdk::Handle;
use spdk::bdev::{aio, malloc, null};

use crate::api::storage::AioVolume;
use crate::backend::{Claim, Volume as _, parse_uuid, uuid_key};
use crate::config::Volume;
use crate::error::Error;
use crate::identity::Identity;
use crate::resource::{Key, Name, Shared, Uses};

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

/// The volume as the API would have it, if there is a file under it, and its name.
pub fn aio_volume(volume: &Volume) -> Option<(Name, AioVolume)> {
    match volume {
        Volume::Aio {
            name,
            filename,
            block_size,
            ..
        } => {
            let name = Name::new(format!("volumes/{name}"), None);
            Some((name, object(filename, *block_size)))
        }
        _ => None,
    }
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

/// Keeps their names for them: one that SPDK has dropped, as its file was emptied, is made again.
pub fn keep_names(volumes: &[Volume], identity: Identity, shared: &Arc<Shared>) {
    for volume in volumes {
        let holder = Name::new(format!("configuration/{}", volume.name()), None);
        let uses = Uses::new()
            .owns(Key::bdev(volume.name()))
            .owns(uuid_key(uuid(volume, identity)));
        // Nobody else has anything yet, and no two of them have one name.
        if let Ok(reserved) = shared.registry.reserve(&holder, &uses) {
            reserved.settle(uses);
        }
    }
}
