//! NvmeController: an endpoint of a subsystem. Over TCP it is a listen address of the target; over PCIe it is the
//! socket of a vfio-user controller, for a virtual machine or another process.
//!
//! SPDK cannot set queue sizes and counts per controller: the fields are stored and returned, and what a host
//! negotiates is limited by the transport alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spdk::nvmf::{Address, Transport, listener, transport};
use spdk::{Handle, Spdk, errno};

use super::admission::Hosts;
use super::controller_spec::{
    MAX_CONTROLLER_ID, check_endpoint, check_numbers, refuse_limits, tcp_address,
};
use super::nvme_subsystem::{NvmeSubsystems, nqn_of};
use super::{is_gone, socket_key, subsystem_stats};
use crate::api::storage::nvme_controller_spec::Endpoint;
use crate::api::storage::{
    NvmeController, NvmeControllerSpec, NvmeControllerStatus, NvmeSubsystem, PciEndpoint,
    VolumeStats,
};
use crate::connected;
use crate::ctrlr_dir;
use crate::error::{Error, Violations};
use crate::health::{Health, Part, Parted, What};
use crate::kvm::{Model, Pluggable};
use crate::resource::{
    CallContext, Change, Claims, Collection, Key, Kind, Name, Others, Shared, Stage,
};

/// Grace period for a client that has been asked to disconnect.
const LEAVING: Duration = Duration::from_secs(1);

/// The kind of NvmeController.
pub struct NvmeControllers {
    spdk: Handle,
    subsystems: Others<NvmeSubsystems>,
    shared: Arc<Shared>,
    health: Arc<Health>,
    ctrlr_dir: PathBuf,
}

impl NvmeControllers {
    /// Creates the kind for controllers of these subsystems. PCIe controllers have their sockets under `ctrlr_dir`.
    pub fn new(
        spdk: Handle,
        subsystems: Arc<Collection<NvmeSubsystems>>,
        shared: Arc<Shared>,
        health: Arc<Health>,
        ctrlr_dir: PathBuf,
    ) -> Self {
        Self {
            spdk,
            subsystems: Others::of(subsystems),
            shared,
            health,
            ctrlr_dir,
        }
    }

    fn subsystem(&self, name: &Name) -> Result<NvmeSubsystem, Error> {
        let parent = name.parent().and_then(|key| self.subsystems.object(&key));
        parent.ok_or_else(|| Error::not_found(name))
    }

    /// Returns the listen address of a controller that has passed the checks.
    fn address(&self, name: &Name, spec: &NvmeControllerSpec) -> Result<Address, Error> {
        match &spec.endpoint {
            Some(Endpoint::FabricsId(endpoint)) => tcp_address(endpoint)
                .map_err(|(field, what)| Error::invalid(format!("spec.fabrics_id.{field}"), what)),
            Some(Endpoint::PcieId(_)) => {
                let dir = self.ctrlr_dir.join(name.parent_id().unwrap_or_default());
                match dir.to_str() {
                    Some(dir) => Ok(Address::VfioUser {
                        dir: dir.to_owned(),
                    }),
                    None => Err(Error::internal("naming a socket", "its path is not UTF-8")),
                }
            }
            None => Err(Error::invalid("spec.endpoint", "is required")),
        }
    }

    /// Keeps the requested controller ID, or chooses one that is free in the subsystem.
    fn choose_id(&self, name: &Name, spec: &mut NvmeControllerSpec) -> Result<(), Error> {
        if spec.nvme_controller_id.is_some() {
            return Ok(());
        }
        let registry = &self.shared.registry;
        let chosen = registry.choose(name, 1..=MAX_CONTROLLER_ID, |id| id_key(name, id));
        spec.nvme_controller_id = Some(chosen.ok_or_else(|| {
            Error::ResourceExhausted("all controller IDs of the subsystem are in use".into())
        })?);
        Ok(())
    }

    /// Returns whether the subsystem has a listener at the address.
    async fn listens(&self, name: &Name, address: &Address) -> Result<bool, Error> {
        let nqn = nqn_of(&self.subsystem(name)?);
        let listed = self.spdk.call(async move |spdk| listener::list(spdk, &nqn));
        Ok(listed.await??.contains(address))
    }

