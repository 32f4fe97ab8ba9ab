//! Validates the spec of an NvmeController, independent of the state of SPDK.

use std::net::IpAddr;

use spdk::nvmf::Address;

use super::pcie;
use crate::api::storage::nvme_controller_spec::Endpoint;
use crate::api::storage::{
    FabricsEndpoint, NvmeAddressFamily, NvmeControllerSpec, NvmeTransportType,
};
use crate::error::Violations;
use crate::middleend::limits;

/// NVMe base specification: controller IDs FFF0h and above are reserved.
pub(super) const MAX_CONTROLLER_ID: i32 = 0xffef;

/// NVMe base specification, Controller Configuration: IOSQES and IOCQES are 4-bit exponents.
const MAX_ENTRY_SIZE: i32 = 15;

/// Rejects QoS limits: every controller of a subsystem reaches its namespaces, and SPDK cannot limit one controller.
pub(super) fn refuse_limits(spec: &NvmeControllerSpec, violations: &mut Violations) {
    const WHY: &str =
        "SPDK limits volumes, not controllers: put a QosVolume on the namespace's volume";
    for (field, limit) in [
        ("spec.min_limit", &spec.min_limit),
        ("spec.max_limit", &spec.max_limit),
    ] {
        if let Some(limit) = limit {
            limits::refuse(limit, field, WHY, violations);
        }
    }
}

pub(super) fn check_numbers(spec: &NvmeControllerSpec, violations: &mut Violations) {
    let mut within = |field: &str, value: i32, max: i32| {
        if !(0..=max).contains(&value) {
            violations.add(format!("spec.{field}"), format!("{value}: 0 to {max}"));
        }
    };
    within("max_nsq", spec.max_nsq, u16::MAX.into());
    within("max_ncq", spec.max_ncq, u16::MAX.into());
    within("sqes", spec.sqes, MAX_ENTRY_SIZE);
    within("cqes", spec.cqes, MAX_ENTRY_SIZE);
    within("max_namespaces", spec.max_namespaces, i32::MAX);
    within(
        "nvme_controller_id",
        spec.nvme_controller_id.unwrap_or_default(),
        MAX_CONTROLLER_ID,
    );
}

pub(super) fn check_endpoint(spec: &NvmeControllerSpec, violations: &mut Violations) {
    match (spec.trtype(), &spec.endpoint) {
        (NvmeTransportType::Unspecified, _) => {}
        (NvmeTransportType::Tcp, Some(Endpoint::FabricsId(endpoint))) => {
            if let Err((field, what)) = tcp_address(endpoint) {
                violations.add(format!("spec.fabrics_id.{field}"), what);
            }
        }
        (NvmeTransportType::Pcie, Some(Endpoint::PcieId(endpoint))) => {
            pcie::check_emulated("spec.pcie_id", endpoint, violations);
        }
        (NvmeTransportType::Tcp, _) => {
            violations.add("spec.fabrics_id", "is required for NVME_TRANSPORT_TYPE_TCP");
        }
        (NvmeTransportType::Pcie, _) => {
            violations.add("spec.pcie_id", "is required for NVME_TRANSPORT_TYPE_PCIE");
        }
        (other, _) => violations.add(
            "spec.trtype",
            format!(
                "{} is not served: NVME_TRANSPORT_TYPE_TCP or NVME_TRANSPORT_TYPE_PCIE",
                other.as_str_name()
            ),
        ),
    }
}

