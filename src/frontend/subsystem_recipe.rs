//! A subsystem in SPDK as its object says: made, repaired, changed in place, replaced.

use spdk::nvmf::host::Keys;
use spdk::nvmf::{View, host, subsystem};
use spdk::{Spdk, errno};
use uuid::Uuid;

use super::nvme_subsystem::{SERIAL_LEN, spec_of};
use crate::api::storage::{NvmeSubsystem, NvmeSubsystemSpec};

/// Default model number.
const DEFAULT_MODEL: &str = "SPDK bdev Controller";

/// Parameters to create a subsystem in SPDK.
#[derive(Clone)]
pub(super) struct Recipe {
    pub(super) options: subsystem::Options,
    /// Host NQN of the spec; empty for none, and for one that an NvmeHost admits.
    hostnqn: String,
    /// Keys of that host.
    keys: Keys,
}

impl Recipe {
    /// Builds the recipe of a subsystem that has passed the checks and has NvmeHosts or not; `is_held` if its own host is
    /// theirs, which is then left as it is.
    pub(super) fn new(object: &NvmeSubsystem, has_hosts: bool, is_held: bool) -> Self {
        let spec = spec_of(object);
        let mut options = options(&spec);
        options.allow_any_host &= !has_hosts;
        let (hostnqn, psk) = match is_held {
            true => (String::new(), Vec::new()),
            false => (spec.hostnqn, spec.psk),
        };
        let keys = Keys {
            psk,
            ..Keys::default()
        };
        Self {
            options,
            hostnqn,
            keys,
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

/// Creates a subsystem as its object says, or nothing.
pub(super) async fn make(spdk: Spdk, recipe: &Recipe) -> Result<(), spdk::Error> {
    subsystem::create(spdk, &recipe.options).await?;
    match open(spdk, recipe).await {
        Err(error) => Err(error.after_undo(unmake(spdk, &recipe.options.nqn).await)),
        opened => opened,
    }
}

/// Sets what a failed update, or whoever uses SPDK's own commands, has left otherwise.
pub(super) async fn repair(
    spdk: Spdk,
    recipe: &Recipe,
    found: &subsystem::Info,
) -> Result<(), spdk::Error> {
    let (options, nqn) = (&recipe.options, &recipe.options.nqn);
    if (&found.serial, &found.model) != (&options.serial, &options.model) {
        subsystem::set_identity(spdk, nqn, &options.serial, &options.model).await?;
    }
    open(spdk, recipe).await?;
    match found.allow_any_host == options.allow_any_host {
        true => Ok(()),
        false => host::allow_any(spdk, nqn, options.allow_any_host).await,
    }
}

/// Deletes a subsystem. Idempotent.
pub(super) async fn unmake(spdk: Spdk, nqn: &str) -> Result<(), spdk::Error> {
    match subsystem::destroy(spdk, nqn).await {
        // Idempotent: an earlier delete that timed out may have completed in the background.
        Err(error) if error.errno.0 == errno::ENODEV => Ok(()),
        destroyed => destroyed,
    }
}

/// Replaces a subsystem that has no parts. If the new one cannot be created, the old one is recreated (rollback).
pub(super) async fn rebuild(spdk: Spdk, old: &Recipe, new: &Recipe) -> Result<(), spdk::Error> {
    unmake(spdk, &old.options.nqn).await?;
    match make(spdk, new).await {
        Err(error) => Err(error.after_undo(make(spdk, old).await)),
        made => made,
    }
}

/// Changes admission, serial and model number while hosts are connected.
pub(super) async fn adjust(spdk: Spdk, old: &Recipe, new: &Recipe) -> Result<(), spdk::Error> {
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

/// Admits the host of the spec, also one that a deleted NvmeHost has given back. Without one, `close` opens the
/// subsystem to any host.
async fn open(spdk: Spdk, recipe: &Recipe) -> Result<(), spdk::Error> {
    if recipe.hostnqn.is_empty() {
        return Ok(());
    }
    let nqn = &recipe.options.nqn;
    if host::is_allowed(spdk, nqn, &recipe.hostnqn)? {
        return host::set_keys(spdk, nqn, &recipe.hostnqn, &recipe.keys).await;
    }
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
        if before.allow_any_host != after.allow_any_host {
            host::allow_any(spdk, &before.nqn, before.allow_any_host).await?;
        }
        match host::is_allowed(spdk, &before.nqn, &old.hostnqn)? {
            true => Ok(()),
            false => open(spdk, old).await,
        }
    };
    Err(error.after_undo(undone.await))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_derived_from_the_nqn_and_fills_its_field() {
        let [one, other] = ["a", "b"].map(|id| serial_of(&format!("nqn.2022-09.io.spdk:{id}")));
        assert_ne!(one, other);
        assert_eq!(one, serial_of("nqn.2022-09.io.spdk:a"));
        assert_eq!(one.len(), SERIAL_LEN);
        assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }

    #[test]
    fn what_a_client_leaves_out_has_a_default_that_an_update_can_go_back_to() {
        let options = options(&NvmeSubsystemSpec::default());
        assert_eq!(options.serial, serial_of(""));
        assert_eq!(options.model, DEFAULT_MODEL);
        assert!(options.allow_any_host);
    }
}
