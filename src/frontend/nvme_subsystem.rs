//! NvmeSubsystem: what a host connects to. Namespaces, controllers and hosts are its parts.

use std::sync::Arc;

use spdk::Handle;
use spdk::nvmf::host::Keys;
use spdk::nvmf::{Address, host, listener, nqn, subsystem};

use super::admission::{Hosts, admitted, hostnqn_of};
use super::host_recipe::FirstHost;
use super::subsystem_recipe::{Recipe, adjust, make, rebuild, repair, unmake};
use super::subsystem_stats;
use crate::api::storage::{NvmeSubsystem, NvmeSubsystemSpec, NvmeSubsystemStatus, VolumeStats};
use crate::error::{Error, Violations};
use crate::interchange;
use crate::resource::{CallContext, Change, Claims, Kind, Name, Others, Registry, Shared, Stage};

/// NVMe base specification, Identify Controller: sizes of SN and MN in bytes.
pub(super) const SERIAL_LEN: usize = 20;
const MODEL_LEN: usize = 40;

/// The kind of NvmeSubsystem.
pub struct NvmeSubsystems {
    spdk: Handle,
    shared: Arc<Shared>,
}

impl NvmeSubsystems {
    /// Creates the kind for subsystems of this SPDK's target.
    pub fn new(spdk: Handle, shared: Arc<Shared>) -> Self {
        Self { spdk, shared }
    }

    /// Returns the NvmeHosts of a subsystem.
    fn hosts(&self, name: &Name) -> Hosts {
        Hosts::beside(&self.shared.registry, name.id(), Some(name))
    }

    /// Returns the recipe of the subsystem. Its host is left to the NvmeHost of that NQN, if there is one. A stored NvmeHost
    /// that cannot be used may be any: nobody is admitted in its place.
    fn recipe(&self, name: &Name, object: &NvmeSubsystem) -> Recipe {
        let stored = format!("{}/nvmeHosts/", name.key().as_str());
        let is_unknown = self.shared.unusable.first_under(&stored).is_some();
        let has_hosts = is_unknown || !self.hosts(name).is_empty();
        let is_held = is_unknown || self.is_held(name, &spec_of(object).hostnqn);
        Recipe::new(object, has_hosts, is_held)
    }

    /// Returns whether an NvmeHost of the subsystem has this NQN.
    fn is_held(&self, name: &Name, hostnqn: &str) -> bool {
        let held = hostnqn_of(name.id(), hostnqn);
        self.shared.registry.owner(&held).is_some()
    }

    /// Fails if the subsystem has a PCIe controller: admission by NQN would reject every host over PCIe.
    async fn check_no_pcie(&self, name: &Name, nqn: String) -> Result<(), Error> {
        let listening = self
            .spdk
            .call(move |spdk| async move { listener::list(spdk, &nqn) });
        let over_pcie = |at: &Address| matches!(at, Address::VfioUser { .. });
        if listening.await?.unwrap_or_default().iter().any(over_pcie) {
            let what = "spec.hostnqn: it has a PCIe controller, and hosts over PCIe have no NQN: \
                        delete that first, or leave hostnqn empty";
            return Err(Error::failed_precondition(name, what));
        }
        Ok(())
    }
}

impl Kind for NvmeSubsystems {
    type Object = NvmeSubsystem;

    const STAGE: Stage = Stage::Export;

    fn check(&self, object: &NvmeSubsystem, violations: &mut Violations) {
        let Some(spec) = &object.spec else { return };
        check_nqn("spec.nqn", &spec.nqn, violations);
        if !spec.hostnqn.is_empty() {
            check_nqn("spec.hostnqn", &spec.hostnqn, violations);
        }
        check_psk(spec, violations);
        check_text(
            "spec.serial_number",
            &spec.serial_number,
            SERIAL_LEN,
            violations,
        );
        check_text(
            "spec.model_number",
            &spec.model_number,
            MODEL_LEN,
            violations,
        );
        if !(0..=i64::from(subsystem::MAX_NAMESPACES)).contains(&spec.max_namespaces) {
            violations.add(
                "spec.max_namespaces",
                format!(
                    "{}: 1 to {}, or 0 for SPDK's default",
                    spec.max_namespaces,
                    subsystem::MAX_NAMESPACES
                ),
            );
        }
    }

