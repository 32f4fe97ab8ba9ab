//! Which of a controller's paths is meant.

use std::ffi::CString;
use std::fmt;
use std::net::IpAddr;

use spdk_sys as sys;

use super::Address;
use crate::cstr::cstr;
use crate::error::Error;

/// What tells a path of a controller from its others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathId {
    /// Where it leads.
    pub address: Address,
    /// The subsystem's NQN; empty for PCIe.
    pub subsystem: String,
    /// The address that it was told to come from; None if it was told none.
    pub source: Option<IpAddr>,
}

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        match self.source {
            Some(source) => write!(f, " from {source}"),
            None => Ok(()),
        }
    }
}

impl PathId {
    /// What the shim takes for it: where it leads, and the address that it comes from.
    pub(super) fn to_c(&self) -> Result<(sys::spdk_nvme_transport_id, CString), Error> {
        let source = self.source.map(|source| source.to_string());
        Ok((
            self.address.to_id(&self.subsystem)?,
            cstr("source address", &source.unwrap_or_default())?,
        ))
    }
}
