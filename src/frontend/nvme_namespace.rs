//! NvmeNamespace: a volume as a namespace of a subsystem. It is online while hosts can do I/O. SPDK removes the
//! namespace when its bdev goes away; it is added again once the volume is back.

use std::sync::Arc;

use spdk::nvmf::namespace::{self, Added, Namespace};
use spdk::nvmf::reservation;
use spdk::nvmf::subsystem::MAX_NAMESPACES;
use spdk::{Handle, Spdk, bdev, errno};

use super::nvme_subsystem::{NvmeSubsystems, nqn_of};
use super::reservations::Reservations;
use super::{is_gone, nvme_namespace_mask};
use crate::api::storage::nvme_namespace_status::{OperState, State};
use crate::api::storage::{NvmeNamespace, NvmeNamespaceSpec, NvmeNamespaceStatus, VolumeStats};
use crate::backend::{aio_contexts, check_uuid, parse_uuid, stats_if, volume_at_fault};
use crate::error::{Error, Violations};
use crate::health::{Health, Part, Parted, Presences, Replaced, What};
use crate::resource::volume_ref::VolumeRef;
use crate::resource::{
    CallContext, Change, Claims, Collection, Key, Kind, Name, Others, Shared, Stage,
};

/// The kind of NvmeNamespace.
pub struct NvmeNamespaces {
    spdk: Handle,
    subsystems: Others<NvmeSubsystems>,
    shared: Arc<Shared>,
    health: Arc<Health>,
    reservations: Arc<Reservations>,
    /// The bdev of each namespace at the time it was added.
    volumes: Presences,
}

impl NvmeNamespaces {
    /// Creates the kind for namespaces of these subsystems.
    pub fn new(
        spdk: Handle,
        subsystems: Arc<Collection<NvmeSubsystems>>,
        shared: Arc<Shared>,
        health: Arc<Health>,
        reservations: Arc<Reservations>,
    ) -> Self {
        Self {
            spdk,
            subsystems: Others::of(subsystems),
            shared,
            health,
            reservations,
            volumes: Presences::default(),
        }
    }

    /// Records that a namespace has been added to SPDK; returns its NSID.
    fn shown(&self, name: &Name, added: Added) -> u32 {
        if added.metadata_size != 0 {
            tracing::warn!(
                namespace = %name,
                metadata_size = added.metadata_size,
                "Linux hosts over NVMe/TCP show a volume with metadata as a disk of 0 bytes"
            );
        }
        self.volumes.note(name, added.bdev);
        self.health.note(name.key(), None);
        added.nsid
    }

    /// Chooses an NSID that is free in the subsystem. SPDK's own choice could reuse the NSID of a namespace whose
    /// volume is gone for now.
    fn choose_nsid(&self, name: &Name) -> Result<u32, Error> {
        let numbers = 1..=MAX_NAMESPACES.cast_signed();
        let registry = &self.shared.registry;
        let chosen = registry.choose(name, numbers, |nsid| nsid_key(name, nsid));
        chosen.map(i32::unsigned_abs).ok_or_else(|| {
            Error::ResourceExhausted("all namespace IDs of the subsystem are in use".into())
        })
    }

    /// Adds the name by which SPDK finds the mask, and whether there is one.
    ///
    /// # Errors
    /// FAILED_PRECONDITION while a stored mask of the subsystem cannot be used, and might be that of this namespace.
    fn masked(
        &self,
        name: &Name,
        options: namespace::Options,
    ) -> Result<namespace::Options, Error> {
        let masked = nvme_namespace_mask::of(&self.shared.registry, name.key()).is_some();
        if !masked
            && let Some(parent) = name.parent()
            && let Some(mask) = nvme_namespace_mask::unusable(&self.shared.unusable, &parent)
        {
            let what = format!(
                "{mask} cannot be used, and may say which hosts may see this namespace: delete that first"
            );
            return Err(Error::failed_precondition(name, what));
        }
        Ok(namespace::Options {
            name: name.key().as_str().to_owned(),
            masked,
            ..options
        })
    }

    fn nqn(&self, name: &Name) -> Result<String, Error> {
        let parent = name.parent().and_then(|key| self.subsystems.object(&key));
        parent
            .as_ref()
            .map(nqn_of)
            .ok_or_else(|| Error::not_found(name))
    }
}

impl Kind for NvmeNamespaces {
    type Object = NvmeNamespace;

    const STAGE: Stage = Stage::Part;

