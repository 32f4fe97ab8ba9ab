//! AioVolume: a bdev on a file or a kernel block device. The bdev spans the whole file; `blocks_count` is the minimum
//! size that the file must have.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, StatxFlags, ioctl_blksszget, statx};
use spdk::bdev::aio;
use spdk::{Handle, Spdk, bdev, errno};

use super::{
    Claim, Recipe, Volume, check_size, check_uuid, file_work, info, parse_uuid, uuid_text,
};
use crate::api::storage::AioVolume;
use crate::error::{Error, Violations};
use crate::resource::{Change, Name};

/// Default block size of a regular file, in bytes. A block device has a block size of its own.
const FILE_BLOCK_SIZE: u32 = 512;

impl Volume for AioVolume {
    type Recipe = aio::Options;
    type Held = Arc<Claim>;

    fn check(&self, violations: &mut Violations) {
        check_size(self.block_size, self.blocks_count, violations);
        check_uuid("uuid", &self.uuid, violations);
        if !Path::new(&self.filename).is_absolute() {
            violations.add(
                "filename",
                format!("{:?} is not an absolute path", self.filename),
            );
        }
    }

    fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Derived from the file: the data belongs to the file, whatever the volume is named.
    fn origin(&self, _: &Name) -> String {
        format!("file/{}", self.filename)
    }

    fn file(&self) -> Option<&str> {
        Some(&self.filename)
    }

    async fn hold(&self, id: &str) -> Result<Arc<Claim>, Error> {
        let (volume, id) = (self.clone(), id.to_owned());
        file_work::run(&self.filename, move || {
            look(&volume)?;
            Claim::take(&id, &volume.filename)
        })
        .await
    }

    async fn recipe(&self, name: String, uuid: [u8; 16]) -> Result<aio::Options, Error> {
        let volume = self.clone();
        let block_size = file_work::run(&self.filename, move || look(&volume)).await?;
        Ok(aio::Options {
            name,
            uuid: Some(uuid),
            filename: self.filename.clone(),
            block_size,
            readonly: false,
        })
    }

    fn complete(&mut self, bdev: &bdev::Info) {
        if self.uuid.is_empty() {
            self.uuid = uuid_text(bdev.uuid);
        }
        if self.block_size == 0 {
            self.block_size = bdev.block_size.into();
        }
        if self.blocks_count == 0 {
            self.blocks_count = i64::try_from(bdev.num_blocks).unwrap_or(i64::MAX);
        }
    }

    fn reconsider(&mut self, asked: &Self) {
        self.blocks_count = asked.blocks_count;
        // A UUID that was derived from the old file name must be derived again.
        self.uuid.clone_from(&asked.uuid);
    }

    async fn confirm(&self) -> Result<(), Error> {
        let volume = self.clone();
        let size = file_work::run(&self.filename, move || {
            let size = file_size(&volume.filename);
            size.map_err(|error| Error::failed_precondition(&volume.filename, error.to_string()))
        });
        let (size, block_size) = (size.await?, self.block_size.cast_unsigned());
        let promised = self.blocks_count.cast_unsigned().saturating_mul(block_size);
        if size >= promised {
            return Ok(());
        }
        let what = format!(
            "{:?} has {size} of the {promised} bytes that the volume promises: make it as long again, \
             or update blocks_count to {} at most",
            self.filename,
            size / block_size.max(1)
        );
        Err(Error::failed_precondition(&self.filename, what))
    }

    /// Growth of the file is taken over while the bdev is in use. So is a block size left to the server, if the server
    /// would choose the current one. A volume whose file has shrunk, or whose bdev is gone, is rebuilt: SPDK cannot
    /// shrink an aio bdev.
    async fn adjust(
        spdk: &Handle,
        name: &Name,
        change: &Change<Self>,
    ) -> Result<Option<bdev::Info>, Error> {
        let uuid = parse_uuid(&change.old.uuid).unwrap_or_default();
        let wanted = change.wanted.recipe(name.id().to_owned(), uuid).await?;
        let same_blocks = i64::from(wanted.block_size) == change.old.block_size;
        if !same_blocks || !change.fields.only(&["block_size", "blocks_count"]) {
            return Ok(None);
        }
        let rescanned = spdk.call(move |spdk| async move {
            match aio::rescan(spdk, &wanted.name).await {
                Err(error) if [errno::EBUSY, errno::ENODEV].contains(&error.errno.0) => Ok(None),
                Err(error) => Err(error),
                Ok(()) => info(spdk, &wanted.name).map(Some),
            }
        });
        Ok(rescanned.await??)
    }
}

