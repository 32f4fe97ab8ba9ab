//! NvmeSubsystem: what a host connects to, with the namespaces and controllers that are its parts.

use spdk::nvmf::{Address, host, listener, nqn, subsystem};
use spdk::{Handle, Spdk, errno, keyring};
use uuid::Uuid;

use super::subsystem_stats;
use crate::api::storage::{NvmeSubsystem, NvmeSubsystemSpec, NvmeSubsystemStatus, VolumeStats};
use crate::error::{Error, Violations};
use crate::psk;
use crate::resource::{CallContext, Change, Kind, Name, Stage, Uses};

/// NVMe base specification, Identify Controller: bytes of the two texts.
const SERIAL_LEN: usize = 20;
const MODEL_LEN: usize = 40;

/// What hosts see where the client says nothing.
const DEFAULT_MODEL: &str = "SPDK bdev Controller";

/// The kind.
pub struct NvmeSubsystems {
    spdk: Handle,
}

impl NvmeSubsystems {
    /// Subsystems of this SPDK's target.
    pub fn new(spdk: Handle) -> Self {
        Self { spdk }
    }
}

impl NvmeSubsystems {
    /// A subsystem that admits one host keeps out all that come over PCIe.
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

    fn uses(&self, _: &Name, object: &NvmeSubsystem) -> Uses {
        Uses::new().owns(format!("nqn/{}", nqn_of(object)))
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        mut object: NvmeSubsystem,
    ) -> Result<NvmeSubsystem, Error> {
        let is_known = !object.name.is_empty();
        let recipe = Recipe::new(name, &object);
        let made = self.spdk.call(move |spdk| async move {
            if is_known {
                if subsystem::info(spdk, &recipe.options.nqn)?.is_some() {
                    return Ok(());
                }
                // One that was lost has left its key.
                forget_key(spdk, &recipe)?;
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
        let (old, new) = (
            Recipe::new(name, &change.old),
            Recipe::new(name, &change.wanted),
        );
        // Whether it speaks TLS is settled when an address is bound.
        let rebuild =
            change.fields.has("spec.max_namespaces") || old.psk.is_some() != new.psk.is_some();
        if rebuild {
            change.unused(name)?;
        }
        let changed = self.spdk.call(move |spdk| async move {
            // One that an earlier change has lost.
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

    async fn remove(
        &self,
        _: &CallContext,
        name: &Name,
        object: &NvmeSubsystem,
    ) -> Result<(), Error> {
        let recipe = Recipe::new(name, object);
        let deleted = self
            .spdk
            .call(move |spdk| async move { unmake(spdk, &recipe).await });
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

/// The NQN of a subsystem.
pub(super) fn nqn_of(object: &NvmeSubsystem) -> String {
    object
        .spec
        .as_ref()
        .map(|spec| spec.nqn.clone())
        .unwrap_or_default()
}

/// Whether it admits one host only, by its NQN.
pub(super) fn has_host(object: &NvmeSubsystem) -> bool {
    object
        .spec
        .as_ref()
        .is_some_and(|spec| !spec.hostnqn.is_empty())
}

/// Whether its TCP controllers speak TLS.
pub(super) fn has_psk(object: &NvmeSubsystem) -> bool {
    object
        .spec
        .as_ref()
        .is_some_and(|spec| !spec.psk.is_empty())
}

/// All that it takes to make one in SPDK.
#[derive(Clone)]
struct Recipe {
    options: subsystem::Options,
    /// The only host that may connect; empty for any.
    hostnqn: String,
    /// The key that it connects with, where it is to use TLS, and what SPDK's keyring calls it.
    psk: Option<(String, Vec<u8>)>,
}

impl Recipe {
    /// Of a subsystem that has passed the checks.
    fn new(name: &Name, object: &NvmeSubsystem) -> Self {
        let spec = spec_of(object);
        let psk = spec.psk.clone();
        Self {
            options: options(&spec),
            psk: has_psk(object).then(|| (name.key().as_str().to_owned(), psk)),
            hostnqn: spec.hostnqn,
        }
    }

    /// The key's name.
    fn key(&self) -> Option<&str> {
        self.psk.as_ref().map(|(name, _)| name.as_str())
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

/// The serial number of a subsystem that is given none: the same at each start, and another for each
/// NQN, since hosts and udev know a controller by it.
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

async fn unmake(spdk: Spdk, recipe: &Recipe) -> Result<(), spdk::Error> {
    match subsystem::destroy(spdk, &recipe.options.nqn).await {
        // An earlier delete that was given up has gone on by itself.
        Err(error) if error.errno.0 == errno::ENODEV => {}
        destroyed => destroyed?,
    }
    forget_key(spdk, recipe)
}

/// Puts another subsystem in the place of one that has no parts; if that fails, the old one is there
/// again.
async fn rebuild(spdk: Spdk, old: &Recipe, new: &Recipe) -> Result<(), spdk::Error> {
    unmake(spdk, old).await?;
    match make(spdk, new).await {
        Err(error) => Err(error.after_undo(make(spdk, old).await)),
        made => made,
    }
}

/// Changes who may connect and what hosts read of the subsystem, while they are connected.
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
    if (&old.hostnqn, &old.psk) == (&new.hostnqn, &new.psk) {
        return Ok(());
    }
    // SPDK holds one key of a name, and one key of a host.
    if old.psk.is_some() {
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
            Err(error.after_undo(shut.and_then(|()| forget_key(spdk, new))))
        }
        closed => closed,
    }
}

/// Lets the host in that may connect. Any host is let in when the other one is kept out.
async fn open(spdk: Spdk, recipe: &Recipe) -> Result<(), spdk::Error> {
    if recipe.hostnqn.is_empty() {
        return Ok(());
    }
    if let Some((name, key)) = &recipe.psk {
        keyring::add(spdk, name, key)?;
    }
    let allowed = host::allow(spdk, &recipe.options.nqn, &recipe.hostnqn, recipe.key()).await;
    if allowed.is_err() {
        forget_key(spdk, recipe)?;
    }
    allowed
}

/// Keeps out whom `old` lets in and `new` does not.
async fn close(spdk: Spdk, old: &Recipe, new: &Recipe) -> Result<(), spdk::Error> {
    let (before, after) = (&old.options, &new.options);
    if before.allow_any_host != after.allow_any_host {
        host::allow_any(spdk, &after.nqn, after.allow_any_host).await?;
    }
    if old.hostnqn.is_empty() {
        return Ok(());
    }
    match host::disallow(spdk, &before.nqn, &old.hostnqn).await {
        Err(error) if error.errno.0 != errno::ENOENT => {
            let any = host::allow_any(spdk, &before.nqn, before.allow_any_host);
            Err(error.after_undo(any.await))
        }
        _ => forget_key(spdk, old),
    }
}

fn forget_key(spdk: Spdk, recipe: &Recipe) -> Result<(), spdk::Error> {
    match recipe.key().map(|name| keyring::remove(spdk, name)) {
        Some(Err(error)) if error.errno.0 != errno::ENOKEY => Err(error),
        _ => Ok(()),
    }
}

/// TLS is between hosts that are known by name.
fn check_psk(spec: &NvmeSubsystemSpec, violations: &mut Violations) {
    if spec.psk.is_empty() {
        return;
    }
    if let Err(reason) = psk::check(&spec.psk) {
        violations.add("spec.psk", reason);
    }
    if spec.hostnqn.is_empty() {
        violations.add(
            "spec.hostnqn",
            "is required where psk is set: a key is one host's",
        );
    }
}

/// An NQN that a host or a subsystem of ours can have.
fn check_nqn(field: &str, text: &str, violations: &mut Violations) {
    if let Err(reason) = nqn::check(text) {
        violations.add(field, reason);
    } else if text == nqn::DISCOVERY {
        violations.add(
            field,
            format!("{text:?} is the discovery service's own name"),
        );
    }
}

/// A text of Identify Controller: printable ASCII that fits.
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
