//! NullVolume: a bdev that discards writes and completes reads at once, without data.

use spdk::bdev::null;
use spdk::{Handle, Spdk, bdev};

use super::{Recipe, Volume, check_size, check_uuid, info, uuid_text};
use crate::api::storage::NullVolume;
use crate::error::{Error, Violations};
use crate::resource::{Change, Name};

impl Volume for NullVolume {
    type Recipe = null::Options;
    type Held = ();

    fn check(&self, violations: &mut Violations) {
        check_size(self.block_size, self.blocks_count, violations);
        check_uuid("uuid", &self.uuid, violations);
    }

    fn uuid(&self) -> &str {
        &self.uuid
    }

    async fn hold(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn recipe(&self, name: String, uuid: [u8; 16]) -> Result<null::Options, Error> {
        Ok(null::Options {
            name,
            uuid: Some(uuid),
            num_blocks: self.blocks_count.cast_unsigned(),
            block_size: self.block_size as u32,
        })
    }

    fn complete(&mut self, bdev: &bdev::Info) {
        if self.uuid.is_empty() {
            self.uuid = uuid_text(bdev.uuid);
        }
    }

    /// Grows while in use, and hosts are notified. Shrinks only while unused.
    async fn adjust(
        spdk: &Handle,
        name: &Name,
        change: &Change<Self>,
    ) -> Result<Option<bdev::Info>, Error> {
        if !change.fields.only(&["blocks_count"]) {
            return Ok(None);
        }
        let (from, to) = (change.old.blocks_count, change.wanted.blocks_count);
        if to < from {
            change.unused(name)?;
        }
        let name = name.id().to_owned();
        let resized = spdk.call(move |spdk| async move {
            null::resize(spdk, &name, to.cast_unsigned()).await?;
            info(spdk, &name)
        });
        Ok(Some(resized.await??))
    }
}

impl Recipe for null::Options {
    fn name(&self) -> &str {
        &self.name
    }

    async fn make(&self, spdk: Spdk) -> Result<(), spdk::Error> {
        null::create(spdk, self).await
    }
}