/// Returns the listen address, or the field at fault and why.
pub(super) fn tcp_address(endpoint: &FabricsEndpoint) -> Result<Address, (&'static str, String)> {
    let FabricsEndpoint {
        traddr, trsvcid, ..
    } = endpoint;
    let ip: IpAddr = traddr
        .parse()
        .map_err(|_| ("traddr", format!("{traddr:?} is not an IP address")))?;
    let family = if ip.is_ipv4() {
        NvmeAddressFamily::Ipv4
    } else {
        NvmeAddressFamily::Ipv6
    };
    if endpoint.adrfam() != family {
        let (given, right) = (endpoint.adrfam().as_str_name(), family.as_str_name());
        return Err((
            "adrfam",
            format!("{given} does not go with {traddr}: {right}"),
        ));
    }
    if let IpAddr::V6(v6) = ip
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err((
            "traddr",
            format!("{traddr} is the IPv4 address {v4}: write it so"),
        ));
    }
    if ip.is_multicast() {
        return Err(("traddr", format!("{traddr} is a multicast address")));
    }
    let digits = trsvcid.bytes().all(|byte| byte.is_ascii_digit());
    match trsvcid.parse() {
        Ok(port @ 1..) if digits => Ok(Address::Tcp { ip, port }),
        _ => Err(("trsvcid", format!("{trsvcid:?} is not a port: 1 to 65535"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::storage::PciEndpoint;

    fn broken(spec: &NvmeControllerSpec) -> String {
        let mut violations = Violations::default();
        check_numbers(spec, &mut violations);
        check_endpoint(spec, &mut violations);
        violations.to_string()
    }

    fn tcp(traddr: &str, trsvcid: &str, adrfam: NvmeAddressFamily) -> NvmeControllerSpec {
        NvmeControllerSpec {
            trtype: NvmeTransportType::Tcp.into(),
            endpoint: Some(Endpoint::FabricsId(FabricsEndpoint {
                traddr: traddr.into(),
                trsvcid: trsvcid.into(),
                adrfam: adrfam.into(),
            })),
            ..Default::default()
        }
    }

    fn pcie(port_id: i32, physical_function: i32, virtual_function: i32) -> NvmeControllerSpec {
        NvmeControllerSpec {
            trtype: NvmeTransportType::Pcie.into(),
            endpoint: Some(Endpoint::PcieId(PciEndpoint {
                port_id: Some(port_id),
                physical_function: Some(physical_function),
                virtual_function: Some(virtual_function),
            })),
            ..Default::default()
        }
    }

    #[test]
    fn what_the_reference_client_sends_is_good() {
        let spec = NvmeControllerSpec {
            max_nsq: 5,
            max_ncq: 6,
            sqes: 7,
            cqes: 8,
            nvme_controller_id: Some(1),
            ..tcp("127.0.0.1", "4421", NvmeAddressFamily::Ipv4)
        };
        assert_eq!(broken(&spec), "");
        assert_eq!(broken(&tcp("::1", "65535", NvmeAddressFamily::Ipv6)), "");
        assert_eq!(broken(&pcie(0, 1, 0)), "");
    }

    #[test]
    fn an_address_is_an_ip_of_its_family_and_a_port() {
        use NvmeAddressFamily::{Ib, Ipv4, Ipv6};
        for (traddr, trsvcid, adrfam, field) in [
            ("localhost", "4420", Ipv4, "traddr"),
            ("127.0.0.256", "4420", Ipv4, "traddr"),
            ("224.0.0.1", "4420", Ipv4, "traddr"),
            ("127.0.0.1", "4420", Ipv6, "adrfam"),
            ("::1", "4420", Ipv4, "adrfam"),
            ("127.0.0.1", "4420", Ib, "adrfam"),
            ("127.0.0.1", "0", Ipv4, "trsvcid"),
            ("127.0.0.1", "65536", Ipv4, "trsvcid"),
            ("127.0.0.1", "+80", Ipv4, "trsvcid"),
            ("127.0.0.1", "nvme", Ipv4, "trsvcid"),
        ] {
            let what = broken(&tcp(traddr, trsvcid, adrfam));
            assert!(
                what.starts_with(&format!("spec.fabrics_id.{field}: ")),
                "{what}"
            );
        }
    }

    #[test]
    fn a_pcie_controller_has_port_0_and_virtual_function_0() {
        assert!(broken(&pcie(1, 0, 0)).starts_with("spec.pcie_id.port_id: 1"));
        assert!(broken(&pcie(0, 0, 2)).starts_with("spec.pcie_id.virtual_function: 2"));
        assert!(broken(&pcie(0, -1, 0)).starts_with("spec.pcie_id.physical_function: -1"));
    }

    #[test]
    fn the_endpoint_goes_with_the_transport() {
        let mut spec = pcie(0, 0, 0);
        spec.trtype = NvmeTransportType::Tcp.into();
        assert!(broken(&spec).starts_with("spec.fabrics_id: is required"));
        spec.trtype = NvmeTransportType::Fc.into();
        assert!(broken(&spec).starts_with("spec.trtype: NVME_TRANSPORT_TYPE_FC is not served"));
    }

    #[test]
    fn numbers_stay_within_the_specification() {
        let spec = NvmeControllerSpec {
            max_nsq: -1,
            sqes: 16,
            nvme_controller_id: Some(0xfff0),
            ..pcie(0, 0, 0)
        };
        let what = broken(&spec);
        for part in [
            "spec.max_nsq: -1",
            "spec.sqes: 16",
            "spec.nvme_controller_id: 65520",
        ] {
            assert!(what.contains(part), "{what}");
        }
    }
}
