//! NvmeSubsystem: what a host connects to, with the namespaces and controllers that are its parts.

use spdk::nvmf::{host, nqn, subsystem};
use spdk::{Handle, Spdk};

use super::{errno, subsystem_stats};
use crate::api::storage::{NvmeSubsystem, NvmeSubsystemSpec, NvmeSubsystemStatus, VolumeStats};
use crate::error::{Error, Violations};
use crate::resource::{CallContext, Change, Kind, Name, Uses};

/// NVMe base specification, Identify Controller: bytes of the two texts.
const SERIAL_LEN: usize = 20;
const MODEL_LEN: usize = 40;

/// What hosts see where the client says nothing.
const DEFAULT_SERIAL: &str = "00000000000000000000";
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

impl Kind for NvmeSubsystems {
    type Object = NvmeSubsystem;

    fn check(&self, object: &NvmeSubsystem, violations: &mut Violations) {
        let Some(spec) = &object.spec else { return };
        check_nqn("spec.nqn", &spec.nqn, violations);
        if !spec.hostnqn.is_empty() {
            check_nqn("spec.hostnqn", &spec.hostnqn, violations);
        }
        check_text("spec.serial_number", &spec.serial_number, SERIAL_LEN, violations);
        check_text("spec.model_number", &spec.model_number, MODEL_LEN, violations);
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

    async fn create(
        &self,
        _: &CallContext,
        _: &Name,
        mut wanted: NvmeSubsystem,
    ) -> Result<NvmeSubsystem, Error> {
        let spec = spec_of(&wanted);
        refuse_psk(&spec)?;
        let made = self.spdk.call(move |spdk| async move { make(spdk, &spec).await });
        made.await??;
        wanted.status = Some(NvmeSubsystemStatus {
            firmware_revision: spdk::version().to_owned(),
            ..Default::default()
        });
        Ok(wanted)
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
        let (old, new) = (spec_of(&change.old), spec_of(&change.wanted));
        refuse_psk(&new)?;
        let rebuild = change.fields.has("spec.max_namespaces");
        if rebuild {
            change.unused(name)?;
        }
        let changed = self.spdk.call(move |spdk| async move {
            if rebuild {
                self::rebuild(spdk, &old, &new).await
            } else {
                adjust(spdk, &old, &new).await
            }
        });
        changed.await??;
        Ok(change.wanted)
    }

    async fn delete(&self, _: &CallContext, _: &Name, object: &NvmeSubsystem) -> Result<(), Error> {
        let nqn = nqn_of(object);
        let deleted = self.spdk.call(move |spdk| async move { subsystem::destroy(spdk, &nqn).await });
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
    object.spec.as_ref().map(|spec| spec.nqn.clone()).unwrap_or_default()
}

fn refuse_psk(spec: &NvmeSubsystemSpec) -> Result<(), Error> {
    if spec.psk.is_empty() {
        return Ok(());
    }
    Err(Error::Unimplemented(
        "spec.psk: TLS to subsystems is not implemented by this server yet; leave it empty".into(),
    ))
}

fn options(spec: &NvmeSubsystemSpec) -> subsystem::Options {
    subsystem::Options {
        nqn: spec.nqn.clone(),
        serial: or(&spec.serial_number, DEFAULT_SERIAL),
        model: or(&spec.model_number, DEFAULT_MODEL),
        max_namespaces: u32::try_from(spec.max_namespaces).unwrap_or_default(),
        allow_any_host: spec.hostnqn.is_empty(),
    }
}

fn or(text: &str, default: &str) -> String {
    if text.is_empty() { default } else { text }.to_owned()
}

async fn make(spdk: Spdk, spec: &NvmeSubsystemSpec) -> Result<(), spdk::Error> {
    subsystem::create(spdk, &options(spec)).await?;
    if spec.hostnqn.is_empty() {
        return Ok(());
    }
    let allowed = host::allow(spdk, &spec.nqn, &spec.hostnqn, None).await;
    if allowed.is_err() {
        subsystem::destroy(spdk, &spec.nqn).await?;
    }
    allowed
}

/// Puts another subsystem in the place of one that has no parts; if that fails, the old one is there
/// again.
async fn rebuild(
    spdk: Spdk,
    old: &NvmeSubsystemSpec,
    new: &NvmeSubsystemSpec,
) -> Result<(), spdk::Error> {
    subsystem::destroy(spdk, &old.nqn).await?;
    let made = make(spdk, new).await;
    if made.is_err() {
        make(spdk, old).await?;
    }
    made
}

/// Changes who may connect and what hosts read of the subsystem, while they are connected.
async fn adjust(
    spdk: Spdk,
    old: &NvmeSubsystemSpec,
    new: &NvmeSubsystemSpec,
) -> Result<(), spdk::Error> {
    let (before, after) = (options(old), options(new));
    let identity = (&after.serial, &after.model);
    if identity != (&before.serial, &before.model) {
        subsystem::set_identity(spdk, &new.nqn, identity.0, identity.1).await?;
    }
    let admitted = admit(spdk, &new.nqn, &old.hostnqn, &new.hostnqn).await;
    if admitted.is_err() {
        subsystem::set_identity(spdk, &old.nqn, &before.serial, &before.model).await?;
    }
    admitted
}

/// Lets `new` in before `old` is kept out; an empty one is any host.
async fn admit(spdk: Spdk, nqn: &str, old: &str, new: &str) -> Result<(), spdk::Error> {
    if old == new {
        return Ok(());
    }
    if !new.is_empty() {
        host::allow(spdk, nqn, new, None).await?;
    }
    let closed = close(spdk, nqn, old, new).await;
    if closed.is_err() && !new.is_empty() {
        host::disallow(spdk, nqn, new).await?;
    }
    closed
}

async fn close(spdk: Spdk, nqn: &str, old: &str, new: &str) -> Result<(), spdk::Error> {
    if old.is_empty() || new.is_empty() {
        host::allow_any(spdk, nqn, new.is_empty()).await?;
    }
    if old.is_empty() {
        return Ok(());
    }
    match host::disallow(spdk, nqn, old).await {
        Err(error) if error.errno.0 == errno::ENOENT => Ok(()),
        result => result,
    }
}

/// An NQN that a host or a subsystem of ours can have.
fn check_nqn(field: &str, text: &str, violations: &mut Violations) {
    if let Err(reason) = nqn::check(text) {
        violations.add(field, reason);
    } else if text == nqn::DISCOVERY {
        violations.add(field, format!("{text:?} is the discovery service's own name"));
    }
}

/// A text of Identify Controller: printable ASCII that fits.
fn check_text(field: &str, text: &str, max: usize, violations: &mut Violations) {
    let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if text.len() > max || !printable {
        violations.add(
            field,
            format!("{text:?} has {} bytes: at most {max} printable ASCII characters", text.len()),
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
        assert_eq!(broken(|v| check_nqn("f", "nqn.2022-09.io.spdk:opi1", v)), "");
        assert!(broken(|v| check_nqn("f", "nqn.2022-09", v)).starts_with("f: NQN \"nqn.2022-09\""));
    }

    #[test]
    fn texts_are_printable_ascii_that_fits() {
        assert_eq!(broken(|v| check_text("f", "OPI SN", SERIAL_LEN, v)), "");
        assert_eq!(broken(|v| check_text("f", &"x".repeat(20), SERIAL_LEN, v)), "");
        assert!(broken(|v| check_text("f", &"x".repeat(21), SERIAL_LEN, v)).contains("has 21 bytes"));
        assert!(broken(|v| check_text("f", "ü", SERIAL_LEN, v)).contains("printable ASCII"));
    }

    #[test]
    fn what_a_client_leaves_out_has_a_default_that_an_update_can_go_back_to() {
        let options = options(&NvmeSubsystemSpec::default());
        assert_eq!(options.serial, DEFAULT_SERIAL);
        assert_eq!(options.model, DEFAULT_MODEL);
        assert!(options.allow_any_host);
    }
}
