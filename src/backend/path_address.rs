//! Translates the address fields of an NvmePath (target and source) and validates them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use spdk::bdev::nvme::{Address, PathId};
use spdk::nvmf::nqn;

use super::pcie;
use crate::api::storage::{FabricsPath, NvmeAddressFamily, NvmePath, NvmeTransportType};
use crate::error::Violations;
use crate::resource::Key;

/// Checks rules beyond those of the proto file.
pub(super) fn check(path: &NvmePath, violations: &mut Violations) {
    if let Err((field, what)) = address(path) {
        violations.add(field, what);
    }
    let Some(fabrics) = &path.fabrics else { return };
    if path.trtype() == NvmeTransportType::Pcie {
        violations.add(
            "fabrics",
            "is for paths over a network, not for NVME_TRANSPORT_TYPE_PCIE",
        );
        return;
    }
    if let Err(reason) = nqn::check(&fabrics.subnqn) {
        violations.add("fabrics.subnqn", reason);
    } else if fabrics.subnqn == nqn::DISCOVERY {
        violations.add(
            "fabrics.subnqn",
            "is the discovery service's, which has no namespaces",
        );
    }
    if !fabrics.hostnqn.is_empty()
        && let Err(reason) = nqn::check(&fabrics.hostnqn)
    {
        violations.add("fabrics.hostnqn", reason);
    }
    if let Err((field, what)) = source(fabrics) {
        violations.add(field, what);
    }
}

/// Returns the target address of the path, or the field at fault and why.
pub(super) fn address(path: &NvmePath) -> Result<Address, (&'static str, String)> {
    let trtype = path.trtype();
    match (trtype, &path.fabrics) {
        (NvmeTransportType::Pcie, _) => {
            let address = pcie::address(&path.traddr).map_err(|what| ("traddr", what))?;
            Ok(Address::Pcie { address })
        }
        (NvmeTransportType::Tcp | NvmeTransportType::Rdma, None) => Err((
            "fabrics",
            format!("is required for {}", trtype.as_str_name()),
        )),
        (NvmeTransportType::Tcp | NvmeTransportType::Rdma, Some(fabrics)) => {
            let (ip, port) = ip_and_port(&path.traddr, fabrics)?;
            Ok(match trtype {
                NvmeTransportType::Rdma => Address::Rdma { ip, port },
                _ => Address::Tcp { ip, port },
            })
        }
        _ => Err((
            "trtype",
            format!(
                "{} is not served: NVME_TRANSPORT_TYPE_TCP, NVME_TRANSPORT_TYPE_RDMA or \
                 NVME_TRANSPORT_TYPE_PCIE",
                trtype.as_str_name()
            ),
        )),
    }
}

/// Returns what identifies the path among those of its controller; `None` if its address is invalid.
pub(crate) fn path_id(path: &NvmePath) -> Option<PathId> {
    let fabrics = path.fabrics.clone().unwrap_or_default();
    Some(PathId {
        address: address(path).ok()?,
        source: source(&fabrics).ok()?.map(|source| source.ip()),
        subsystem: fabrics.subnqn,
    })
}

/// Returns the key under which a path's fault is noted.
pub(crate) fn path_key(id: &str, path: &PathId) -> Key {
    let subsystem = &path.subsystem;
    Key::from(format!(
        "the path of nvmeRemoteControllers/{id} to {subsystem} at {path}"
    ))
}

fn ip_and_port(
    traddr: &str,
    fabrics: &FabricsPath,
) -> Result<(IpAddr, u16), (&'static str, String)> {
    let ip = ip("traddr", traddr)?;
    let family = family_of(ip);
    if fabrics.adrfam() != family {
        let (given, right) = (fabrics.adrfam().as_str_name(), family.as_str_name());
        let what = format!("{given} does not go with {traddr}: {right}");
        return Err(("fabrics.adrfam", what));
    }
    match u16::try_from(fabrics.trsvcid) {
        Ok(port @ 1..) => Ok((ip, port)),
        _ => Err((
            "fabrics.trsvcid",
            format!("{} is not a port: 1 to 65535", fabrics.trsvcid),
        )),
    }
}

