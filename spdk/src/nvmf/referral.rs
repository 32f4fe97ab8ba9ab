//! Referrals: other discovery services that the discovery log tells of.

use std::net::IpAddr;

use spdk_sys as sys;

use super::{nqn, target};
use crate::cstr::fill;
use crate::error::{Error, check};
use crate::runtime::Spdk;
use crate::transport_id::{self, Kind};

/// Another discovery service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referral {
    /// Whether it is reached over RDMA, else over TCP.
    pub is_rdma: bool,
    /// Where it is.
    pub ip: IpAddr,
    /// From 1.
    pub port: u16,
    /// Its NQN.
    pub nqn: String,
}

impl Referral {
    fn to_id(&self) -> Result<sys::spdk_nvme_transport_id, Error> {
        let kind = if self.is_rdma { Kind::Rdma } else { Kind::Tcp };
        let mut id = transport_id::ip(kind, self.ip, self.port)?;
        fill("NQN", &mut id.subnqn, &self.nqn)?;
        Ok(id)
    }
}

/// Has all hosts told of a discovery service. One that they are told of already stays.
///
/// EINVAL for a port or an NQN that cannot be.
pub fn add(spdk: Spdk, referral: &Referral) -> Result<(), Error> {
    const OPERATION: &str = "add referral";
    nqn::check(&referral.nqn)
        .map_err(|reason| Error::new(OPERATION, libc::EINVAL).with_detail(reason))?;
    let (target, id) = (target(spdk, OPERATION)?, referral.to_id()?);
    // SAFETY: on the app thread; the target lives until SPDK stops; SPDK copies the id.
    check(OPERATION, unsafe {
        sys::opi_nvmf_add_referral(target.as_ptr(), &raw const id)
    })
}

/// Has hosts told of it no longer. ENOENT if they are not.
pub fn remove(spdk: Spdk, referral: &Referral) -> Result<(), Error> {
    const OPERATION: &str = "remove referral";
    let (target, id) = (target(spdk, OPERATION)?, referral.to_id()?);
    // SAFETY: as in `add`; the id outlives the call.
    check(OPERATION, unsafe {
        sys::opi_nvmf_remove_referral(target.as_ptr(), &raw const id)
    })
}