    async fn listen(&self, name: &Name, address: Address) -> Result<(), Error> {
        let subsystem = self.subsystem(name)?;
        let nqn = nqn_of(&subsystem);
        let hosts = Hosts::of(&self.shared.registry, name.parent_id().unwrap_or_default());
        let secure = hosts.speak_tls() && matches!(address, Address::Tcp { .. });
        if let Address::VfioUser { dir } = &address {
            check_admitted(name, &subsystem, &hosts)?;
            ctrlr_dir::make(dir).await?;
        }
        let at = address.clone();
        let added = self
            .spdk
            .call(move |spdk| async move { add(spdk, &nqn, &at, secure).await });
        let result = added.await?.map_err(at_fault);
        self.health.note(name.key(), None);
        if let (Err(_), Address::VfioUser { dir }) = (&result, &address) {
            ctrlr_dir::remove(dir);
        }
        result
    }

    async fn stop(&self, name: &Name, address: Address) -> Result<(), Error> {
        if let Address::VfioUser { dir } = &address {
            check_unused(name, dir).await?;
        }
        let nqn = nqn_of(&self.subsystem(name)?);
        let at = address.clone();
        let removed = self.spdk.call(move |spdk| async move {
            match listener::remove(spdk, &nqn, &at).await {
                // Idempotent: a listener already removed through SPDK's own commands counts as removed.
                Err(error) if is_gone(&error) => Ok(()),
                result => result,
            }
        });
        removed.await??;
        if let Address::VfioUser { dir } = &address {
            ctrlr_dir::remove(dir);
        }
        Ok(())
    }
}

impl Kind for NvmeControllers {
    type Object = NvmeController;

    const STAGE: Stage = Stage::Door;

    fn check(&self, object: &NvmeController, violations: &mut Violations) {
        if let Some(spec) = &object.spec {
            check_numbers(spec, violations);
            refuse_limits(spec, violations);
            check_endpoint(spec, violations);
        }
    }

    fn claims(&self, name: &Name, object: &NvmeController) -> Claims {
        let spec = spec_of(object);
        let mut claims = Claims::new();
        if let Ok(address) = self.address(name, &spec) {
            let subsystem = name.parent_id().unwrap_or_default();
            claims = claims.owns(format!("address/{subsystem} at {address}"));
            if matches!(address, Address::VfioUser { .. }) {
                claims = claims.owns(socket_key(subsystem));
            }
        }
        match spec.nvme_controller_id {
            Some(id) => claims.owns(id_key(name, id)),
            None => claims,
        }
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        object: NvmeController,
    ) -> Result<NvmeController, Error> {
        let is_known = !object.name.is_empty();
        let mut spec = spec_of(&object);
        let address = self.address(name, &spec)?;
        if is_known && self.listens(name, &address).await? {
            return Ok(active(object, spec));
        }
        self.choose_id(name, &mut spec)?;
        self.listen(name, address).await?;
        Ok(active(object, spec))
    }

    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<NvmeController>,
    ) -> Result<NvmeController, Error> {
        let (old, mut spec) = (spec_of(&change.old), spec_of(&change.wanted));
        if spec.nvme_controller_id.is_none() {
            spec.nvme_controller_id = old.nvme_controller_id;
        }
        if spec.nvme_controller_id != old.nvme_controller_id {
            return Err(Error::immutable("spec.nvme_controller_id"));
        }
        let before = self.address(name, &old)?;
        let after = self.address(name, &spec)?;
        if before != after && before.overlaps(&after) {
            // The addresses overlap, so both cannot be bound at once: the controller is unreachable for a moment.
            self.stop(name, before.clone()).await?;
            if let Err(error) = self.listen(name, after).await {
                let Err(left) = self.listen(name, before).await else {
                    return Err(error);
                };
                tracing::error!(%name, %left, "hosts reach the subsystem at neither address; it is tried again");
                return Err(error.unsettled());
            }
        } else if before != after {
            // A rollback that is retried may have bound the address before.
            if !change.is_undo || !self.listens(name, &after).await? {
                self.listen(name, after.clone()).await?;
            }
            if let Err(error) = self.stop(name, before).await {
                let Err(left) = self.stop(name, after).await else {
                    return Err(error);
                };
                tracing::error!(%name, %left, "hosts reach the subsystem at the new address too; that is undone later");
                return Err(error.unsettled());
            }
        }
        Ok(active(change.wanted, spec))
    }

    async fn withdraw(
        &self,
        _: &CallContext,
        name: &Name,
        back: &Change<NvmeController>,
    ) -> Result<(), Error> {
        let address = |object| self.address(name, &spec_of(object));
        let (tried, now) = (address(&back.old)?, address(&back.wanted)?);
        match tried == now {
            true => Ok(()),
            false => self.stop(name, tried).await,
        }
    }

    async fn remove(
        &self,
        _: &CallContext,
        name: &Name,
        object: &NvmeController,
    ) -> Result<(), Error> {
        let address = self.address(name, &spec_of(object))?;
        self.stop(name, address).await
    }

    /// Returns the stats of the whole subsystem: SPDK does not count per controller.
    async fn stats(&self, name: &Name, _: &NvmeController) -> Result<VolumeStats, Error> {
        subsystem_stats(&self.spdk, nqn_of(&self.subsystem(name)?)).await
    }

    fn refresh(&self, name: &Name, object: &mut NvmeController) {
        let active = self.health.fault(name.key()).is_none()
            && !self.shared.conditions.is_pending(name.key());
        object.status = Some(NvmeControllerStatus { active });
    }
}

