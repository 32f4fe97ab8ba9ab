//! Namespaces for which SPDK could not create a bdev because another bdev has the name or the UUID. SPDK attaches the
//! controller without them, and reports that only in its log.

use super::super::{lookup, of_uuid};
use super::state::missing;
use crate::app_thread::Spdk;
use crate::error::Error;

/// Fails with EEXIST if another bdev's name or UUID kept a namespace of this controller from becoming a bdev.
pub(super) fn check_no_clash(
    spdk: Spdk,
    operation: &'static str,
    controller: &str,
) -> Result<(), Error> {
    for namespace in missing(spdk, controller)? {
        let name = &namespace.bdev;
        // SPDK's module uses the NGUID as the bdev's UUID if there is one, else the namespace's UUID.
        let uuid = namespace.nguid.or(namespace.uuid);
        let by_uuid = uuid.map(|uuid| of_uuid(spdk, &uuid)).transpose()?;
        let clash = match (by_uuid.flatten(), lookup(spdk, name)?) {
            (Some(other), _) => format!("has the UUID of the volume {other:?}"),
            (None, Some(other)) => format!("would be {name:?}, which {:?} is", other.name),
            (None, None) => continue,
        };
        return Err(Error::new(operation, libc::EEXIST).with_detail(format!(
            "namespace {} of {controller:?} {clash}",
            namespace.nsid
        )));
    }
    Ok(())
}