    fn check(&self, object: &NvmeNamespace, violations: &mut Violations) {
        let Some(spec) = &object.spec else { return };
        if spec.host_nsid < 0 {
            violations.add(
                "spec.host_nsid",
                format!(
                    "{} is negative: 1 or more, or 0 for a free one",
                    spec.host_nsid
                ),
            );
        }
        check_uuid("spec.uuid", &spec.uuid, violations);
        check_uuid("spec.nguid", &spec.nguid, violations);
        if let Err(reason) = VolumeRef::parse(&spec.volume_name_ref) {
            violations.add("spec.volume_name_ref", reason);
        }
    }

    fn claims(&self, name: &Name, object: &NvmeNamespace) -> Claims {
        let spec = spec_of(object);
        let claims = match VolumeRef::parse(&spec.volume_name_ref) {
            Ok(volume) => volume.taken_in(Claims::new()),
            Err(_) => Claims::new(),
        };
        let claims = identifiers(name, &options(&spec)).fold(claims, Claims::owns);
        match (spec.host_nsid, name.parent_id()) {
            (1.., Some(_)) => claims.owns(nsid_key(name, spec.host_nsid)),
            _ => claims,
        }
    }

    fn volume_ref<'a>(&self, object: &'a NvmeNamespace) -> Option<&'a str> {
        Some(&object.spec.as_ref()?.volume_name_ref)
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        object: NvmeNamespace,
    ) -> Result<NvmeNamespace, Error> {
        let is_known = !object.name.is_empty();
        if is_known && !self.is_lost(name, &object) {
            return Ok(object);
        }
        let nqn = self.nqn(name)?;
        aio_contexts::check(&self.shared.registry, name)?;
        let spec = spec_of(&object);
        let mut options = self.masked(name, options(&spec))?;
        if options.nsid == 0 {
            options.nsid = self.choose_nsid(name)?;
        }
        if !is_known {
            self.reservations.forget(name).await?;
        }
        options.kept = Some(self.reservations.of(name)?);
        let added = self.spdk.call(move |spdk| async move {
            if is_known {
                remove_left(spdk, &nqn, &options).await?;
                // Checked first because adding a namespace pauses the I/O of the whole subsystem.
                check_free(spdk, &options.bdev)?;
            }
            namespace::add(spdk, &nqn, &options).await
        });
        let added = added.await?.map_err(|error| {
            let stays_paused = |what: &str| what.contains("could not be resumed");
            // Race: others may have used up the aio contexts since the check, so a reactor failed to open the bdev.
            if error.detail.as_deref().is_some_and(stays_paused)
                && let Err(exhausted) = aio_contexts::check(&self.shared.registry, name)
            {
                return exhausted;
            }
            at_fault(&spec, error)
        })?;
        Ok(with_nsid(object, self.shown(name, added)))
    }

    /// A namespace whose bdev is gone is not visible to hosts.
    fn is_lost(&self, name: &Name, _: &NvmeNamespace) -> bool {
        !self.volumes.is_there(name)
    }

    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<NvmeNamespace>,
    ) -> Result<NvmeNamespace, Error> {
        let nqn = self.nqn(name)?;
        let (old, new) = (spec_of(&change.old), spec_of(&change.wanted));
        let (mut before, mut after) = (options(&old), options(&new));
        if same(&before, &after) {
            return Ok(with_nsid(change.wanted, before.nsid));
        }
        if after.nsid == 0 {
            after.nsid = before.nsid;
        }
        // Hosts with a restricted view are granted this namespace by its NSID, so the NSID is fixed while in use.
        if after.nsid != before.nsid {
            change.unused(name)?;
        }
        before.kept = Some(self.reservations.of(name)?);
        after.kept.clone_from(&before.kept);
        (before, after) = (self.masked(name, before)?, self.masked(name, after)?);
        let is_undo = change.is_undo;
        let replaced = self.spdk.call(async move |spdk| {
            if is_undo {
                remove_left(spdk, &nqn, &after).await?;
            }
            replace(spdk, &nqn, &before, &after).await
        });
        let replaced = Error::joined(replaced.await);
        let Replaced { now, failed } = replaced.inspect_err(|error| {
            if error.is_unsettled() {
                // Hosts may see either volume, or none.
                self.volumes.forget(name);
            }
        })?;
        let nsid = match now {
            Some(added) => self.shown(name, added),
            None => {
                self.volumes.forget(name);
                old.host_nsid.unsigned_abs()
            }
        };
        match failed {
            None => Ok(with_nsid(change.wanted, nsid)),
            Some(error) => Err(at_fault(&new, error)),
        }
    }

    /// Whatever has the NSID of either, unless it is the object's own.
    async fn withdraw(
        &self,
        _: &CallContext,
        name: &Name,
        back: &Change<NvmeNamespace>,
    ) -> Result<(), Error> {
        let (nqn, nsids) = (self.nqn(name)?, [&back.old, &back.wanted].map(nsid_of));
        let own = self.volumes.is_there(name).then_some(nsids[1]);
        let others = move |nsid: &u32| *nsid != 0 && Some(*nsid) != own;
        let removed = self.spdk.call(async move |spdk| {
            for nsid in nsids.into_iter().filter(others) {
                remove(spdk, &nqn, nsid).await?;
            }
            Ok::<_, spdk::Error>(())
        });
        Ok(removed.await??)
    }

    async fn remove(
        &self,
        _: &CallContext,
        name: &Name,
        object: &NvmeNamespace,
    ) -> Result<(), Error> {
        let nqn = self.nqn(name)?;
        let shown = options(&spec_of(object));
        let key = name.key().as_str().to_owned();
        let removed = self.spdk.call(move |spdk| async move {
            match shown.nsid {
                0 => remove_by_bdev(spdk, &nqn, &shown.bdev).await?,
                nsid => remove(spdk, &nqn, nsid).await?,
            }
            reservation::forget(spdk, &key);
            Ok::<_, spdk::Error>(())
        });
        removed.await??;
        self.volumes.forget(name);
        self.reservations.forget(name).await
    }

    async fn stats(&self, name: &Name, object: &NvmeNamespace) -> Result<VolumeStats, Error> {
        let bdev = options(&spec_of(object)).bdev;
        stats_if(self.volumes.is_there(name), &self.spdk, bdev).await
    }

    fn refresh(&self, name: &Name, object: &mut NvmeNamespace) {
        let works = self.volumes.is_there(name)
            && self.health.fault(name.key()).is_none()
            && self.health.fault_of_dependencies(name).is_none();
        object.status = Some(NvmeNamespaceStatus {
            state: State::Enabled.into(),
            oper_state: if works {
                OperState::Online.into()
            } else {
                OperState::Offline.into()
            },
        });
    }
}

