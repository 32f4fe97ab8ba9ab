//! Namespaces that SPDK could not make a bdev of, because another bdev has its name or its uuid. It
//! attaches the controller without them, and says so in its log alone.

use super::super::{lookup, of_uuid};
use super::state::missing;
use crate::app_thread::Spdk;
use crate::error::Error;

/// EEXIST if a namespace of this controller has no bdev as another one is in its way.
pub(super) fn check_no_clash(
    spdk: Spdk,
    operation: &'static str,
    controller: &str,
) -> Result<(), Error> {
    for namespace in missing(spdk, controller)? {
        let name = &namespace.bdev;
        // SPDK's module takes the one where there is one, else the other.
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
