//! NvmeSubsystem: what a host connects to. Namespaces, controllers and hosts are its parts.

use std::sync::Arc;

use spdk::nvmf::host::Keys;
use spdk::nvmf::{Address, View, host, listener, nqn, subsystem};
use spdk::{Handle, Spdk, errno};
use uuid::Uuid;

use super::admission::{Hosts, admitted};
use super::subsystem_stats;
use crate::api::storage::{NvmeSubsystem, NvmeSubsystemSpec, NvmeSubsystemStatus, VolumeStats};
use crate::error::{Error, Violations};
use crate::interchange;
use crate::resource::{CallContext, Change, Claims, Kind, Name, Others, Registry, Stage};

/// NVMe base specification, Identify Controller: sizes of SN and MN in bytes.
const SERIAL_LEN: usize = 20;
const MODEL_LEN: usize = 40;

/// Default model number.
const DEFAULT_MODEL: &str = "SPDK bdev Controller";

/// The kind of NvmeSubsystem.
pub struct NvmeSubsystems {
    spdk: Handle,
    registry: Arc<Registry>,
}

impl NvmeSubsystems {
    /// Creates the kind for subsystems of this SPDK's target.
    pub fn new(spdk: Handle, registry: Arc<Registry>) -> Self {
        Self { spdk, registry }
    }