impl Parted for NvmeNamespaces {
    fn part(&self, name: &Name, object: &NvmeNamespace) -> Option<Part> {
        let nsid = options(&spec_of(object)).nsid;
        self.volumes.is_there(name).then_some(())?;
        let (nqn, what) = (self.nqn(name).ok()?, What::Namespace(nsid));
        Some(Part { nqn, what })
    }
}

fn nsid_key(name: &Name, nsid: i32) -> Key {
    Key::from(format!(
        "nsid/{}/{nsid}",
        name.parent_id().unwrap_or_default()
    ))
}

/// Returns the claims on identifiers given by the client, unique in the subsystem: hosts take two namespaces with the
/// same identifier for one disk. SPDK itself compares those that it derives from the volume.
fn identifiers(name: &Name, options: &namespace::Options) -> impl Iterator<Item = Key> + use<> {
    let subsystem = name.parent_id().unwrap_or_default().to_owned();
    let uuid = options.uuid.map(|uuid| ("uuid", hex(&uuid)));
    let nguid = options.nguid.map(|nguid| ("nguid", hex(&nguid)));
    let eui64 = options.eui64.map(|eui64| ("eui64", hex(&eui64)));
    let given = [uuid, nguid, eui64].into_iter().flatten();
    given.map(move |(field, value)| Key::from(format!("{field} in {subsystem}/{value}")))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn spec_of(object: &NvmeNamespace) -> NvmeNamespaceSpec {
    object.spec.clone().unwrap_or_default()
}

/// Checks that the text has the form of a namespace's name.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        ["nvmeSubsystems", subsystem, "nvmeNamespaces", namespace]
            if !subsystem.is_empty() && !namespace.is_empty() =>
        {
            Ok(())
        }
        _ => Err(format!(
            "{name:?} is not the name of a namespace: nvmeSubsystems/ID/nvmeNamespaces/ID"
        )),
    }
}

/// Returns the NSID of a namespace.
pub(super) fn nsid_of(object: &NvmeNamespace) -> u32 {
    options(&spec_of(object)).nsid
}

/// Translates a spec that has passed the checks into SPDK's options.
fn options(spec: &NvmeNamespaceSpec) -> namespace::Options {
    let volume = VolumeRef::parse(&spec.volume_name_ref);
    let (uuid, nguid) = (parse_uuid(&spec.uuid), parse_uuid(&spec.nguid));
    namespace::Options {
        bdev: volume
            .map(|volume| volume.bdev().to_owned())
            .unwrap_or_default(),
        nsid: u32::try_from(spec.host_nsid).unwrap_or_default(),
        // Hosts use both identifiers: if only one is given, the other is set too instead of being derived from the
        // volume.
        uuid: uuid.or(nguid),
        nguid: nguid.or(uuid),
        eui64: (spec.eui64 != 0).then(|| spec.eui64.to_be_bytes()),
        ..namespace::Options::default()
    }
}

