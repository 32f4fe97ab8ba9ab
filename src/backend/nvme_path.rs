//! NvmePath: a connection to a remote controller. The first path brings the controller's namespaces as bdevs; further
//! paths join according to the controller's multipath mode.
//!
//! ```text
//!   no path --create--> bdevs --create--> bdevs, two paths
//!      ^                 |  ^                  |
//!      +--delete (unused)+  +------delete------+
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spdk::bdev::nvme::{self, Address, Detached, Multipath, PathState};
use spdk::{Handle, Spdk, errno};

use super::nvme_remote_controller::{NvmeRemoteControllers, key_name, key_of, unreachable};
use super::path_address::{address, check, path_id, path_key, source};
use super::{pcie, probe, volume_stats};
use crate::api::storage::{
    NvmeMultipath, NvmePath, NvmeRemoteController, NvmeTransportType, VolumeStats,
};
use crate::error::{Error, Subject, Violations};
use crate::health::Health;
use crate::interchange;
use crate::resource::volume_ref::remote_bdevs;
use crate::resource::{
    CallContext, Change, Claims, Collection, DEFAULT_TIMEOUT, Kind, Name, Others, Stage,
};

/// Directory in which the kernel lists its RDMA devices.
const RDMA_DEVICES: &str = "/sys/class/infiniband";

/// The kind of NvmePath.
pub struct NvmePaths {
    spdk: Handle,
    controllers: Others<NvmeRemoteControllers>,
    health: Arc<Health>,
}

impl NvmePaths {
    /// Creates the kind for paths to these controllers.
    pub fn new(
        spdk: Handle,
        controllers: Arc<Collection<NvmeRemoteControllers>>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            spdk,
            controllers: Others::of(controllers),
            health,
        }
    }

    fn controller(&self, name: &Name) -> Result<NvmeRemoteController, Error> {
        let parent = name.parent().ok_or_else(|| Error::not_found(name))?;
        let controller = self.controllers.object(&parent);
        controller.ok_or_else(|| Error::not_found(&parent))
    }

    /// Returns SPDK's options to attach a path that has passed the checks.
    fn options(
        &self,
        name: &Name,
        path: &NvmePath,
        deadline: Duration,
    ) -> Result<nvme::Options, Error> {
        let controller = self.controller(name)?;
        let tcp = controller.tcp.clone().unwrap_or_default();
        let over_tcp = path.trtype() == NvmeTransportType::Tcp;
        if !over_tcp && (tcp.hdgst || tcp.ddgst || !tcp.psk.is_empty()) {
            let what = "the controller has digests or TLS, which are for NVME_TRANSPORT_TYPE_TCP";
            return Err(Error::invalid("trtype", what));
        }
        let id = name.parent_id().unwrap_or_default();
        if id.len() > nvme::MAX_NAME_LEN {
            let what = format!(
                "SPDK names controllers with {} characters at most, and {id} has {}",
                nvme::MAX_NAME_LEN,
                id.len()
            );
            return Err(Error::failed_precondition(id, what));
        }
        let fabrics = path.fabrics.clone().unwrap_or_default();
        Ok(nvme::Options {
            name: id.to_owned(),
            address: address(path).map_err(|(field, what)| Error::invalid(field, what))?,
            subsystem: fabrics.subnqn.clone(),
            hostnqn: Some(fabrics.hostnqn.clone()).filter(|nqn| !nqn.is_empty()),
            source: source(&fabrics).map_err(|(field, what)| Error::invalid(field, what))?,
            multipath: match controller.multipath() {
                NvmeMultipath::Multipath => Multipath::Multipath,
                NvmeMultipath::Failover => Multipath::Failover,
                NvmeMultipath::Disable | NvmeMultipath::Unspecified => Multipath::Disabled,
            },
            first: false,
            header_digest: tcp.hdgst,
            data_digest: tcp.ddgst,
            num_io_queues: u32::try_from(controller.io_queues_count).unwrap_or_default(),
            io_queue_size: u32::try_from(controller.queue_size).unwrap_or_default(),
            psk: (!key_of(&controller).is_empty()).then(|| key_name(id)),
            deadline,
        })
    }

    /// Returns the name of the path's controller.
    fn parent(&self, name: &Name) -> Name {
        let id = name.parent_id().unwrap_or_default();
        self.controllers.meta().name(None, id)
    }

    /// Returns a user of any bdev of the path's controller.
    fn user_of_bdevs(&self, name: &Name) -> Option<Name> {
        self.controllers.kind().user_of_bdevs(&self.parent(name))
    }

    fn in_use(name: &Name, user: Option<Name>) -> Error {
        Error::InUse {
            name: name.into(),
            user: user.as_ref().map(Subject::from).unwrap_or_default(),
            remedy: "it is the last path to what that uses; delete that first".into(),
        }
    }
}

impl Kind for NvmePaths {
    type Object = NvmePath;

    const STAGE: Stage = Stage::Path;