impl Recipe for aio::Options {
    fn name(&self) -> &str {
        &self.name
    }

    async fn make(&self, spdk: Spdk) -> Result<(), spdk::Error> {
        aio::create(spdk, self).await
    }
}

/// Returns the size of a regular file or a block device in bytes. Blocks on the file system.
pub(crate) fn file_size(path: &str) -> std::io::Result<u64> {
    let metadata = std::fs::metadata(path)?;
    if metadata.file_type().is_block_device() {
        return File::open(path)?.seek(SeekFrom::End(0));
    }
    Ok(metadata.len())
}

/// Returns the smallest unit of direct I/O on the file, in bytes; `None` if the system does not report it.
fn least_block(file: &File) -> Option<u32> {
    if let Ok(logical) = ioctl_blksszget(file) {
        return Some(logical);
    }
    let known = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let tells = known.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    // An alignment of 0 means that the file does not support direct I/O (statx(2), STATX_DIOALIGN).
    (tells && known.stx_dio_offset_align != 0).then_some(known.stx_dio_offset_align)
}

/// Checks the file of a volume of the configuration. Blocks on the file system.
///
/// # Errors
/// See [`look`].
pub(crate) fn check_aio_file(filename: &str, block_size: u32) -> Result<(), Error> {
    let volume = AioVolume {
        filename: filename.to_owned(),
        block_size: block_size.into(),
        ..Default::default()
    };
    look(&volume).map(drop)
}

/// Validates the file as SPDK would, on a thread that may block. Returns the block size in bytes; 0 means the block
/// device's own. Errors name the field at fault.
fn look(volume: &AioVolume) -> Result<u32, Error> {
    let path = &volume.filename;
    let bad_file = |what: String| Error::invalid("filename", format!("{path:?}: {what}"));
    let metadata = std::fs::metadata(path).map_err(|error| bad_file(error.to_string()))?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = if kind.is_dir() {
            "a directory"
        } else {
            "no file"
        };
        return Err(bad_file(format!(
            "{what}: a regular file or a block device is needed"
        )));
    }
    let opened = File::options().read(true).write(true).open(path);
    let file = opened.map_err(|error| bad_file(error.to_string()))?;
    let size = file_size(path).map_err(|error| bad_file(error.to_string()))?;
    if size == 0 {
        return Err(bad_file("it is empty".into()));
    }
    let block_size = match volume.block_size {
        0 if kind.is_block_device() => return Ok(0),
        0 => FILE_BLOCK_SIZE,
        asked => asked as u32,
    };
    if let Some(least) = least_block(&file).filter(|least| block_size < *least) {
        let what =
            format!("{block_size} bytes: {path:?} can be read and written in {least} or more");
        return Err(Error::invalid("block_size", what));
    }
    if size % u64::from(block_size) != 0 {
        return Err(bad_file(format!(
            "its {size} bytes are no multiple of blocks of {block_size}"
        )));
    }
    let blocks = size / u64::from(block_size);
    if volume.blocks_count.cast_unsigned() > blocks {
        let what = format!(
            "{} blocks of {block_size} bytes: {path:?} has {blocks}",
            volume.blocks_count
        );
        return Err(Error::invalid("blocks_count", what));
    }
    Ok(block_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(filename: &str, block_size: i64, blocks_count: i64) -> AioVolume {
        AioVolume {
            filename: filename.into(),
            block_size,
            blocks_count,
            ..Default::default()
        }
    }

    #[test]
    fn a_file_must_be_one_that_spdk_can_use() {
        let dir = std::env::temp_dir().join(format!("opi-spdk-aio-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&dir).unwrap();
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        std::fs::write(path("good"), [0; 64 * 512]).unwrap();
        std::fs::write(path("empty"), []).unwrap();
        std::fs::write(path("odd"), [0; 1000]).unwrap();
        let why = |volume| look(&volume).unwrap_err().to_string();

        assert_eq!(look(&volume(&path("good"), 512, 12)), Ok(512));
        assert_eq!(look(&volume(&path("good"), 4096, 8)), Ok(4096));
        assert_eq!(look(&volume(&path("good"), 0, 0)), Ok(512));
        assert!(why(volume(&path("good"), 512, 65)).contains("has 64"));
        assert!(why(volume(&path("empty"), 512, 0)).contains("is empty"));
        assert!(why(volume(&path("odd"), 512, 0)).contains("no multiple of blocks of 512"));
        assert!(why(volume(&path("none"), 512, 0)).contains("No such file"));
        assert!(why(volume(dir.to_str().unwrap(), 512, 0)).contains("a directory"));
        assert!(why(volume("/dev/null", 512, 0)).contains("no file"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