    fn claims(&self, name: &Name, object: &NvmeSubsystem) -> Claims {
        let claims = Claims::new().owns(format!("nqn/{}", nqn_of(object)));
        let hostnqn = object.spec.as_ref().map(|spec| spec.hostnqn.as_str());
        match hostnqn {
            Some(hostnqn) if !hostnqn.is_empty() => admitted(claims, name.id(), has_psk(object)),
            _ => claims,
        }
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        mut object: NvmeSubsystem,
    ) -> Result<NvmeSubsystem, Error> {
        let is_known = !object.name.is_empty();
        let recipe = self.recipe(name, &object);
        let made = self.spdk.call(move |spdk| async move {
            match subsystem::info(spdk, &recipe.options.nqn)? {
                Some(found) if is_known => repair(spdk, &recipe, &found).await,
                _ => make(spdk, &recipe).await,
            }
        });
        made.await??;
        object.status = Some(NvmeSubsystemStatus {
            firmware_revision: spdk::version().to_owned(),
            ..Default::default()
        });
        Ok(object)
    }

    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<NvmeSubsystem>,
    ) -> Result<NvmeSubsystem, Error> {
        if change.fields.has("spec.nqn") {
            return Err(Error::immutable("spec.nqn"));
        }
        if has_host(&change.wanted) && !has_host(&change.old) {
            self.check_no_pcie(name, nqn_of(&change.old)).await?;
        }
        let hosts = self.hosts(name);
        if has_host(&change.wanted) {
            hosts.check_psk(name, has_psk(&change.wanted))?;
        }
        let (old, new) = (
            self.recipe(name, &change.old),
            self.recipe(name, &change.wanted),
        );
        let must_rebuild = is_rebuilt(&hosts, &change.old, &change.wanted);
        if must_rebuild {
            change.unused(name)?;
        }
        let changed = self.spdk.call(move |spdk| async move {
            // SPDK lost the subsystem in the failed rollback of an earlier rebuild.
            let lost = subsystem::info(spdk, &old.options.nqn)?.is_none();
            if must_rebuild || lost {
                rebuild(spdk, &old, &new).await
            } else {
                adjust(spdk, &old, &new).await
            }
        });
        changed.await??;
        Ok(change.wanted)
    }

    /// The whole subsystem, where the update was to rebuild it and nobody uses it; else the other host.
    async fn withdraw(
        &self,
        call: &CallContext,
        name: &Name,
        back: &Change<NvmeSubsystem>,
    ) -> Result<(), Error> {
        let (other, own) = (spec_of(&back.old), spec_of(&back.wanted));
        if is_rebuilt(&self.hosts(name), &back.old, &back.wanted) && !back.in_use() {
            return self.remove(call, name, &back.old).await;
        }
        if other.hostnqn.is_empty()
            || other.hostnqn == own.hostnqn
            || self.is_held(name, &other.hostnqn)
        {
            return Ok(());
        }
        let shut = self
            .spdk
            .call(async move |spdk| host::disallow(spdk, &other.nqn, &other.hostnqn).await);
        match shut.await? {
            Err(error) if !super::is_gone(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn remove(&self, _: &CallContext, _: &Name, object: &NvmeSubsystem) -> Result<(), Error> {
        let nqn = nqn_of(object);
        let deleted = self
            .spdk
            .call(move |spdk| async move { unmake(spdk, &nqn).await });
        Ok(deleted.await??)
    }

    async fn stats(&self, _: &Name, object: &NvmeSubsystem) -> Result<VolumeStats, Error> {
        subsystem_stats(&self.spdk, nqn_of(object)).await
    }

    fn hide_secrets(object: &mut NvmeSubsystem) {
        if let Some(spec) = &mut object.spec {
            spec.psk.clear();
        }
    }
}

/// Whether a change needs the subsystem rebuilt. The use of TLS is fixed when an address is bound; NvmeHosts, if there
/// are any, decide it for the subsystem.
fn is_rebuilt(hosts: &Hosts, old: &NvmeSubsystem, new: &NvmeSubsystem) -> bool {
    spec_of(old).max_namespaces != spec_of(new).max_namespaces
        || (hosts.is_empty() && has_psk(old) != has_psk(new))
}

/// Returns the spec of a subsystem.
pub(super) fn spec_of(object: &NvmeSubsystem) -> NvmeSubsystemSpec {
    object.spec.clone().unwrap_or_default()
}

/// Returns the NQN of a subsystem.
pub(super) fn nqn_of(object: &NvmeSubsystem) -> String {
    object
        .spec
        .as_ref()
        .map(|spec| spec.nqn.clone())
        .unwrap_or_default()
}

/// Returns whether the subsystem admits a host by `spec.hostnqn`.
fn has_host(object: &NvmeSubsystem) -> bool {
    object
        .spec
        .as_ref()
        .is_some_and(|spec| !spec.hostnqn.is_empty())
}

/// Returns whether the host of `spec.hostnqn` has a pre-shared key.
fn has_psk(object: &NvmeSubsystem) -> bool {
    object
        .spec
        .as_ref()
        .is_some_and(|spec| !spec.psk.is_empty())
}

/// The subsystem that a part belongs to.
pub(super) struct Parent {
    pub(super) name: Name,
    pub(super) nqn: String,
    pub(super) first: FirstHost,
}

impl Parent {
    /// Looks up the subsystem of the part with this name.
    pub(super) fn of(
        subsystems: &Others<NvmeSubsystems>,
        registry: &Registry,
        part: &Name,
    ) -> Result<Self, Error> {
        let key = part.parent();
        let found = key.and_then(|key| Some((registry.owner(&key)?, subsystems.object(&key)?)));
        let (name, object) = found.ok_or_else(|| Error::not_found(part))?;
        let nqn = nqn_of(&object);
        let spec = object.spec.unwrap_or_default();
        let first = FirstHost {
            hostnqn: spec.hostnqn,
            keys: Keys {
                psk: spec.psk,
                ..Keys::default()
            },
        };
        Ok(Self { name, nqn, first })
    }
}

/// Checks the pre-shared key: TLS requires a host known by its NQN.
fn check_psk(spec: &NvmeSubsystemSpec, violations: &mut Violations) {
    if spec.psk.is_empty() {
        return;
    }
    if let Err(reason) = interchange::check_psk(&spec.psk) {
        violations.add("spec.psk", reason);
    }
    if let Err(reason) = interchange::check_identity(&spec.hostnqn, &spec.nqn) {
        violations.add("spec.psk", reason);
    }
    if spec.hostnqn.is_empty() {
        violations.add(
            "spec.hostnqn",
            "is required where psk is set: a key is one host's",
        );
    }
}

/// Checks that the text is an NQN that a host or a subsystem of ours may have.
pub(super) fn check_nqn(field: &str, text: &str, violations: &mut Violations) {
    if let Err(reason) = nqn::check(text) {
        violations.add(field, reason);
    } else if text == nqn::DISCOVERY {
        violations.add(
            field,
            format!("{text:?} is the discovery service's own name"),
        );
    }
}

/// Checks a text field of Identify Controller: printable ASCII of at most `max` bytes.
fn check_text(field: &str, text: &str, max: usize, violations: &mut Violations) {
    let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if text.len() > max || !printable {
        violations.add(
            field,
            format!(
                "{text:?} has {} bytes: at most {max} printable ASCII characters",
                text.len()
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(check: impl FnOnce(&mut Violations)) -> String {
        let mut violations = Violations::default();
        check(&mut violations);
        violations.to_string()
    }

    #[test]
    fn the_discovery_service_keeps_its_name() {
        assert!(broken(|v| check_nqn("f", nqn::DISCOVERY, v)).contains("discovery"));
        assert_eq!(
            broken(|v| check_nqn("f", "nqn.2022-09.io.spdk:opi1", v)),
            ""
        );
        assert!(broken(|v| check_nqn("f", "nqn.2022-09", v)).starts_with("f: NQN \"nqn.2022-09\""));
    }

    #[test]
    fn texts_are_printable_ascii_that_fits() {
        assert_eq!(broken(|v| check_text("f", "OPI SN", SERIAL_LEN, v)), "");
        assert_eq!(
            broken(|v| check_text("f", &"x".repeat(20), SERIAL_LEN, v)),
            ""
        );
        assert!(
            broken(|v| check_text("f", &"x".repeat(21), SERIAL_LEN, v)).contains("has 21 bytes")
        );
        assert!(broken(|v| check_text("f", "ü", SERIAL_LEN, v)).contains("printable ASCII"));
    }
}