    fn check(&self, object: &NvmePath, violations: &mut Violations) {
        check(object, violations);
    }

    fn device(&self, object: &NvmePath) -> Option<String> {
        address(object).ok().map(|address| address.to_string())
    }

    fn claims(&self, name: &Name, object: &NvmePath) -> Claims {
        let mut claims = Claims::new();
        if let Ok(address) = address(object) {
            let fabrics = object.fabrics.clone().unwrap_or_default();
            let (subnqn, hostnqn) = (fabrics.subnqn, fabrics.hostnqn);
            claims = claims.owns(format!("path/{address} {subnqn} as {hostnqn}"));
        }
        if let Some(parent) = name.parent() {
            claims = claims.joins(parent);
        }
        // The path's fault is noted under this key.
        if let (Some(id), Some(path)) = (name.parent_id(), path_id(object)) {
            claims = claims.owns(path_key(id, &path));
        }
        // An existing path (it has a name) is being updated or deleted, which may remove bdevs: lock them.
        match name.parent_id() {
            Some(id) if !object.name.is_empty() => claims.alters(remote_bdevs(id)),
            _ => claims,
        }
    }

    async fn prepare(
        &self,
        call: &CallContext,
        name: &Name,
        wanted: &NvmePath,
    ) -> Result<(), Error> {
        check_device(wanted).await?;
        let options = self.options(name, wanted, Duration::ZERO)?;
        check_identity(&options)?;
        probe::reachable(&options, call.answer_by()).await
    }

    async fn ensure(
        &self,
        call: &CallContext,
        name: &Name,
        object: NvmePath,
    ) -> Result<NvmePath, Error> {
        let is_known = !object.name.is_empty();
        let mut options = self.options(name, &object, left(call))?;
        let mut paths = self.controllers.kind().paths(&self.parent(name));
        options.first = !is_known && paths.all(|path| path == *name);
        let attached = self.spdk.call(async move |spdk| {
            if is_known && is_there(spdk, &options) {
                return Ok(());
            }
            join(spdk, &options).await
        });
        attached.await?.map_err(at_fault)?;
        Ok(object)
    }

    async fn update(
        &self,
        call: &CallContext,
        name: &Name,
        change: Change<NvmePath>,
    ) -> Result<NvmePath, Error> {
        let old = self.options(name, &change.old, DEFAULT_TIMEOUT)?;
        let new = self.options(name, &change.wanted, left(call))?;
        let user = self.user_of_bdevs(name);
        let free = user.is_none();
        let replaced = self
            .spdk
            .call(async move |spdk| replace(spdk, &old, &new, free).await);
        match replaced.await?.map_err(at_fault)? {
            Detached::Done => Ok(change.wanted),
            Detached::Needed => Err(Self::in_use(name, user)),
        }
    }

    /// The other path. The object's own is attached first where it is the last, and the bdevs are in use.
    async fn withdraw(
        &self,
        call: &CallContext,
        name: &Name,
        back: &Change<NvmePath>,
    ) -> Result<(), Error> {
        let other = self.options(name, &back.old, DEFAULT_TIMEOUT)?;
        let own = self.options(name, &back.wanted, left(call))?;
        if other.path() == own.path() {
            return Ok(());
        }
        let user = self.user_of_bdevs(name);
        let free = user.is_none();
        let left = self.spdk.call(async move |spdk| {
            if let Detached::Done = leave(spdk, &other, free).await? {
                return Ok(Detached::Done);
            }
            join(spdk, &own).await?;
            leave(spdk, &other, free).await
        });
        match left.await?.map_err(at_fault)? {
            Detached::Done => Ok(()),
            Detached::Needed => Err(Self::in_use(name, user)),
        }
    }

    async fn remove(&self, _: &CallContext, name: &Name, object: &NvmePath) -> Result<(), Error> {
        let options = self.options(name, object, DEFAULT_TIMEOUT)?;
        let user = self.user_of_bdevs(name);
        let free = user.is_none();
        let left = self
            .spdk
            .call(async move |spdk| leave(spdk, &options, free).await);
        match left.await?.map_err(at_fault)? {
            Detached::Done => Ok(()),
            Detached::Needed => Err(Self::in_use(name, user)),
        }
    }

    /// Returns the I/O counters of the path. The API has no field for a path's state, so a path that is down returns
    /// UNAVAILABLE.
    async fn stats(&self, name: &Name, object: &NvmePath) -> Result<VolumeStats, Error> {
        let options = self.options(name, object, DEFAULT_TIMEOUT)?;
        let key = path_key(&options.name, &options.path());
        if let Some(fault) = self.health.fault(&key) {
            return Err(Error::Unavailable(fault.what));
        }
        let stats = self
            .spdk
            .call(async move |spdk| nvme::path_stats(spdk, &options.name, &options.path()).await);
        Ok(volume_stats([stats.await?.map_err(unreachable)?]))
    }
}

