//! Rules that the proto files state as options: REQUIRED, OUTPUT_ONLY and IDENTIFIER. Read once for each kind,
//! so that no kind repeats them in code.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind as FieldKind, MessageDescriptor, Value};

use super::bounds::{self, Bound};
use crate::error::Violations;

/// Numbers of google.api.FieldBehavior.
const REQUIRED: i32 = 2;
const OUTPUT_ONLY: i32 = 3;
const IDENTIFIER: i32 = 8;

/// Rules of one message and its nested messages.
#[derive(Debug)]
pub struct Rules {
    message: MessageDescriptor,
    fields: Vec<Field>,
}

/// Rules of one field.
#[derive(Debug)]
pub struct Field {
    /// Descriptor of the field.
    pub descriptor: FieldDescriptor,
    /// REQUIRED: a client must set the field.
    pub required: bool,
    /// Permitted values.
    pub bound: Option<Bound>,
    /// Set by the server alone: a value sent by a client is ignored.
    pub server_side: bool,
    /// Rules of a nested message; `None` for a scalar, a list, or a wrapper such as Int32Value, which counts as
    /// a scalar.
    pub nested: Option<Rules>,
}

impl Rules {
    /// Reads the rules of a message, which must not be recursive.
    pub fn of(message: &MessageDescriptor) -> Self {
        Self {
            message: message.clone(),
            fields: fields_of(message, message.name(), ""),
        }
    }

    /// Returns the fields of the message's first oneof, which exclude each other.
    pub fn exclusive(&self) -> Vec<FieldDescriptor> {
        let mut oneofs = self.message.oneofs().filter(|oneof| !oneof.is_synthetic());
        oneofs
            .next()
            .map_or(Vec::new(), |oneof| oneof.fields().collect())
    }

    /// Returns the fields in the order of the proto files.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    pub(super) fn field(&self, name: &str) -> Option<&Field> {
        self.fields
            .iter()
            .find(|field| field.descriptor.name() == name)
    }

    /// Returns the message's name without its package.
    pub(super) fn message_name(&self) -> &str {
        self.message.name()
    }

    /// Clears the fields that the server alone sets. Returns whether any was set.
    pub fn scrub(&self, message: &mut DynamicMessage) -> bool {
        let mut any = false;
        for field in &self.fields {
            if !message.has_field(&field.descriptor) {
                continue;
            }
            if field.server_side {
                message.clear_field(&field.descriptor);
                any = true;
            } else if let Some(nested) = &field.nested
                && let Some(inner) = message.get_field_mut(&field.descriptor).as_message_mut()
            {
                any |= nested.scrub(inner);
            }
        }
        any
    }

    /// Validates the rules of every kind: required fields are set, enum numbers have names, strings contain no
    /// control characters (they may reach C code, a log or a path).
    pub fn check(&self, message: &DynamicMessage, violations: &mut Violations) {
        self.check_under("", message, violations);
    }

    fn check_under(&self, prefix: &str, message: &DynamicMessage, violations: &mut Violations) {
        for field in self.fields.iter().filter(|field| !field.server_side) {
            let path = || format!("{prefix}{}", field.descriptor.name());
            if !message.has_field(&field.descriptor) {
                if field.required {
                    violations.add(path(), "is required");
                }
                continue;
            }
            let value = message.get_field(&field.descriptor);
            match (&*value, &field.nested) {
                (Value::Message(inner), Some(nested)) => {
                    nested.check_under(&format!("{}.", path()), inner, violations);
                }
                (Value::EnumNumber(number), _) => {
                    if let FieldKind::Enum(kind) = field.descriptor.kind()
                        && kind.get_value(*number).is_none()
                    {
                        let values: Vec<String> = kind
                            .values()
                            .map(|value| format!("{} ({})", value.name(), value.number()))
                            .collect();
                        let what = format!(
                            "{number} is not a value of {}: {}",
                            kind.name(),
                            values.join(", ")
                        );
                        violations.add(path(), what);
                    } else if field.required && *number == 0 {
                        violations.add(path(), "is required");
                    }
                }
                (Value::String(text), _) if text.chars().any(char::is_control) => {
                    violations.add(path(), format!("{text:?} has a control character in it"));
                    continue;
                }
                _ => {}
            }
            if let Some(bound) = &field.bound
                && let Err(what) = bound.check(&field.descriptor, &value)
            {
                violations.add(path(), what);
            }
        }
    }
}

/// Reads the fields of a message at a path of a kind's resources. The path is empty or ends with a dot.
fn fields_of(message: &MessageDescriptor, kind: &str, prefix: &str) -> Vec<Field> {
    let field = |descriptor| Field::of(descriptor, kind, prefix);
    message.fields().map(field).collect()
}

