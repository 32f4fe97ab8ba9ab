//! Validates the PCIe location at which a guest sees a device.

use crate::api::storage::PciEndpoint;
use crate::error::Violations;

/// Checks the location of a device that another process emulates: one port, no virtual functions.
pub fn check_emulated(field: &str, endpoint: &PciEndpoint, violations: &mut Violations) {
    for (part, value) in [
        ("port_id", endpoint.port_id),
        ("virtual_function", endpoint.virtual_function),
    ] {
        if let Some(value) = value.filter(|value| *value != 0) {
            violations.add(
                format!("{field}.{part}"),
                format!("{value}: only 0 is there"),
            );
        }
    }
    check_numbers(field, endpoint, violations);
}

/// Checks that the numbers are not negative.
pub fn check_numbers(field: &str, endpoint: &PciEndpoint, violations: &mut Violations) {
    for (part, value) in [
        ("port_id", endpoint.port_id),
        ("physical_function", endpoint.physical_function),
        ("virtual_function", endpoint.virtual_function),
    ] {
        if let Some(value) = value.filter(|value| *value < 0) {
            violations.add(format!("{field}.{part}"), format!("{value} is negative"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(check: fn(&str, &PciEndpoint, &mut Violations), numbers: [i32; 3]) -> String {
        let [port_id, physical_function, virtual_function] = numbers.map(Some);
        let mut violations = Violations::default();
        check(
            "pcie_id",
            &PciEndpoint {
                port_id,
                physical_function,
                virtual_function,
            },
            &mut violations,
        );
        violations.to_string()
    }

    #[test]
    fn an_emulated_device_has_one_port_and_no_virtual_functions() {
        assert_eq!(broken(check_emulated, [0, 5, 0]), "");
        assert!(broken(check_emulated, [1, 0, 0]).starts_with("pcie_id.port_id: 1: only 0"));
        assert!(broken(check_emulated, [0, 0, 2]).starts_with("pcie_id.virtual_function: 2"));
        assert!(broken(check_emulated, [0, -1, 0]).contains("-1 is negative"));
    }

    #[test]
    fn other_numbers_are_taken_as_given() {
        assert_eq!(broken(check_numbers, [3, 1, 2]), "");
        assert!(broken(check_numbers, [0, 0, -2]).contains("pcie_id.virtual_function: -2"));
    }
}
