//! MallocVolume: a bdev in this process's memory. Its data is lost when the process ends.

use spdk::bdev::malloc;
use spdk::{Spdk, bdev};

use super::{Recipe, Volume, check_size, check_uuid, uuid_text};
use crate::api::storage::MallocVolume;
use crate::error::{Error, Violations};

impl Volume for MallocVolume {
    type Recipe = malloc::Options;
    type Held = ();

    const IN_MEMORY: bool = true;

    fn check(&self, violations: &mut Violations) {
        check_size(self.block_size, self.blocks_count, violations);
        check_uuid("uuid", &self.uuid, violations);
        let size = u32::try_from(self.metadata_size);
        if !size.is_ok_and(|size| size == 0 || malloc::METADATA_SIZES.contains(&size)) {
            violations.add(
                "metadata_size",
                format!(
                    "{} bytes: 0 or one of {:?}",
                    self.metadata_size,
                    malloc::METADATA_SIZES
                ),
            );
        }
    }

    fn uuid(&self) -> &str {
        &self.uuid
    }

    async fn hold(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn recipe(&self, name: String, uuid: [u8; 16]) -> Result<malloc::Options, Error> {
        Ok(malloc::Options {
            name,
            uuid: Some(uuid),
            num_blocks: self.blocks_count.cast_unsigned(),
            block_size: self.block_size as u32,
            metadata_size: self.metadata_size as u32,
        })
    }

    fn complete(&mut self, bdev: &bdev::Info) {
        if self.uuid.is_empty() {
            self.uuid = uuid_text(bdev.uuid);
        }
    }
}

impl Recipe for malloc::Options {
    fn name(&self) -> &str {
        &self.name
    }

    async fn make(&self, spdk: Spdk) -> Result<(), spdk::Error> {
        malloc::create(spdk, self).await
    }

    /// Only an allocation shows whether there is enough memory. The trial's name cannot collide: no ID contains a dot.
    fn trial(&self) -> Option<Self> {
        Some(Self {
            name: format!("{}.trial", self.name),
            uuid: None,
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_has_the_sizes_that_spdk_takes() {
        let broken = |metadata_size| {
            let mut violations = Violations::default();
            let volume = MallocVolume {
                block_size: 512,
                blocks_count: 1,
                metadata_size,
                ..Default::default()
            };
            volume.check(&mut violations);
            violations.into_result().is_err()
        };
        assert!([0, 8, 64].iter().all(|size| !broken(*size)));
        assert!([-8, 1, 1 << 32, i64::MAX].iter().all(|size| broken(*size)));
    }
}