impl Parted for NvmeControllers {
    fn part(&self, name: &Name, object: &NvmeController) -> Option<Part> {
        let address = self.address(name, &spec_of(object)).ok()?;
        let (nqn, what) = (nqn_of(&self.subsystem(name).ok()?), What::Listener(address));
        Some(Part { nqn, what })
    }
}

impl Pluggable for NvmeControllers {
    const MODEL: Model = Model::Nvme;
    const FIELD: &'static str = "spec.pcie_id";

    fn endpoint(object: &NvmeController) -> Option<&PciEndpoint> {
        match object.spec.as_ref()?.endpoint.as_ref()? {
            Endpoint::PcieId(endpoint) => Some(endpoint),
            Endpoint::FabricsId(_) => None,
        }
    }

    fn socket(name: &Name) -> PathBuf {
        PathBuf::from(name.parent_id().unwrap_or_default()).join("cntrl")
    }
}

/// Refuses to remove a controller while a virtual machine is connected. QEMU connects a vfio-user device only once, so
/// its disk would be lost for good. A device that has just been unplugged gets `LEAVING` to disconnect.
async fn check_unused(name: &Name, dir: &str) -> Result<(), Error> {
    let socket = ctrlr_dir::socket(dir);
    let end = Instant::now() + LEAVING;
    loop {
        match connected::is_connected(&socket).await {
            Ok(true) if Instant::now() < end => tokio::time::sleep(LEAVING / 50).await,
            Ok(true) => {
                let what = "a virtual machine is connected: unplug the device there first";
                return Err(Error::failed_precondition(name, what.to_owned()));
            }
            Ok(false) => return Ok(()),
            Err(error) => return Err(Error::internal("looking for clients", error)),
        }
    }
}

/// Refuses a PCIe controller where hosts are admitted by NQN: hosts over PCIe have none, so SPDK would reject them.
fn check_admitted(name: &Name, subsystem: &NvmeSubsystem, hosts: &Hosts) -> Result<(), Error> {
    if hosts.is_empty() {
        return Ok(());
    }
    let what = format!(
        "{} admits hosts by their NQNs (spec.hostnqn, NvmeHosts), and hosts over PCIe have none: use a \
         subsystem with an empty hostnqn and without NvmeHosts",
        subsystem.name
    );
    Err(Error::failed_precondition(name, what))
}

fn spec_of(object: &NvmeController) -> NvmeControllerSpec {
    object.spec.clone().unwrap_or_default()
}

fn id_key(name: &Name, id: i32) -> Key {
    Key::from(format!(
        "cntlid/{}/{id}",
        name.parent_id().unwrap_or_default()
    ))
}

/// Returns the object with its final spec and status `active`.
fn active(mut object: NvmeController, spec: NvmeControllerSpec) -> NvmeController {
    object.spec = Some(spec);
    object.status = Some(NvmeControllerStatus { active: true });
    object
}

async fn add(spdk: Spdk, nqn: &str, address: &Address, secure: bool) -> Result<(), spdk::Error> {
    if matches!(address, Address::VfioUser { .. }) && !transport::exists(spdk, Transport::VfioUser)?
    {
        return Err(spdk::Error::new("add listener", errno::EPERM).with_detail(
            "PCIE controllers share memory with their hosts, and need the server to run with hugepages",
        ));
    }
    listener::add(spdk, nqn, address, secure).await
}

/// Translates SPDK's error, and names the field at fault.
fn at_fault(error: spdk::Error) -> Error {
    Error::of(error, |error| match error.errno.0 {
        errno::EINVAL => Error::invalid("spec", error.to_string()),
        _ => error.into(),
    })
}
