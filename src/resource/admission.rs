//! Admission of users: which objects a create or an update may refer to, beyond what the registry knows.

use super::{Claims, Collection, Kind, Name, Shared};
use crate::error::Error;

impl<K: Kind> Collection<K> {
    /// Fails while the owner of a key that the claims use is being deleted, whether that delete is in flight or is
    /// retried. Checked before the locks, since the delete may hold them for long, and again under them.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with the object that is being deleted.
    pub(super) fn check_dependencies_stay(
        &self,
        name: &Name,
        claims: &Claims,
    ) -> Result<(), Error> {
        let is_deleting = |owner: &Name| self.shared.conditions.is_deleting(owner.key());
        let Some(owner) = self.dependencies(name, claims).find(is_deleting) else {
            return Ok(());
        };
        let what = format!(
            "{owner} is being deleted: use another one, or create it anew once the delete is complete"
        );
        Err(Error::failed_precondition(&owner, what))
    }

    /// Fails for a new user of an object that SPDK has, or may have, in another version than the record says. Called
    /// under the locks: a change in flight has ended then.
    ///
    /// # Errors
    /// UNAVAILABLE with the object that is being repaired.
    pub(super) fn check_dependencies_settled(
        &self,
        name: &Name,
        claims: &Claims,
    ) -> Result<(), Error> {
        let Shared {
            registry,
            conditions,
            ..
        } = &*self.shared;
        let refuses = |owner: &Name| {
            conditions.is_unsettled(owner.key()) && !registry.users_of(owner).contains(name)
        };
        let Some(owner) = self.dependencies(name, claims).find(refuses) else {
            return Ok(());
        };
        Err(Error::Unavailable(format!(
            "{owner} is being repaired after a change that failed: try again, or use another one"
        )))
    }

    /// Returns the other objects whose keys the claims use.
    fn dependencies(&self, name: &Name, claims: &Claims) -> impl Iterator<Item = Name> {
        let owners = claims
            .used()
            .filter_map(|key| self.shared.registry.owner(&key));
        owners.filter(move |owner| owner != name)
    }
}