/// Returns whether hosts would see no difference: another form of the volume's name, or a free choice of the NSID.
fn same(old: &namespace::Options, new: &namespace::Options) -> bool {
    (new.nsid == 0 || new.nsid == old.nsid)
        && (&new.bdev, new.uuid, new.nguid, new.eui64)
            == (&old.bdev, old.uuid, old.nguid, old.eui64)
}

/// Returns the object with this NSID.
fn with_nsid(mut object: NvmeNamespace, nsid: u32) -> NvmeNamespace {
    if let Some(spec) = &mut object.spec {
        spec.host_nsid = i32::try_from(nsid).unwrap_or(i32::MAX);
    }
    object
}

/// Checks that the bdev exists and is unclaimed.
fn check_free(spdk: Spdk, bdev: &str) -> Result<(), spdk::Error> {
    const OPERATION: &str = "add namespace";
    match bdev::lookup(spdk, bdev)? {
        None => Err(spdk::Error::new(OPERATION, errno::ENODEV)),
        Some(found) => match found.claimed_by {
            Some(owner) => {
                let what = format!("bdev {bdev:?} is in use by {owner}");
                Err(spdk::Error::new(OPERATION, errno::EBUSY).with_detail(what))
            }
            None => Ok(()),
        },
    }
}

/// Removes the namespace. Idempotent: one that went with its bdev or its subsystem counts as removed.
async fn remove(spdk: Spdk, nqn: &str, nsid: u32) -> Result<(), spdk::Error> {
    match namespace::remove(spdk, nqn, nsid).await {
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}

/// Removes what an earlier attempt has added of a namespace and could not take back, which would be the volume's user.
async fn remove_left(
    spdk: Spdk,
    nqn: &str,
    options: &namespace::Options,
) -> Result<(), spdk::Error> {
    if !namespace::exists(spdk, nqn, options.nsid) {
        return Ok(());
    }
    let own = bdev::own_name(spdk, &options.bdev)?;
    let namespaces = namespace::list(spdk, nqn)?;
    let is_own = |namespace: &Namespace| {
        namespace.nsid == options.nsid && Some(&namespace.bdev) == own.as_ref()
    };
    match namespaces.iter().any(is_own) {
        true => remove(spdk, nqn, options.nsid).await,
        false => Ok(()),
    }
}

/// Removes the namespace of a bdev, if there is one: a create that was cut off has not told the NSID that the server
/// chose. The subsystem claims the bdev, so that no other namespace has it.
async fn remove_by_bdev(spdk: Spdk, nqn: &str, bdev: &str) -> Result<(), spdk::Error> {
    let namespaces = match namespace::list(spdk, nqn) {
        Err(error) if is_gone(&error) => return Ok(()),
        listed => listed?,
    };
    // A namespace keeps its bdev open. The volume may be named by an alias or a UUID.
    let Some(found) = bdev::lookup(spdk, bdev)? else {
        return Ok(());
    };
    match nsid_with(&namespaces, &found.name) {
        Some(nsid) => remove(spdk, nqn, nsid).await,
        None => Ok(()),
    }
}

fn nsid_with(namespaces: &[Namespace], bdev: &str) -> Option<u32> {
    let found = namespaces.iter().find(|namespace| namespace.bdev == bdev);
    found.map(|namespace| namespace.nsid)
}

/// Replaces a namespace: it cannot be changed in place, so hosts see a removal and an addition. If the addition fails,
/// the old namespace is added again (rollback); if that fails too, the namespace is lost as if its volume were gone.
async fn replace(
    spdk: Spdk,
    nqn: &str,
    old: &namespace::Options,
    new: &namespace::Options,
) -> Result<Replaced<Added>, spdk::Error> {
    remove(spdk, nqn, old.nsid).await?;
    let added = namespace::add(spdk, nqn, new).await;
    Ok(Replaced::by(added, namespace::add(spdk, nqn, old)).await)
}

/// Translates SPDK's error, and names the field at fault.
fn at_fault(spec: &NvmeNamespaceSpec, error: spdk::Error) -> Error {
    Error::of(error, |error| match error.errno.0 {
        // The NSID was the server's choice, so the subsystem is full.
        errno::ERANGE if spec.host_nsid == 0 => Error::ResourceExhausted(
            "the subsystem has as many namespaces as it can: spec.max_namespaces".into(),
        ),
        errno::ERANGE => Error::invalid("spec.host_nsid", error.detail.unwrap_or_default()),
        _ => volume_at_fault("spec.volume_name_ref", &spec.volume_name_ref, error),
    })
}

#[cfg(test)]
mod tests;