/// Returns whether SPDK has the path, connected or not: SPDK reconnects a dropped path itself.
fn is_there(spdk: Spdk, path: &nvme::Options) -> bool {
    let mine = path.path();
    let there = nvme::paths(spdk, &path.name).unwrap_or_default();
    // One that is being detached is gone in a moment.
    let stays = |path: &nvme::Path| path.state != PathState::Deleting;
    (there.iter()).any(|path| path.id().as_ref() == Some(&mine) && stays(path))
}

/// Checks that the NQNs of host and subsystem fit into the TLS PSK identity: with longer ones the path would never
/// connect.
fn check_identity(path: &nvme::Options) -> Result<(), Error> {
    // Without a host NQN, SPDK generates one of this form from a random UUID.
    const UNNAMED: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000000";
    if path.psk.is_none() {
        return Ok(());
    }
    let host = path.hostnqn.as_deref().unwrap_or(UNNAMED);
    interchange::check_identity(host, &path.subsystem).map_err(|_| {
        let what = format!(
            "{} bytes, beside {} of the host's NQN, are too long for the identity of the controller's pre-shared key: {} \
             together fit",
            path.subsystem.len(),
            host.len(),
            interchange::IDENTITY_NQNS_MAX
        );
        Error::invalid("fabrics.subnqn", what)
    })
}

/// Returns the time left until the deadline of the call.
fn left(call: &CallContext) -> Duration {
    call.answer_by().saturating_duration_since(Instant::now())
}

/// Connects a path. With multipath, spreads I/O over all paths; if that fails, the path is disconnected again.
async fn join(spdk: Spdk, path: &nvme::Options) -> Result<(), spdk::Error> {
    nvme::attach(spdk, path).await?;
    if path.multipath != Multipath::Multipath {
        return Ok(());
    }
    match nvme::use_all_paths(spdk, &path.name).await {
        Err(error) => Err(error.after_undo(leave(spdk, path, true).await)),
        spread => spread,
    }
}

/// Disconnects the path. Idempotent. The last path stays if the bdevs are in use (`free` is false).
async fn leave(spdk: Spdk, path: &nvme::Options, free: bool) -> Result<Detached, spdk::Error> {
    let mine = path.path();
    match nvme::detach(spdk, &path.name, Some(&mine), !free).await {
        Err(error) if [errno::ENODEV, errno::ENXIO].contains(&error.errno.0) => Ok(Detached::Done),
        detached => detached,
    }
}

/// Replaces a path. Where both can coexist, the new one is connected first, so that I/O continues. Otherwise the old
/// one is disconnected first, and reconnected if the new one fails (rollback).
async fn replace(
    spdk: Spdk,
    old: &nvme::Options,
    new: &nvme::Options,
    free: bool,
) -> Result<Detached, spdk::Error> {
    // All paths of a failover controller must connect from the same source and host NQN.
    let joins = match new.multipath {
        Multipath::Disabled => false,
        Multipath::Failover => (new.source, &new.hostnqn) == (old.source, &old.hostnqn),
        Multipath::Multipath => true,
    };
    let both = joins && new.address != old.address && new.subsystem == old.subsystem;
    if both {
        // An earlier update may have attached it.
        if !is_there(spdk, new) {
            join(spdk, new).await?;
        }
        return match leave(spdk, old, true).await {
            // The old path may go yet, so the new one is not to go.
            Err(error) if !error.is_unsettled => {
                Err(error.after_undo(leave(spdk, new, true).await))
            }
            left => left,
        };
    }
    nvme::may_replace(spdk, new, &old.path())?;
    if let Detached::Needed = leave(spdk, old, free).await? {
        return Ok(Detached::Needed);
    }
    match join(spdk, new).await {
        Err(error) => Err(error.after_undo(join(spdk, old).await)),
        Ok(()) => Ok(Detached::Done),
    }
}

/// Translates SPDK's error for the client.
fn at_fault(error: spdk::Error) -> Error {
    Error::of(error, |error| match error.errno.0 {
        errno::EINVAL | errno::EEXIST => Error::failed_precondition("", error.to_string()),
        _ => unreachable(error),
    })
}

/// Checks that this machine has the device that the transport needs.
async fn check_device(path: &NvmePath) -> Result<(), Error> {
    match address(path) {
        Ok(Address::Pcie { address }) => {
            let looked = tokio::task::spawn_blocking(move || {
                pcie::check_usable(Path::new(pcie::DEVICES), &address)
            });
            looked
                .await
                .map_err(|error| Error::internal("looking at a PCI device", error))?
        }
        Ok(Address::Rdma { .. }) => {
            let devices = tokio::fs::read_dir(RDMA_DEVICES).await;
            let any = match devices {
                Ok(mut devices) => devices.next_entry().await.ok().flatten().is_some(),
                Err(_) => false,
            };
            let none = || {
                let what = format!("this machine has no RDMA device: {RDMA_DEVICES} is empty");
                Error::failed_precondition(RDMA_DEVICES, what)
            };
            if any { Ok(()) } else { Err(none()) }
        }
        _ => Ok(()),
    }
}
