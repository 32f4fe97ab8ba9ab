//! Schema constraints across several fields. Each kind enforces them in its own code.

use serde_json::{Value as Json, json};

use crate::resource::bounds::{IPV4, IPV6};

/// Address of a PCI device.
const PCI: &str = "[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[01][0-9A-Fa-f]\\.[0-7]";

/// Base64 of 32 bytes and of 64 bytes.
const BYTES_32: &str = "^[0-9A-Za-z+/]{43}=$";
const BYTES_64: &str = "^[0-9A-Za-z+/]{86}==$";

/// A JSON Schema keyword and its value, for the object at a path of a kind's resources.
pub fn of(kind: &str, path: &str) -> Option<(&'static str, Json)> {
    Some(match (kind, path) {
        ("NvmeController", "spec") => (
            "oneOf",
            json!([
                {
                    "properties": {
                        "trtype": {"enum": ["NVME_TRANSPORT_TYPE_TCP"]},
                        "fabricsId": {},
                    },
                    "required": ["fabricsId"],
                },
                {
                    "properties": {
                        "trtype": {"enum": ["NVME_TRANSPORT_TYPE_PCIE"]},
                        "pcieId": {},
                    },
                    "required": ["pcieId"],
                },
            ]),
        ),
        ("NvmeController", "spec.fabrics_id") => {
            let family = |name: &str, pattern: &str| {
                json!({
                    "properties": {
                        "adrfam": {"enum": [name]},
                        "traddr": {"pattern": whole(pattern)},
                    },
                })
            };
            (
                "oneOf",
                json!([
                    family("NVME_ADDRESS_FAMILY_IPV4", IPV4),
                    family("NVME_ADDRESS_FAMILY_IPV6", IPV6),
                ]),
            )
        }
        ("NvmePath", "") => {
            let network = |family: &str, pattern: &str| {
                json!({
                    "properties": {
                        "trtype": {
                            "enum": ["NVME_TRANSPORT_TYPE_TCP", "NVME_TRANSPORT_TYPE_RDMA"],
                        },
                        "traddr": {"pattern": whole(pattern)},
                        "fabrics": {
                            "properties": {
                                "adrfam": {"enum": [family]},
                                "sourceTraddr": {"pattern": whole(&format!("|{pattern}"))},
                            },
                        },
                    },
                    "required": ["fabrics"],
                })
            };
            (
                "oneOf",
                json!([
                    network("NVME_ADDRESS_FAMILY_IPV4", IPV4),
                    network("NVME_ADDRESS_FAMILY_IPV6", IPV6),
                    {
                        "properties": {
                            "trtype": {"enum": ["NVME_TRANSPORT_TYPE_PCIE"]},
                            "traddr": {"pattern": whole(PCI)},
                        },
                        "not": {"required": ["fabrics"]},
                    },
                ]),
            )
        }
        ("EncryptedVolume", "") => {
            let cipher = |name: &str, key: &str| {
                json!({
                    "properties": {"cipher": {"enum": [name]}, "key": {"pattern": key}},
                })
            };
            (
                "oneOf",
                json!([
                    cipher("ENCRYPTION_TYPE_AES_XTS_128", BYTES_32),
                    cipher("ENCRYPTION_TYPE_AES_XTS_256", BYTES_64),
                ]),
            )
        }
        ("NvmeSubsystem", "spec") => (
            "anyOf",
            json!([
                {"properties": {"psk": {"maxLength": 0}}},
                {"properties": {"hostnqn": {"minLength": 1}}, "required": ["hostnqn"]},
            ]),
        ),
        ("NvmeHost", "") => (
            "anyOf",
            json!([
                {"properties": {"dhchapCtrlrKey": {"maxLength": 0}}},
                {"properties": {"dhchapKey": {"minLength": 1}}, "required": ["dhchapKey"]},
            ]),
        ),
        ("QosVolume", "limits") => ("required", json!(["max"])),
        ("QosVolume", "limits.max") => {
            let limits = [
                "rwIopsKiops",
                "rdBandwidthMbs",
                "wrBandwidthMbs",
                "rwBandwidthMbs",
            ];
            let one = |name: &str| {
                json!({
                    "properties": {name: {"not": {"enum": ["0"]}}},
                    "required": [name],
                })
            };
            ("anyOf", limits.into_iter().map(one).collect())
        }
        _ => return None,
    })
}

fn whole(pattern: &str) -> String {
    format!("^(?:{pattern})$")
}