/// Returns the source address, if one is requested, or the field at fault and why.
pub(super) fn source(fabrics: &FabricsPath) -> Result<Option<SocketAddr>, (&'static str, String)> {
    let port = u16::try_from(fabrics.source_trsvcid).map_err(|_| {
        let what = format!(
            "{} is not a port: 1 to 65535, or 0 for any",
            fabrics.source_trsvcid
        );
        ("fabrics.source_trsvcid", what)
    })?;
    if fabrics.source_traddr.is_empty() {
        let any: IpAddr = match fabrics.adrfam() {
            NvmeAddressFamily::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        };
        return Ok((port != 0).then_some(SocketAddr::new(any, port)));
    }
    let from = ip("fabrics.source_traddr", &fabrics.source_traddr)?;
    if family_of(from) != fabrics.adrfam() {
        let what = format!("{from} is not of the family of the address that it connects to");
        return Err(("fabrics.source_traddr", what));
    }
    Ok(Some(SocketAddr::new(from, port)))
}

fn ip(field: &'static str, text: &str) -> Result<IpAddr, (&'static str, String)> {
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_multicast() => Err((field, format!("{text} is a multicast address"))),
        Ok(ip) => Ok(ip),
        Err(_) => Err((field, format!("{text:?} is not an IP address"))),
    }
}

fn family_of(ip: IpAddr) -> NvmeAddressFamily {
    if ip.is_ipv4() {
        NvmeAddressFamily::Ipv4
    } else {
        NvmeAddressFamily::Ipv6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(change: impl FnOnce(&mut NvmePath, &mut FabricsPath)) -> NvmePath {
        let mut fabrics = FabricsPath {
            trsvcid: 4420,
            subnqn: "nqn.2016-06.io.spdk:cnode1".into(),
            adrfam: NvmeAddressFamily::Ipv4.into(),
            ..Default::default()
        };
        let mut path = NvmePath {
            trtype: NvmeTransportType::Tcp.into(),
            traddr: "127.0.0.1".into(),
            ..Default::default()
        };
        change(&mut path, &mut fabrics);
        NvmePath {
            fabrics: path.fabrics.or(Some(fabrics)),
            ..path
        }
    }

    fn broken(path: &NvmePath) -> String {
        let mut violations = Violations::default();
        check(path, &mut violations);
        violations.to_string()
    }

    #[test]
    fn a_path_over_a_network_needs_an_address_and_a_name() {
        assert_eq!(broken(&tcp(|_, _| {})), "");
        assert!(
            broken(&tcp(|path, _| path.traddr = "spdk".into())).starts_with("traddr: \"spdk\"")
        );
        assert!(broken(&tcp(|path, _| path.traddr = "::1".into())).starts_with("fabrics.adrfam"));
        assert!(broken(&tcp(|_, f| f.trsvcid = 65_536)).starts_with("fabrics.trsvcid: 65536"));
        assert!(broken(&tcp(|_, f| f.subnqn = "x".into())).starts_with("fabrics.subnqn"));
        assert!(broken(&tcp(|_, f| f.subnqn = nqn::DISCOVERY.into())).contains("discovery"));
        assert!(broken(&tcp(|_, f| f.hostnqn = "x".into())).starts_with("fabrics.hostnqn"));
        assert!(
            broken(&tcp(|_, f| f.source_traddr = "x".into())).starts_with("fabrics.source_traddr")
        );
        assert!(
            broken(&tcp(|_, f| f.source_trsvcid = -1)).starts_with("fabrics.source_trsvcid: -1")
        );
        let nowhere = NvmePath {
            trtype: NvmeTransportType::Rdma.into(),
            traddr: "127.0.0.1".into(),
            ..Default::default()
        };
        assert_eq!(
            broken(&nowhere),
            "fabrics: is required for NVME_TRANSPORT_TYPE_RDMA"
        );
    }

    #[test]
    fn a_pcie_path_is_an_address_and_nothing_else() {
        let pcie = |traddr: &str| NvmePath {
            trtype: NvmeTransportType::Pcie.into(),
            traddr: traddr.into(),
            ..Default::default()
        };
        assert_eq!(broken(&pcie("0000:01:00.0")), "");
        assert!(broken(&pcie("127.0.0.1")).starts_with("traddr"));
        let both = NvmePath {
            fabrics: Some(FabricsPath::default()),
            ..pcie("0000:01:00.0")
        };
        assert!(broken(&both).starts_with("fabrics: is for paths over a network"));
    }

    #[test]
    fn a_source_port_alone_is_on_any_address() {
        let fabrics = FabricsPath {
            source_trsvcid: 5000,
            adrfam: NvmeAddressFamily::Ipv4.into(),
            ..Default::default()
        };
        assert_eq!(source(&fabrics), Ok(Some("0.0.0.0:5000".parse().unwrap())));
        assert_eq!(source(&FabricsPath::default()), Ok(None));
    }
}