    /// Returns the NvmeHosts of a subsystem.
    fn hosts(&self, name: &Name) -> Hosts {
        Hosts::beside(&self.registry, name.id(), Some(name))
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
            Some(hostnqn) if !hostnqn.is_empty() => {
                admitted(claims, name.id(), hostnqn, has_psk(object))
            }
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
        let recipe = Recipe::new(&object, &self.hosts(name));
        let made = self.spdk.call(move |spdk| async move {
            if is_known && subsystem::info(spdk, &recipe.options.nqn)?.is_some() {
                return Ok(());
            }
            make(spdk, &recipe).await
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
            Recipe::new(&change.old, &hosts),
            Recipe::new(&change.wanted, &hosts),
        );
        // The use of TLS is fixed when an address is bound; NvmeHosts, if there are any, decide it for the subsystem.
        let rebuild = change.fields.has("spec.max_namespaces")
            || (hosts.is_empty() && has_psk(&change.old) != has_psk(&change.wanted));
        if rebuild {
            change.unused(name)?;
        }
        let changed = self.spdk.call(move |spdk| async move {
            // SPDK lost the subsystem in the failed rollback of an earlier rebuild.
            let lost = subsystem::info(spdk, &old.options.nqn)?.is_none();
            if rebuild || lost {
                self::rebuild(spdk, &old, &new).await
            } else {
                adjust(spdk, &old, &new).await
            }
        });
        changed.await??;
        Ok(change.wanted)
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

fn spec_of(object: &NvmeSubsystem) -> NvmeSubsystemSpec {
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
        Ok(Self { name, nqn })
    }
}

/// Parameters to create a subsystem in SPDK.
#[derive(Clone)]
struct Recipe {
    options: subsystem::Options,
    /// Host NQN of the spec; empty for none.
    hostnqn: String,
    /// Keys of that host.
    keys: Keys,
}

impl Recipe {
    /// Builds the recipe of a subsystem that has passed the checks and has these NvmeHosts.
    fn new(object: &NvmeSubsystem, hosts: &Hosts) -> Self {
        let spec = spec_of(object);
        let mut options = options(&spec);
        options.allow_any_host &= hosts.is_empty();
        Self {
            options,
            keys: Keys {
                psk: spec.psk,
                ..Keys::default()
            },
            hostnqn: spec.hostnqn,
        }
    }
}

fn options(spec: &NvmeSubsystemSpec) -> subsystem::Options {
    subsystem::Options {
        nqn: spec.nqn.clone(),
        serial: or(&spec.serial_number, &serial_of(&spec.nqn)),
        model: or(&spec.model_number, DEFAULT_MODEL),
        max_namespaces: u32::try_from(spec.max_namespaces).unwrap_or_default(),
        allow_any_host: spec.hostnqn.is_empty(),
    }
}

/// Derives the default serial number from the NQN: stable across restarts, and different for each NQN, since hosts and
/// udev identify a controller by it.
fn serial_of(nqn: &str) -> String {
    let mut text = Uuid::new_v5(&Uuid::NAMESPACE_OID, nqn.as_bytes())
        .simple()
        .to_string();
    text.truncate(SERIAL_LEN);
    text
}

fn or(text: &str, default: &str) -> String {
    if text.is_empty() { default } else { text }.to_owned()
}

async fn make(spdk: Spdk, recipe: &Recipe) -> Result<(), spdk::Error> {
    subsystem::create(spdk, &recipe.options).await?;
    let open = open(spdk, recipe).await;
    if open.is_err() {
        subsystem::destroy(spdk, &recipe.options.nqn).await?;
    }
    open
}

async fn unmake(spdk: Spdk, nqn: &str) -> Result<(), spdk::Error> {
    match subsystem::destroy(spdk, nqn).await {
        // Idempotent: an earlier delete that timed out may have completed in the background.
        Err(error) if error.errno.0 == errno::ENODEV => Ok(()),
        destroyed => destroyed,
    }
}

/// Replaces a subsystem that has no parts. If the new one cannot be created, the old one is recreated (rollback).
async fn rebuild(spdk: Spdk, old: &Recipe, new: &Recipe) -> Result<(), spdk::Error> {
    unmake(spdk, &old.options.nqn).await?;
    match make(spdk, new).await {
        Err(error) => Err(error.after_undo(make(spdk, old).await)),
        made => made,
    }
}

/// Changes admission, serial and model number while hosts are connected.
async fn adjust(spdk: Spdk, old: &Recipe, new: &Recipe) -> Result<(), spdk::Error> {
    let (before, after) = (&old.options, &new.options);
    if (&after.serial, &after.model) != (&before.serial, &before.model) {
        subsystem::set_identity(spdk, &after.nqn, &after.serial, &after.model).await?;
    }
    let admitted = admit(spdk, old, new).await;
    let Err(error) = admitted else { return Ok(()) };
    let undone = subsystem::set_identity(spdk, &before.nqn, &before.serial, &before.model);
    Err(error.after_undo(undone.await))
}

async fn admit(spdk: Spdk, old: &Recipe, new: &Recipe) -> Result<(), spdk::Error> {
    if (&old.hostnqn, &old.keys) == (&new.hostnqn, &new.keys) {
        return Ok(());
    }
    // The key has changed: hosts that connected with the old key are disconnected.
    if old.hostnqn == new.hostnqn {
        close(spdk, old, new).await?;
        return match open(spdk, new).await {
            Err(error) => Err(error.after_undo(open(spdk, old).await)),
            opened => opened,
        };
    }
    open(spdk, new).await?;
    match close(spdk, old, new).await {
        Err(error) if !new.hostnqn.is_empty() => {
            let shut = host::disallow(spdk, &new.options.nqn, &new.hostnqn).await;
            Err(error.after_undo(shut))
        }
        closed => closed,
    }
}

/// Admits the host of the spec. Without one, `close` opens the subsystem to any host.
async fn open(spdk: Spdk, recipe: &Recipe) -> Result<(), spdk::Error> {
    if recipe.hostnqn.is_empty() {
        return Ok(());
    }
    let nqn = &recipe.options.nqn;
    host::allow(spdk, nqn, &recipe.hostnqn, &recipe.keys, &View::All).await
}

/// Revokes the admission that `old` has and `new` has not.
async fn close(spdk: Spdk, old: &Recipe, new: &Recipe) -> Result<(), spdk::Error> {
    let (before, after) = (&old.options, &new.options);
    let closed = async {
        if before.allow_any_host != after.allow_any_host {
            host::allow_any(spdk, &after.nqn, after.allow_any_host).await?;
        }
        if old.hostnqn.is_empty() {
            return Ok(());
        }
        match host::disallow(spdk, &before.nqn, &old.hostnqn).await {
            Err(error) if error.errno.0 != errno::ENOENT => Err(error),
            _ => Ok(()),
        }
    };
    let Err(error) = closed.await else {
        return Ok(());
    };
    let undone = async {
        host::allow_any(spdk, &before.nqn, before.allow_any_host).await?;
        open(spdk, old).await
    };
    Err(error.after_undo(undone.await))
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

    #[test]
    fn a_serial_number_is_derived_from_the_nqn_and_fills_its_field() {
        let [one, other] = ["a", "b"].map(|id| serial_of(&format!("nqn.2022-09.io.spdk:{id}")));
        assert_ne!(one, other);
        assert_eq!(one, serial_of("nqn.2022-09.io.spdk:a"));
        assert_eq!(one.len(), SERIAL_LEN);
        assert_eq!(broken(|v| check_text("f", &one, SERIAL_LEN, v)), "");
    }

    #[test]
    fn what_a_client_leaves_out_has_a_default_that_an_update_can_go_back_to() {
        let options = options(&NvmeSubsystemSpec::default());
        assert_eq!(options.serial, serial_of(""));
        assert_eq!(options.model, DEFAULT_MODEL);
        assert!(options.allow_any_host);
    }
}
