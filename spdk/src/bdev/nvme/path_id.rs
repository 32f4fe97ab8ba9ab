//! The identity of one path of a controller.

use std::ffi::CString;
use std::fmt;
use std::net::IpAddr;

use spdk_sys as sys;

use super::Address;
use crate::cstr::cstr;
use crate::error::Error;

/// Identifies a path among the paths of its controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathId {
    /// The address that the path connects to.
    pub address: Address,
    /// The subsystem's NQN; empty for PCIe.
    pub subsystem: String,
    /// The configured source address; None if none was configured.
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
    /// Converts to the shim's form: transport ID and source address.
    pub(super) fn to_c(&self) -> Result<(sys::spdk_nvme_transport_id, CString), Error> {
        let source = self.source.map(|source| source.to_string());
        Ok((
            self.address.to_id(&self.subsystem)?,
            cstr("source address", &source.unwrap_or_default())?,
        ))
    }
}
