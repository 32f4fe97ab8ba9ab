//! DiscoveryReferral: another discovery service that hosts are told of.

use std::net::IpAddr;

use spdk::nvmf::{Referral, nqn, referral};
use spdk::{Handle, errno};

use crate::api::own::DiscoveryReferral;
use crate::api::storage::{NvmeTransportType, VolumeStats};
use crate::error::{Error, Violations};
use crate::resource::{CallContext, Change, Claims, Kind, Name, Stage};

/// The kind.
pub struct DiscoveryReferrals {
    spdk: Handle,
}

impl DiscoveryReferrals {
    /// Referrals in the discovery log of this SPDK.
    pub fn new(spdk: Handle) -> Self {
        Self { spdk }
    }
}

impl Kind for DiscoveryReferrals {
    type Object = DiscoveryReferral;

    /// Before hosts come.
    const STAGE: Stage = Stage::Export;

    /// All fields are bounded by `resource::bounds`.
    fn check(&self, _: &DiscoveryReferral, _: &mut Violations) {}

    fn claims(&self, _: &Name, object: &DiscoveryReferral) -> Claims {
        let Some(to) = to(object) else {
            return Claims::new();
        };
        let how = object.trtype().as_str_name();
        Claims::new().owns(format!(
            "referral to {how} {}:{} {}",
            to.ip, to.port, to.nqn
        ))
    }

    async fn ensure(
        &self,
        _: &CallContext,
        _: &Name,
        object: DiscoveryReferral,
    ) -> Result<DiscoveryReferral, Error> {
        if let Some(to) = to(&object) {
            let added = self.spdk.call(async move |spdk| referral::add(spdk, &to));
            added.await??;
        }
        Ok(object)
    }

    async fn update(
        &self,
        _: &CallContext,
        _: &Name,
        change: Change<DiscoveryReferral>,
    ) -> Result<DiscoveryReferral, Error> {
        let (old, new) = (to(&change.old), to(&change.wanted));
        if let (Some(old), Some(new)) = (old, new)
            && old != new
        {
            let replaced = self.spdk.call(async move |spdk| {
                referral::add(spdk, &new)?;
                gone(referral::remove(spdk, &old))
            });
            replaced.await??;
        }
        Ok(change.wanted)
    }

    async fn remove(
        &self,
        _: &CallContext,
        _: &Name,
        object: &DiscoveryReferral,
    ) -> Result<(), Error> {
        if let Some(to) = to(object) {
            let removed = self
                .spdk
                .call(async move |spdk| gone(referral::remove(spdk, &to)));
            removed.await??;
        }
        Ok(())
    }

    /// No I/O goes through it.
    async fn stats(&self, _: &Name, _: &DiscoveryReferral) -> Result<VolumeStats, Error> {
        Ok(VolumeStats::default())
    }
}

/// One that was removed by SPDK's own commands is gone too.
fn gone(removed: Result<(), spdk::Error>) -> Result<(), spdk::Error> {
    match removed {
        Err(error) if error.errno.0 == errno::ENOENT => Ok(()),
        removed => removed,
    }
}

/// The service that an object that has passed the checks names; `None` for another.
fn to(object: &DiscoveryReferral) -> Option<Referral> {
    let subnqn = object.subnqn.as_str();
    Some(Referral {
        is_rdma: object.trtype() == NvmeTransportType::Rdma,
        ip: object.traddr.parse::<IpAddr>().ok()?,
        port: u16::try_from(object.trsvcid).ok()?,
        nqn: if subnqn.is_empty() {
            nqn::DISCOVERY
        } else {
            subnqn
        }
        .to_owned(),
    })
}
