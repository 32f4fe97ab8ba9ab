//! Field masks (AIP-134, AIP-161): the fields that an update selects, and those that it changes.

use prost_reflect::{DynamicMessage, FieldDescriptor, ReflectMessage};

use super::rules::Rules;
use crate::error::{Error, Violations};

/// Field of the request that holds the mask.
const FIELD: &str = "update_mask";

/// Fields that an update selects.
#[derive(Debug)]
pub enum Mask {
    /// No mask: the leaf fields that are set.
    WhatIsSet,
    /// `*`: all fields; unset ones are cleared.
    All,
    /// These paths; a message among them is replaced as a whole.
    Paths(Vec<Path>),
}

/// Fields on the path from the object to one of its fields.
pub type Path = Vec<FieldDescriptor>;

impl Mask {
    /// Parses a mask. Fields that the server alone sets may be named, and are ignored (AIP-203).
    ///
    /// # Errors
    /// INVALID_ARGUMENT for each path that does not exist, and for `*` beside other paths.
    pub fn parse(paths: Option<&[String]>, rules: &Rules) -> Result<Self, Error> {
        let paths = paths.unwrap_or_default();
        if paths.is_empty() {
            return Ok(Mask::WhatIsSet);
        }
        if paths.iter().any(|path| path == "*") {
            return match paths {
                [_] => Ok(Mask::All),
                _ => Err(Error::invalid(
                    FIELD,
                    "\"*\" means all fields and stands alone",
                )),
            };
        }
        let mut found = Vec::new();
        let mut violations = Violations::default();
        for path in paths {
            match resolve(path, rules) {
                Ok(Some(path)) => found.push(path),
                Ok(None) => {}
                Err(description) => violations.add(FIELD, description),
            }
            if violations.is_full() {
                break;
            }
        }
        violations.into_result()?;
        Ok(Mask::Paths(found))
    }

    /// Returns the fields that an update with this mask and the object `source` names.
    pub fn named(&self, rules: &Rules, source: &DynamicMessage) -> Vec<String> {
        let fields = rules.fields().iter().filter(|field| !field.server_side);
        let is_named = |field: &FieldDescriptor| match self {
            Mask::WhatIsSet => source.has_field(field),
            Mask::All => true,
            Mask::Paths(paths) => paths.iter().any(|path| path.first() == Some(field)),
        };
        let named = fields.filter(|field| is_named(&field.descriptor));
        named
            .map(|field| field.descriptor.name().to_owned())
            .collect()
    }

    /// Copies the selected fields of `source` to `target`.
    pub fn apply(&self, rules: &Rules, target: &mut DynamicMessage, source: &DynamicMessage) {
        match self {
            Mask::WhatIsSet => merge(rules, target, source),
            Mask::All => {
                for field in rules.fields().iter().filter(|field| !field.server_side) {
                    replace(target, source, std::slice::from_ref(&field.descriptor));
                }
            }
            Mask::Paths(paths) => {
                for path in paths {
                    replace(target, source, path);
                }
            }
        }
    }
}

/// Resolves a path; `Ok(None)` for a field that the server alone sets.
fn resolve(path: &str, rules: &Rules) -> Result<Option<Path>, String> {
    let mut found = Vec::new();
    let mut inside = Some(rules);
    let mut server_side = false;
    for part in path.split('.') {
        let Some(rules) = inside else {
            return Err(format!(
                "{path:?} does not exist: {part:?} is asked of a field that has no parts"
            ));
        };
        let Some(field) = rules.field(part) else {
            let fields: Vec<&str> = rules.fields().iter().map(|f| f.descriptor.name()).collect();
            return Err(format!(
                "{path:?} does not exist: {} has the fields {}",
                rules.message_name(),
                fields.join(", ")
            ));
        };
        server_side |= field.server_side;
        found.push(field.descriptor.clone());
        inside = field.nested.as_ref();
    }
    Ok((!server_side).then_some(found))
}

fn merge(rules: &Rules, target: &mut DynamicMessage, source: &DynamicMessage) {
    for field in rules.fields().iter().filter(|field| !field.server_side) {
        let descriptor = &field.descriptor;
        if !source.has_field(descriptor) {
            continue;
        }
        let value = source.get_field(descriptor);
        match (&field.nested, value.as_message()) {
            (Some(nested), Some(source)) if target.has_field(descriptor) => {
                if let Some(target) = target.get_field_mut(descriptor).as_message_mut() {
                    merge(nested, target, source);
                }
            }
            _ => target.set_field(descriptor, value.into_owned()),
        }
    }
}

/// Sets the field at `path` in `target` to its value in `source`, or clears it if `source` has none.
fn replace(target: &mut DynamicMessage, source: &DynamicMessage, path: &[FieldDescriptor]) {
    let Some((field, rest)) = path.split_first() else {
        return;
    };
    let in_source = source.has_field(field).then(|| source.get_field(field));
    if rest.is_empty() {
        match in_source {
            Some(value) => target.set_field(field, value.into_owned()),
            None => target.clear_field(field),
        }
        return;
    }
    let inner_source = in_source.as_ref().and_then(|value| value.as_message());
    // Only setting a value creates missing parent messages; clearing under a missing parent is a no-op.
    if !target.has_field(field) && inner_source.is_none_or(|inner| !reaches(inner, rest)) {
        return;
    }
    let Some(inner_target) = target.get_field_mut(field).as_message_mut() else {
        return;
    };
    let nothing = DynamicMessage::new(inner_target.descriptor());
    replace(inner_target, inner_source.unwrap_or(&nothing), rest);
}

