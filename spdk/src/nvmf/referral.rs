//! Referrals: other discovery services, listed in the discovery log page.

use std::net::IpAddr;

use spdk_sys as sys;

use super::{nqn, target};
use crate::app_thread::Spdk;
use crate::cstr::fill;
use crate::error::{Error, check};
use crate::transport_id::{self, Kind};

/// Another discovery service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referral {
    /// Reached over RDMA; otherwise over TCP.
    pub is_rdma: bool,
    /// IP address.
    pub ip: IpAddr,
    /// Port, from 1.
    pub port: u16,
    /// NQN of the service.
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

/// Adds a referral, visible to all hosts. Idempotent.
///
/// EINVAL for an invalid port or NQN. App thread.
pub fn add(spdk: Spdk, referral: &Referral) -> Result<(), Error> {
    const OPERATION: &str = "add referral";
    nqn::check(&referral.nqn)
        .map_err(|reason| Error::new(OPERATION, libc::EINVAL).with_detail(reason))?;
    let (target, id) = (target(spdk, OPERATION)?, referral.to_id()?);
    // SAFETY: runs on the app thread; the target lives until SPDK stops; SPDK copies the ID.
    check(OPERATION, unsafe {
        sys::opi_nvmf_add_referral(target.as_ptr(), &raw const id)
    })
}

/// Removes a referral. ENOENT if there is no such referral. App thread.
pub fn remove(spdk: Spdk, referral: &Referral) -> Result<(), Error> {
    const OPERATION: &str = "remove referral";
    let (target, id) = (target(spdk, OPERATION)?, referral.to_id()?);
    // SAFETY: runs on the app thread; the target lives until SPDK stops; the ID outlives the call.
    check(OPERATION, unsafe {
        sys::opi_nvmf_remove_referral(target.as_ptr(), &raw const id)
    })
}
