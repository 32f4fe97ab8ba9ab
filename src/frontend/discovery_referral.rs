//! DiscoveryReferral: an entry of the discovery log page that refers hosts to another discovery service.

use std::net::IpAddr;

use spdk::nvmf::{Referral, nqn, referral};
use spdk::{Handle, errno};

use crate::api::own::DiscoveryReferral;
use crate::api::storage::{NvmeTransportType, VolumeStats};
use crate::error::{Error, Violations};
use crate::resource::{CallContext, Change, Claims, Kind, Name, Stage};

/// The kind of DiscoveryReferral.
pub struct DiscoveryReferrals {
    spdk: Handle,
}

impl DiscoveryReferrals {
    /// Creates the kind for referrals in this SPDK's discovery log.
    pub fn new(spdk: Handle) -> Self {
        Self { spdk }
    }
}

impl Kind for DiscoveryReferrals {
    type Object = DiscoveryReferral;

    /// Reconciled before hosts can connect.
    const STAGE: Stage = Stage::Export;

    /// `resource::bounds` validates all fields.
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
                let removed = gone(referral::remove(spdk, &old));
                removed.map_err(|error| error.after_undo(gone(referral::remove(spdk, &new))))
            });
            replaced.await??;
        }
        Ok(change.wanted)
    }

    async fn withdraw(
        &self,
        call: &CallContext,
        name: &Name,
        back: &Change<DiscoveryReferral>,
    ) -> Result<(), Error> {
        match to(&back.old) == to(&back.wanted) {
            true => Ok(()),
            false => self.remove(call, name, &back.old).await,
        }
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

    /// Returns zeros: a referral has no I/O.
    async fn stats(&self, _: &Name, _: &DiscoveryReferral) -> Result<VolumeStats, Error> {
        Ok(VolumeStats::default())
    }
}

/// Makes removal idempotent: a referral already removed through SPDK's own commands counts as removed.
fn gone(removed: Result<(), spdk::Error>) -> Result<(), spdk::Error> {
    match removed {
        Err(error) if error.errno.0 == errno::ENOENT => Ok(()),
        removed => removed,
    }
}

/// Returns the referral of an object that has passed the checks; `None` for any other.
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
