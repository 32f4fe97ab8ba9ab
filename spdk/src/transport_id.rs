//! SPDK's transport IDs, the addresses of NVMe controllers.

use std::ffi::CStr;
use std::net::IpAddr;

use spdk_sys as sys;

use crate::cstr::{fill, read};
use crate::error::Error;

/// The transport of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pcie,
    Rdma,
    Tcp,
    VfioUser,
}

impl Kind {
    pub(crate) fn name(self) -> &'static CStr {
        match self {
            Self::Pcie => c"PCIE",
            Self::Rdma => c"RDMA",
            Self::Tcp => c"TCP",
            Self::VfioUser => c"VFIOUSER",
        }
    }

    fn number(self) -> sys::spdk_nvme_transport_type {
        match self {
            Self::Pcie => sys::spdk_nvme_transport_type_SPDK_NVME_TRANSPORT_PCIE,
            Self::Rdma => sys::spdk_nvme_transport_type_SPDK_NVME_TRANSPORT_RDMA,
            Self::Tcp => sys::spdk_nvme_transport_type_SPDK_NVME_TRANSPORT_TCP,
            Self::VfioUser => sys::spdk_nvme_transport_type_SPDK_NVME_TRANSPORT_VFIOUSER,
        }
    }

    pub(crate) fn of(id: &sys::spdk_nvme_transport_id) -> Option<Self> {
        [Self::Pcie, Self::Rdma, Self::Tcp, Self::VfioUser]
            .into_iter()
            .find(|kind| kind.number() == id.trtype)
    }
}

/// Creates the ID of an IP address and port. EINVAL for port 0.
pub(crate) fn ip(kind: Kind, ip: IpAddr, port: u16) -> Result<sys::spdk_nvme_transport_id, Error> {
    if port == 0 {
        return Err(Error::new("address a controller", libc::EINVAL).with_detail("port 0"));
    }
    let mut id = path(kind, &ip.to_string())?;
    id.adrfam = match ip {
        IpAddr::V4(_) => sys::spdk_nvmf_adrfam_SPDK_NVMF_ADRFAM_IPV4,
        IpAddr::V6(_) => sys::spdk_nvmf_adrfam_SPDK_NVMF_ADRFAM_IPV6,
    };
    fill("port", &mut id.trsvcid, &port.to_string())?;
    Ok(id)
}

/// Creates the ID of an address that is a single string: a directory, a PCI address.
pub(crate) fn path(kind: Kind, path: &str) -> Result<sys::spdk_nvme_transport_id, Error> {
    // SAFETY: a C struct of integers and characters, for which all zero is valid.
    let mut id: sys::spdk_nvme_transport_id = unsafe { std::mem::zeroed() };
    fill(
        "transport",
        &mut id.trstring,
        &kind.name().to_string_lossy(),
    )?;
    fill("address", &mut id.traddr, path)?;
    id.trtype = kind.number();
    Ok(id)
}

/// Returns the address and port of an ID created by [`ip`].
pub(crate) fn ip_and_port(id: &sys::spdk_nvme_transport_id) -> Option<(IpAddr, u16)> {
    Some((
        read(&id.traddr).parse().ok()?,
        read(&id.trsvcid).parse().ok()?,
    ))
}
