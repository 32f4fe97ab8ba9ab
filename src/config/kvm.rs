//! The settings of KVM mode.

use super::ConfigError;
use crate::kvm::Kvm;

/// An address or buses without `--kvm` would have no effect, so they are refused; with `kvm = false` they may be kept.
pub(super) fn check(
    on: Option<bool>,
    address: Option<String>,
    buses: Option<String>,
    force_unplug: Option<bool>,
) -> Result<Option<Kvm>, ConfigError> {
    let value = |setting, reason: String| ConfigError::Value { setting, reason };
    if on.is_none() && (address.is_some() || buses.is_some() || force_unplug.is_some()) {
        return Err(value(
            "kvm",
            "must be given for qmp-addr, buses and kvm-force-unplug to have a use".to_owned(),
        ));
    }
    if on != Some(true) {
        return Ok(None);
    }
    let missing =
        |setting, example: &str| value(setting, format!("is needed with kvm, such as {example}"));
    let address = address.ok_or_else(|| missing("qmp-addr", "/run/vm/qmp.sock"))?;
    let buses = buses.ok_or_else(|| missing("buses", "pci.1,pci.2"))?;
    Ok(Some(Kvm {
        qmp_addr: address
            .parse()
            .map_err(|reason| value("qmp-addr", reason))?,
        buses: check_buses(&buses).map_err(|reason| value("buses", reason))?,
        force_unplug: force_unplug.unwrap_or(false),
    }))
}

/// Splits the names at commas, or at colons like the OPI bridge.
fn check_buses(text: &str) -> Result<Vec<String>, String> {
    let mut buses = Vec::new();
    for bus in text.split([',', ':']).map(str::to_owned) {
        let begins = bus.starts_with(|c: char| c.is_ascii_alphabetic());
        let known = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if !begins || !bus.chars().all(known) {
            return Err(format!(
                "{bus:?} in {text:?} is not a name of QEMU's: a letter, then letters, digits, hyphens, dots, underscores"
            ));
        }
        if buses.contains(&bus) {
            return Err(format!("{bus:?} is given twice in {text:?}"));
        }
        buses.push(bus);
    }
    Ok(buses)
}