impl Field {
    fn of(descriptor: FieldDescriptor, kind: &str, prefix: &str) -> Self {
        let path = format!("{prefix}{}", descriptor.name());
        let behaviors = behaviors(&descriptor);
        let nested = match descriptor.kind() {
            FieldKind::Message(message)
                if !descriptor.is_list() && message.package_name() != "google.protobuf" =>
            {
                Some(Rules {
                    fields: fields_of(&message, kind, &format!("{path}.")),
                    message,
                })
            }
            _ => None,
        };
        Self {
            required: behaviors.contains(&REQUIRED),
            server_side: behaviors.contains(&OUTPUT_ONLY) || behaviors.contains(&IDENTIFIER),
            bound: bounds::of(kind, &path),
            nested,
            descriptor,
        }
    }
}

fn behaviors(field: &FieldDescriptor) -> Vec<i32> {
    let pool = field.parent_pool();
    let Some(extension) = pool.get_extension_by_name("google.api.field_behavior") else {
        return Vec::new();
    };
    let options = field.options();
    let value = options.get_extension(&extension);
    let list = value.as_list().unwrap_or_default();
    list.iter().filter_map(Value::as_enum_number).collect()
}

/// Reads the rules of a message type, for tests.
#[cfg(test)]
pub fn rules_of<M: prost_reflect::ReflectMessage + Default>() -> Rules {
    Rules::of(&M::default().descriptor())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::storage::*;
    use prost_reflect::ReflectMessage;

    fn broken<M: ReflectMessage + Default>(message: &M) -> Vec<String> {
        let mut violations = Violations::default();
        rules_of::<M>().check(&message.transcode_to_dynamic(), &mut violations);
        violations
            .iter()
            .map(|v| format!("{}: {}", v.field, v.description))
            .collect()
    }

    #[test]
    fn required_fields_are_found_in_messages_that_are_set_and_in_no_others() {
        assert_eq!(broken(&NvmeController::default()), ["spec: is required"]);
        let mut controller = NvmeController {
            spec: Some(NvmeControllerSpec {
                trtype: NvmeTransportType::Tcp as i32,
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(broken(&controller), [""; 0]);
        controller.spec.as_mut().unwrap().endpoint =
            Some(nvme_controller_spec::Endpoint::FabricsId(FabricsEndpoint {
                traddr: "127.0.0.1".into(),
                ..Default::default()
            }));
        assert_eq!(
            broken(&controller),
            [
                "spec.fabrics_id.trsvcid: is required",
                "spec.fabrics_id.adrfam: is required"
            ]
        );
    }

    #[test]
    fn an_enum_number_without_a_name_and_a_control_character_are_refused() {
        let path = NvmePath {
            trtype: 99,
            traddr: "1\0".into(),
            ..Default::default()
        };
        assert_eq!(
            broken(&path),
            [
                "trtype: 99 is not a value of NvmeTransportType: NVME_TRANSPORT_TYPE_UNSPECIFIED (0), \
                 NVME_TRANSPORT_TYPE_FC (1), NVME_TRANSPORT_TYPE_PCIE (2), NVME_TRANSPORT_TYPE_RDMA \
                 (3), NVME_TRANSPORT_TYPE_TCP (4), NVME_TRANSPORT_TYPE_CUSTOM (5)",
                "traddr: \"1\\0\" has a control character in it"
            ]
        );
    }

    #[test]
    fn a_wrapper_that_holds_zero_is_there() {
        let endpoint = PciEndpoint {
            port_id: Some(0),
            physical_function: Some(0),
            virtual_function: None,
        };
        assert_eq!(broken(&endpoint), ["virtual_function: is required"]);
    }

    #[test]
    fn what_the_server_fills_in_is_ignored_on_input() {
        let subsystem = NvmeSubsystem {
            name: "nvmeSubsystems/x".into(),
            spec: Some(NvmeSubsystemSpec {
                nqn: "nqn".into(),
                ..Default::default()
            }),
            status: Some(NvmeSubsystemStatus {
                firmware_revision: "1".into(),
                ..Default::default()
            }),
        };
        let mut dynamic = subsystem.transcode_to_dynamic();
        let rules = rules_of::<NvmeSubsystem>();
        assert!(rules.scrub(&mut dynamic));
        let scrubbed: NvmeSubsystem = dynamic.transcode_to().unwrap();
        assert_eq!((scrubbed.name.as_str(), scrubbed.status), ("", None));
        assert_eq!(scrubbed.spec, subsystem.spec);
        assert!(!rules.scrub(&mut dynamic));
    }
}
