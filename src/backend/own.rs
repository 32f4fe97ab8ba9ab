//! Whose bdev has the name of a volume.

use spdk::{Spdk, bdev, errno};

use super::{Volume, Volumes, parse_uuid};
use crate::error::Error;
use crate::resource::Name;

impl<V: Volume> Volumes<V> {
    /// Returns whether the volume's bdev still exists.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if a foreign bdev has the volume's name: this process must not change it; and while SPDK is
    /// removing the volume's own.
    pub(super) async fn is_there(&self, name: &Name, object: &V) -> Result<bool, Error> {
        let (id, uuid) = (name.id().to_owned(), parse_uuid(object.uuid()));
        let own = self.spdk.call(move |spdk| async move {
            check_stays(spdk, &id).and_then(|()| own(spdk, &id, uuid))
        });
        match own.await?? {
            Own::There => Ok(true),
            Own::Gone => Ok(false),
            Own::Replaced => Err(Error::failed_precondition(
                name.id(),
                format!(
                    "{name} has gone, and another bdev that was not made here has its name: delete \
                     one of them"
                ),
            )),
        }
    }
}

/// State of the bdev name of a volume.
pub(super) enum Own {
    /// The volume's own bdev.
    There,
    /// No bdev: SPDK removed it.
    Gone,
    /// A foreign bdev, created through SPDK's own commands.
    Replaced,
}

/// Identifies a volume's bdev by its UUID, which is unique among bdevs.
pub(super) fn own(spdk: Spdk, name: &str, uuid: Option<[u8; 16]>) -> Result<Own, spdk::Error> {
    Ok(match bdev::lookup(spdk, name)? {
        None => Own::Gone,
        Some(found) if uuid.is_none_or(|uuid| uuid == found.uuid) => Own::There,
        Some(_) => Own::Replaced,
    })
}

/// Fails with EBUSY while SPDK is removing the bdev: it is listed until all who use it have closed it.
pub(crate) fn check_stays(spdk: Spdk, name: &str) -> Result<(), spdk::Error> {
    match bdev::is_going(spdk, name)? {
        false => Ok(()),
        true => {
            let what =
                format!("bdev {name:?} is being removed, and waits for its users to close it");
            Err(spdk::Error::new("look up bdev", errno::EBUSY).with_detail(what))
        }
    }
}