fn reaches(message: &DynamicMessage, path: &[FieldDescriptor]) -> bool {
    match path.split_first() {
        None => true,
        Some((field, rest)) => {
            message.has_field(field)
                && (rest.is_empty()
                    || (message.get_field(field).as_message())
                        .is_some_and(|inner| reaches(inner, rest)))
        }
    }
}

/// Fields that an update changes, as paths of leaf fields; a message that is added or removed is listed itself
/// too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes(Vec<String>);

impl Changes {
    /// Compares two objects, ignoring fields that the server alone sets.
    pub fn between(rules: &Rules, old: &DynamicMessage, new: &DynamicMessage) -> Self {
        let mut paths = Vec::new();
        differ(rules, "", Some(old), Some(new), &mut paths);
        Self(paths)
    }

    /// Returns the intersection.
    #[must_use]
    pub fn and(mut self, other: &Changes) -> Self {
        self.0.retain(|path| other.0.contains(path));
        self
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `path`, or a field of the message at `path`, changes.
    pub fn has(&self, path: &str) -> bool {
        self.0.iter().any(|changed| lies_in(changed, path))
    }

    /// Whether nothing changes outside `paths` and the fields below them.
    pub fn only(&self, paths: &[&str]) -> bool {
        (self.0.iter()).all(|changed| paths.iter().any(|path| lies_in(changed, path)))
    }

    /// Returns the paths in the order of the fields.
    pub fn paths(&self) -> &[String] {
        &self.0
    }

    /// Copies the changed fields of `source` to `target`.
    pub fn apply(&self, rules: &Rules, target: &mut DynamicMessage, source: &DynamicMessage) {
        for path in self
            .0
            .iter()
            .filter_map(|path| resolve(path, rules).ok().flatten())
        {
            replace(target, source, &path);
        }
    }
}

fn lies_in(changed: &str, path: &str) -> bool {
    changed
        .strip_prefix(path)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn differ(
    rules: &Rules,
    prefix: &str,
    old: Option<&DynamicMessage>,
    new: Option<&DynamicMessage>,
    paths: &mut Vec<String>,
) {
    for field in rules.fields().iter().filter(|field| !field.server_side) {
        let descriptor = &field.descriptor;
        let value_in = |message: Option<&'_ DynamicMessage>| {
            message
                .filter(|message| message.has_field(descriptor))
                .map(|message| message.get_field(descriptor).into_owned())
        };
        let (before, after) = (value_in(old), value_in(new));
        if before == after {
            continue;
        }
        let path = format!("{prefix}{}", descriptor.name());
        let Some(nested) = &field.nested else {
            paths.push(path);
            continue;
        };
        let below = format!("{path}.");
        if before.is_none() || after.is_none() {
            paths.push(path);
        }
        let inner = |value: &'_ Option<prost_reflect::Value>| {
            value.as_ref().and_then(|value| value.as_message().cloned())
        };
        differ(
            nested,
            &below,
            inner(&before).as_ref(),
            inner(&after).as_ref(),
            paths,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::rules_of;
    use super::*;
    use crate::api::storage::*;

    fn subsystem(nqn: &str, serial: &str, hosts: &str) -> NvmeSubsystem {
        NvmeSubsystem {
            spec: Some(NvmeSubsystemSpec {
                nqn: nqn.into(),
                serial_number: serial.into(),
                hostnqn: hosts.into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn updated<M: ReflectMessage + Default>(old: &M, new: &M, mask: &[&str]) -> Result<M, Error> {
        let rules = rules_of::<M>();
        let paths: Vec<String> = mask.iter().map(|path| (*path).into()).collect();
        let mask = Mask::parse(Some(&paths), &rules)?;
        let mut target = old.transcode_to_dynamic();
        mask.apply(&rules, &mut target, &new.transcode_to_dynamic());
        Ok(target.transcode_to().unwrap())
    }

    #[test]
    fn without_a_mask_the_fields_that_are_set_count_down_to_the_leaves() {
        let old = subsystem("n", "sn", "h");
        assert_eq!(
            updated(&old, &subsystem("", "sn2", ""), &[]),
            Ok(subsystem("n", "sn2", "h"))
        );
        assert_eq!(updated(&old, &NvmeSubsystem::default(), &[]), Ok(old));
    }

    #[test]
    fn what_is_named_counts_as_such_whether_or_not_it_is_set() {
        let rules = rules_of::<NvmeSubsystem>();
        let named = |object: &NvmeSubsystem, mask: &[&str]| {
            let paths: Vec<String> = mask.iter().map(|path| (*path).into()).collect();
            let mask = Mask::parse(Some(&paths), &rules).expect("a mask");
            mask.named(&rules, &object.transcode_to_dynamic())
        };
        let nothing = NvmeSubsystem::default();
        assert!(named(&nothing, &[]).is_empty());
        for (object, mask) in [
            (&subsystem("n", "", ""), &[][..]),
            (&nothing, &["spec"]),
            (&nothing, &["spec.hostnqn"]),
            (&nothing, &["*"]),
        ] {
            assert_eq!(named(object, mask), ["spec"], "{mask:?}");
        }
    }

    #[test]
    fn a_star_replaces_everything() {
        let old = subsystem("n", "sn", "h");
        assert_eq!(
            updated(&old, &subsystem("m", "", ""), &["*"]),
            Ok(subsystem("m", "", ""))
        );
        assert!(updated(&old, &old, &["*", "spec"]).is_err());
    }

    #[test]
    fn a_path_replaces_its_field_and_clears_it_when_it_is_not_set() {
        let old = subsystem("n", "sn", "h");
        let new = subsystem("m", "", "i");
        assert_eq!(
            updated(&old, &new, &["spec.serial_number"]),
            Ok(subsystem("n", "", "h"))
        );
        assert_eq!(
            updated(&old, &new, &["spec.hostnqn"]),
            Ok(subsystem("n", "sn", "i"))
        );
        assert_eq!(updated(&old, &new, &["spec"]), Ok(new));
        let nothing = NvmeSubsystem::default();
        assert_eq!(
            updated(&old, &nothing, &["spec.hostnqn"]),
            Ok(subsystem("n", "sn", ""))
        );
        assert_eq!(updated(&nothing, &nothing, &["spec.hostnqn"]), Ok(nothing));
    }

    #[test]
    fn a_path_that_does_not_exist_is_named() {
        let old = subsystem("n", "sn", "h");
        for bad in [
            "spec.nope",
            "nope",
            "spec.nqn.x",
            "",
            "spec.",
            ".spec",
            "Spec",
        ] {
            let error = updated(&old, &old, &[bad]).unwrap_err().to_string();
            assert!(
                error.contains(&format!("{bad:?} does not exist")),
                "{error}"
            );
        }
    }

    #[test]
    fn what_the_server_fills_in_may_be_named_and_is_ignored() {
        let old = subsystem("n", "sn", "h");
        let mut new = old.clone();
        new.name = "other".into();
        let paths = ["name", "status.firmware_revision", "status"];
        assert_eq!(updated(&old, &new, &paths), Ok(old));
    }

    fn endpoint(pcie: bool) -> NvmeController {
        use nvme_controller_spec::Endpoint;
        NvmeController {
            spec: Some(NvmeControllerSpec {
                endpoint: Some(if pcie {
                    Endpoint::PcieId(PciEndpoint {
                        port_id: Some(0),
                        ..Default::default()
                    })
                } else {
                    Endpoint::FabricsId(FabricsEndpoint {
                        traddr: "::1".into(),
                        ..Default::default()
                    })
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn another_member_of_a_oneof_takes_the_place_of_the_first() {
        let (old, new) = (endpoint(true), endpoint(false));
        for mask in [
            &[][..],
            &["*"],
            &["spec.fabrics_id"],
            &["spec.fabrics_id.traddr"],
        ] {
            assert_eq!(updated(&old, &new, mask), Ok(new.clone()), "{mask:?}");
        }
        let rules = rules_of::<NvmeController>();
        let (old, new) = (old.transcode_to_dynamic(), new.transcode_to_dynamic());
        let changes = Changes::between(&rules, &old, &new);
        assert!(changes.has("spec.pcie_id") && changes.has("spec.fabrics_id.traddr"));
        let mut target = old.clone();
        changes.apply(&rules, &mut target, &new);
        assert_eq!(target, new);
    }

    #[test]
    fn changes_are_the_leaves_that_differ() {
        let rules = rules_of::<NvmeSubsystem>();
        let (old, new) = (subsystem("n", "sn", "h"), subsystem("n", "", "i"));
        let (old, new) = (old.transcode_to_dynamic(), new.transcode_to_dynamic());
        let changes = Changes::between(&rules, &old, &new);
        assert_eq!(changes.paths(), ["spec.serial_number", "spec.hostnqn"]);
        assert!(changes.has("spec") && changes.has("spec.hostnqn") && !changes.has("spec.host"));
        assert!(changes.only(&["spec"]) && !changes.only(&["spec.hostnqn"]));
        assert!(Changes::between(&rules, &old, &old).is_empty());
    }

    #[test]
    fn a_message_that_comes_is_itself_a_change() {
        let rules = rules_of::<NvmeRemoteController>();
        let old = NvmeRemoteController::default();
        let new = NvmeRemoteController {
            tcp: Some(TcpController::default()),
            ..Default::default()
        };
        let (old, new) = (old.transcode_to_dynamic(), new.transcode_to_dynamic());
        let changes = Changes::between(&rules, &old, &new);
        assert_eq!(changes.paths(), ["tcp"]);
        let mut target = old.clone();
        changes.apply(&rules, &mut target, &new);
        assert_eq!(target, new);
    }
}
