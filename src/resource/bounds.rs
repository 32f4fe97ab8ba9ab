//! Bounds of field values beyond their types: the single list from which requests are validated and
//! `openapi.json` is generated.
//!
//! A bound applies to a set value. In an optional field the value that means "not set" (0, an empty text) is
//! valid too.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind as FieldKind, Value};
use spdk::bdev::delay::MAX_US;
use spdk::bdev::malloc::METADATA_SIZES;
use spdk::nvmf::subsystem;
use spdk::vhost::{blk, scsi};

use super::forms::{
    A_UUID, IP, MODEL, NAMESPACE, NQN, PATH, PEER_IP, PORT, SERIAL, SERVICE_NQN, TARGET, VOLUME,
};
pub use super::forms::{CONTROL, Form, ID, IPV4, IPV6};
use crate::backend::MAX_BLOCK_SIZE;

/// Permitted values of a field.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// Integer in this inclusive range.
    Within(i64, i64),
    /// One of these integers.
    Among(&'static [i64]),
    /// Only 0, because the server does not support other values; says why.
    Unserved(&'static str),
    /// One of these values of its enum.
    Values(&'static [&'static str]),
    /// Text of this format.
    Text(&'static Form),
}

/// Powers of two.
const BLOCK_SIZES: [i64; 8] = [512, 1024, 2048, 4096, 8192, 16_384, 32_768, MAX_BLOCK_SIZE];

/// Number of blocks of the smallest size in 2^63 - 1 bytes.
const BLOCKS: i64 = i64::MAX / BLOCK_SIZES[0];

/// NVMe base specification: controller IDs from FFF0h on are reserved.
const MAX_CONTROLLER_ID: i64 = 0xffef;

/// NVMe base specification, Controller Configuration: queue entry sizes are 4-bit exponents.
const MAX_ENTRY_SIZE: i64 = 15;

/// NVMe base specification, Number of Queues: a 16-bit number.
const MAX_QUEUES: i64 = 65_535;

/// Above the rate of any device, and small enough for SPDK's arithmetic on it not to overflow.
const MAX_RATE: i64 = 1_000_000_000;

const MAX_NAMESPACES: i64 = subsystem::MAX_NAMESPACES as i64;
const MAX_PORT: i64 = u16::MAX as i64;
const MAX_INT: i64 = i32::MAX as i64;

const METADATA: [i64; METADATA_SIZES.len()] = {
    let mut sizes = [0; METADATA_SIZES.len()];
    let mut at = 0;
    while at < sizes.len() {
        sizes[at] = METADATA_SIZES[at] as i64;
        at += 1;
    }
    sizes
};

const FAMILIES: Bound = Bound::Values(&["NVME_ADDRESS_FAMILY_IPV4", "NVME_ADDRESS_FAMILY_IPV6"]);

const NO_GUARANTEES: Bound = Bound::Unserved("SPDK limits rates and guarantees none; leave it 0");
const NO_LIMITS: Bound = Bound::Unserved(
    "SPDK limits volumes, not controllers: make a QosVolume of each volume instead",
);
const ONE_DEVICE: Bound = Bound::Unserved("only 0 is there");
const BOTH_WAYS: Bound =
    Bound::Unserved("SPDK limits the I/Os of reads and writes together only, rw_iops_kiops");

/// Returns the bound of a field of a kind, by the field's path from the resource.
pub fn of(kind: &str, path: &str) -> Option<Bound> {
    use Bound::{Among, Text, Values, Within};
    let bound = match (kind, path) {
        ("NullVolume" | "MallocVolume" | "AioVolume", "block_size") => Among(&BLOCK_SIZES),
        ("NullVolume" | "MallocVolume", "blocks_count") => Within(1, BLOCKS),
        ("AioVolume", "blocks_count") => Within(0, BLOCKS),
        ("MallocVolume", "metadata_size") => Among(&METADATA),
        ("AioVolume", "filename") => Text(&PATH),
        ("NvmeSubsystem", "spec.nqn" | "spec.hostnqn")
        | ("NvmeHost" | "NvmeCredential", "hostnqn") => Text(&NQN),
        ("NvmeSubsystem", "spec.serial_number") => Text(&SERIAL),
        ("NvmeSubsystem", "spec.model_number") => Text(&MODEL),
        ("NvmeSubsystem", "spec.max_namespaces") => Within(1, MAX_NAMESPACES),
        ("NvmeController", "spec.trtype") => {
            Values(&["NVME_TRANSPORT_TYPE_TCP", "NVME_TRANSPORT_TYPE_PCIE"])
        }
        ("NvmeController", "spec.nvme_controller_id") => Within(0, MAX_CONTROLLER_ID),
        ("NvmeController", "spec.max_nsq" | "spec.max_ncq") => Within(1, MAX_PORT),
        ("NvmeController", "spec.sqes" | "spec.cqes") => Within(1, MAX_ENTRY_SIZE),
        ("NvmeController", "spec.max_namespaces") => Within(1, MAX_INT),
        ("NvmeController", "spec.fabrics_id.trsvcid") => Text(&PORT),
        ("NvmeController", "spec.fabrics_id.traddr") => Text(&IP),
        ("NvmeController", "spec.fabrics_id.adrfam") => FAMILIES,
        ("NvmeNamespace", "spec.host_nsid") => Within(1, MAX_NAMESPACES),
        ("NvmeNamespaceMask", "namespace") => Text(&NAMESPACE),
        ("NvmePath", "trtype") => Values(&[
            "NVME_TRANSPORT_TYPE_TCP",
            "NVME_TRANSPORT_TYPE_RDMA",
            "NVME_TRANSPORT_TYPE_PCIE",
        ]),
        ("NvmePath", "fabrics.trsvcid" | "fabrics.source_trsvcid") => Within(1, MAX_PORT),
        ("NvmePath", "fabrics.subnqn" | "fabrics.hostnqn") => Text(&NQN),
        ("NvmePath", "fabrics.adrfam") => FAMILIES,
        ("NvmePath", "fabrics.source_traddr") => Text(&IP),
        ("NvmeRemoteController", "io_queues_count") => Within(1, MAX_QUEUES),
        ("NvmeRemoteController", "queue_size") => Within(2, MAX_QUEUES),
        ("VirtioBlk", "max_io_qps") => Within(1, blk::MAX_QUEUES as i64),
        ("VirtioScsiTarget", "max_luns") => Within(1, scsi::MAX_TARGETS as i64),
        ("VirtioScsiLun", "target_name_ref") => Text(&TARGET),
        ("EncryptedVolume", "cipher") => {
            Values(&["ENCRYPTION_TYPE_AES_XTS_128", "ENCRYPTION_TYPE_AES_XTS_256"])
        }
        ("DelayVolume", path) if path.ends_with("_latency_us") => Within(1, MAX_US as i64),
        ("DiscoveryReferral", "trtype") => {
            Values(&["NVME_TRANSPORT_TYPE_TCP", "NVME_TRANSPORT_TYPE_RDMA"])
        }
        ("DiscoveryReferral", "traddr") => Text(&PEER_IP),
        ("DiscoveryReferral", "trsvcid") => Within(1, MAX_PORT),
        ("DiscoveryReferral", "subnqn") => Text(&SERVICE_NQN),
        (_, "uuid" | "spec.uuid" | "spec.nguid") => Text(&A_UUID),
        (_, "volume_name_ref" | "spec.volume_name_ref") => Text(&VOLUME),
        _ => return of_parts(kind, path),
    };
    Some(bound)
}

/// Returns the bound of a field in a part shared by several kinds: rates and PCI functions.
fn of_parts(kind: &str, path: &str) -> Option<Bound> {
    use Bound::Within;
    let (part, field) = path.rsplit_once('.')?;
    match (kind, part, field) {
        ("VirtioScsiController", "pcie_id", _) => Some(Within(0, MAX_INT)),
        (_, "pcie_id" | "spec.pcie_id", "physical_function") => Some(Within(0, MAX_INT)),
        (_, "pcie_id" | "spec.pcie_id", _) => Some(ONE_DEVICE),
        (_, "limits.min" | "min_limit" | "spec.min_limit", _) => Some(NO_GUARANTEES),
        ("VirtioBlk", "max_limit", "rd_iops_kiops" | "wr_iops_kiops")
        | ("QosVolume", "limits.max", "rd_iops_kiops" | "wr_iops_kiops") => Some(BOTH_WAYS),
        ("VirtioBlk", "max_limit", _) | ("QosVolume", "limits.max", _) => Some(Within(1, MAX_RATE)),
        (_, "max_limit" | "spec.max_limit", _) => Some(NO_LIMITS),
        _ => None,
    }
}

impl Bound {
    /// Checks a set value of a field; the error says what is wrong.
    pub fn check(&self, field: &FieldDescriptor, value: &Value) -> Result<(), String> {
        match (self, value) {
            (Bound::Text(form), Value::String(text)) => form.check(text),
            (Bound::Values(good), Value::EnumNumber(number)) => {
                let FieldKind::Enum(kind) = field.kind() else {
                    return Ok(());
                };
                let name = kind.get_value(*number).map(|value| value.name().to_owned());
                // An enum number without a name is reported by another rule.
                match name {
                    Some(name) if !good.contains(&name.as_str()) => {
                        Err(format!("{name} is not served: {}", good.join(" or ")))
                    }
                    _ => Ok(()),
                }
            }
            _ => match number(value) {
                Some(number) => self.check_number(number, !field.supports_presence()),
                None => Ok(()),
            },
        }
    }

    fn check_number(&self, number: i64, or_zero: bool) -> Result<(), String> {
        match *self {
            Bound::Within(least, most) if !(least..=most).contains(&number) => {
                let zero = if or_zero && least > 0 { ", or 0" } else { "" };
                Err(format!("{number}: {least} to {most}{zero}"))
            }
            Bound::Among(good) if !good.contains(&number) => {
                Err(format!("{number}: one of {good:?}"))
            }
            Bound::Unserved(reason) if number != 0 => Err(format!("{number}: {reason}")),
            _ => Ok(()),
        }
    }
}

/// Returns an integer, also from a wrapper such as Int32Value.
fn number(value: &Value) -> Option<i64> {
    match value {
        Value::I32(number) => Some(i64::from(*number)),
        Value::I64(number) => Some(*number),
        Value::Message(wrapper) => wrapped(wrapper),
        _ => None,
    }
}

fn wrapped(wrapper: &DynamicMessage) -> Option<i64> {
    wrapper.get_field_by_name("value")?.as_i32().map(i64::from)
}

#[cfg(test)]
mod tests {
    use super::super::rules::Rules;
    use super::*;
    use crate::api;

    /// Returns the bounds of all fields of all kinds that clients create, with their paths.
    fn bounds() -> Vec<(String, Bound)> {
        fn walk(kind: &str, prefix: &str, rules: &Rules, found: &mut Vec<(String, Bound)>) {
            for field in rules.fields().iter().filter(|field| !field.server_side) {
                let path = format!("{prefix}{}", field.descriptor.name());
                if let Some(bound) = field.bound {
                    found.push((format!("{kind}.{path}"), bound));
                }
                if let Some(nested) = &field.nested {
                    walk(kind, &format!("{path}."), nested, found);
                }
            }
        }
        let mut found = Vec::new();
        for request in api::pool().all_messages() {
            let Some(kind) = request.name().strip_prefix("Create") else {
                continue;
            };
            let kind = kind.strip_suffix("Request").expect("a request");
            let name = format!("{}.{kind}", request.package_name());
            let message = api::pool().get_message_by_name(&name).expect("a kind");
            walk(kind, "", &Rules::of(&message), &mut found);
        }
        found
    }

    #[test]
    fn fields_with_bounds_are_found_by_their_paths() {
        let found = bounds();
        for path in [
            "NullVolume.block_size",
            "MallocVolume.metadata_size",
            "AioVolume.filename",
            "NvmeSubsystem.spec.nqn",
            "NvmeController.spec.fabrics_id.trsvcid",
            "NvmeController.spec.pcie_id.port_id",
            "NvmeController.spec.max_limit.rw_iops_kiops",
            "NvmeNamespace.spec.volume_name_ref",
            "NvmePath.fabrics.source_trsvcid",
            "NvmeRemoteController.queue_size",
            "VirtioBlk.max_limit.rd_iops_kiops",
            "VirtioScsiController.pcie_id.virtual_function",
            "VirtioScsiLun.target_name_ref",
            "QosVolume.limits.min.wr_bandwidth_mbs",
            "EncryptedVolume.cipher",
        ] {
            assert!(found.iter().any(|(known, _)| known == path), "{path}");
        }
    }

    #[test]
    fn numbers_are_inside_of_their_bounds_or_refused_with_them() {
        let check = |bound: Bound, number| bound.check_number(number, true).err();
        for good in [2, 3, 65_535] {
            assert_eq!(check(Bound::Within(2, 65_535), good), None);
        }
        for bad in [1, -1, 65_536, i64::MAX] {
            let what = check(Bound::Within(2, 65_535), bad);
            assert_eq!(what, Some(format!("{bad}: 2 to 65535, or 0")));
        }
        assert_eq!(check(Bound::Among(&[8, 16]), 16), None);
        assert_eq!(
            check(Bound::Among(&[8, 16]), 17),
            Some("17: one of [8, 16]".into())
        );
        assert_eq!(check(Bound::Unserved("why"), 0), None);
        assert_eq!(check(Bound::Unserved("why"), 1), Some("1: why".into()));
    }

    #[test]
    fn what_a_pattern_takes_its_check_takes() {
        let texts = [
            "a",
            "a-b",
            "a-",
            "A",
            "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
            "1B4E28BA2FA111D2883FB9A761BDE3FB",
            "abcdefabcdefabcdefabcdefabcdefab",
            "00000000-0000-0000-0000-000000000000",
            "nqn.2016-06.io.spdk:a",
            "nqn.2016-06.io.spdk:a b",
            "nqn.2016-13.io.spdk:a",
            "nqn.2014-08.org.nvmexpress.discovery",
            "nqn.2014-08.org.nvmexpress:uuid:1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
            "nqn.2014-08.org.nvmexpress:uuid:1b4e28ba",
            "1",
            "0",
            "65535",
            "65536",
            "127.0.0.1",
            "224.0.0.1",
            "::1",
            "1:2:3:4:5:6:7:8",
            "1::8",
            "ff02::1",
            "/a",
            "volumes/a",
            "lvs/lvol",
            "nullVolumes/a/b",
            "virtioBlks/a",
            "virtioScsiTargets/a",
            "nvmeRemoteControllers/r/nvmeRemoteNamespaces/rn1",
            "nvmeRemoteControllers/r/nvmeRemoteNamespaces/sn1",
        ];
        let mut forms: Vec<(String, &Form)> = vec![("ID".into(), &ID)];
        forms.extend(
            bounds()
                .into_iter()
                .filter_map(|(path, bound)| match bound {
                    Bound::Text(form) => Some((path, form)),
                    _ => None,
                }),
        );
        let mut taken = 0;
        for (path, form) in forms {
            let pattern = format!("^(?:{})$", form.pattern);
            let mut schema = serde_json::json!({ "pattern": pattern });
            if let Some(never) = form.never {
                schema["not"] = serde_json::json!({ "pattern": never });
            }
            let schema = jsonschema::validator_for(&schema).expect("a schema");
            for text in texts.iter().filter(|text| text.len() <= form.most) {
                let takes = schema.is_valid(&serde_json::json!(text));
                let checked = form.check(text);
                assert!(!takes || checked.is_ok(), "{path}: {checked:?}");
                assert_eq!(takes, checked.is_ok(), "{path}: {text}");
                taken += usize::from(takes);
            }
        }
        assert!(taken > 50, "{taken}");
    }
}
