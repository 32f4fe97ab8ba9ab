//! Listeners: the addresses at which hosts reach a subsystem.
//!
//! An address belongs to the target; subsystems are bound to it. SPDK counts the bindings and stops listening with
//! the last one. SPDK applies the TLS setting of the first binding to all later ones, so it is recorded and checked
//! here. An address and a wildcard that covers it are two sockets to Linux but the same one to parts of SPDK, so a
//! target may have only one of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use spdk_sys as sys;

use super::pause::paused;
use super::{Subsystem, Transport, check_status, find, lookup, target};
use crate::app_thread::Spdk;
use crate::completion::{Status, begin, call};
use crate::cstr::{read, string};
use crate::error::Error;
use crate::transport_id::{self, Kind};

/// An address at which hosts reach a subsystem.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// NVMe/TCP. An unspecified IP listens on every address of the machine.
    Tcp {
        /// A local address.
        ip: IpAddr,
        /// Port, from 1.
        port: u16,
    },
    /// A vfio-user controller: the socket `cntrl` in an existing directory, exclusive to one subsystem.
    VfioUser {
        /// The directory.
        dir: String,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { ip, port } => write!(f, "{}", std::net::SocketAddr::new(*ip, *port)),
            Self::VfioUser { dir } => write!(f, "{dir}/cntrl"),
        }
    }
}

/// SPDK's limit, NVMF_MAX_LISTENERS_PER_SUBSYSTEM (lib/nvmf/nvmf_internal.h).
const MAX_LISTENERS: usize = 16;

/// Linux's limit for the path of a UNIX socket, without the terminator.
const SOCKET_PATH_MAX: usize = 107;

impl Address {
    fn transport(&self) -> Transport {
        match self {
            Self::Tcp { .. } => Transport::Tcp,
            Self::VfioUser { .. } => Transport::VfioUser,
        }
    }

    /// Returns whether one of the addresses is among those that the other covers. The IPv6 wildcard covers no IPv4
    /// address: SPDK's sockets are limited to one family.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (Self::Tcp { ip: a, port: p }, Self::Tcp { ip: b, port: q }) = (self, other) else {
            return self == other;
        };
        let covers = a == b || a.is_unspecified() || b.is_unspecified();
        p == q && a.is_ipv4() == b.is_ipv4() && covers
    }

    fn to_id(&self) -> Result<sys::spdk_nvme_transport_id, Error> {
        match self {
            Self::Tcp { ip, port } => {
                if let IpAddr::V6(v6) = ip
                    && let Some(v4) = v6.to_ipv4_mapped()
                {
                    return Err(Error::new("listen", libc::EINVAL)
                        .with_detail(format!("{ip} is the IPv4 address {v4}: write it so")));
                }
                transport_id::ip(Kind::Tcp, *ip, *port)
            }
            Self::VfioUser { dir } => {
                let length = self.to_string().len();
                if length > SOCKET_PATH_MAX {
                    return Err(Error::new("listen", libc::EINVAL).with_detail(format!(
                        "socket path {self} has {length} bytes, and may have {SOCKET_PATH_MAX}"
                    )));
                }
                transport_id::path(Kind::VfioUser, dir)
            }
        }
    }

    fn from_id(id: &sys::spdk_nvme_transport_id) -> Option<Self> {
        match Kind::of(id)? {
            Kind::Tcp => transport_id::ip_and_port(id).map(|(ip, port)| Self::Tcp { ip, port }),
            Kind::VfioUser => Some(Self::VfioUser {
                dir: read(&id.traddr),
            }),
            Kind::Pcie | Kind::Rdma => None,
        }
    }
}

/// The subsystems that listen at an address of the target.
struct Bindings {
    nqns: Vec<String>,
    secure: bool,
}

impl Bindings {
    /// Returns the NQN of the first subsystem, for messages.
    fn first(&self) -> String {
        self.nqns.first().cloned().unwrap_or_default()
    }
}

thread_local! {
    static BOUND: RefCell<HashMap<Address, Bindings>> = RefCell::default();
}

fn bind(address: &Address, nqn: &str, secure: bool) {
    BOUND.with_borrow_mut(|bound| {
        let bindings = bound.entry(address.clone()).or_insert(Bindings {
            nqns: Vec::new(),
            secure,
        });
        bindings.nqns.push(nqn.to_owned());
    });
}

fn unbind(address: &Address, nqn: &str) {
    BOUND.with_borrow_mut(|bound| {
        if let Some(bindings) = bound.get_mut(address) {
            bindings.nqns.retain(|bound| bound != nqn);
            if bindings.nqns.is_empty() {
                bound.remove(address);
            }
        }
    });
}

/// Adds a listener to a subsystem. `secure` requires TLS, which needs a subsystem that admits hosts by name.
///
/// ENODEV for an unknown subsystem; EEXIST if it listens there already; EADDRINUSE if the address is taken by
/// another program, by a subsystem with a different TLS setting (vfio-user: by any), or overlaps another listener's;
/// EADDRNOTAVAIL if the address is not local; EINVAL if it is invalid.
pub async fn add(spdk: Spdk, nqn: &str, address: &Address, secure: bool) -> Result<(), Error> {
    const OPERATION: &str = "add listener";
    let id = address.to_id()?;
    let target = target(spdk, OPERATION)?;
    let (address, name) = (address.clone(), nqn.to_owned());
    paused(spdk, OPERATION, nqn, 0, move |subsystem| {
        let listening = check_free(subsystem, OPERATION, &address, secure).and_then(|()| {
            // SAFETY: runs on the app thread; the target lives until SPDK stops; SPDK copies the ID.
            let rc = unsafe { sys::opi_nvmf_listen(target.as_ptr(), &id, secure) };
            check_status(OPERATION, rc).map_err(|error| error.with_detail(refused(&address)))?;
            // Without an await since the check, so another task cannot race for the address.
            bind(&address, &name, secure);
            Ok(())
        });
        let bound = listening.and_then(|()| {
            begin::<Status>(OPERATION, |callback, argument| {
                // SAFETY: on the app thread, the subsystem paused; SPDK copies the id;
                // the callback takes the argument back, once.
                unsafe {
                    sys::opi_nvmf_add_listener(subsystem.as_ptr(), &id, secure, callback, argument);
                }
                0
            })
        });
        async move {
            let status = bound?.await?;
            let Err(error) = check_status(OPERATION, status) else {
                return Ok(());
            };
            unbind(&address, &name);
            // SAFETY: runs on the app thread; rolls back the listen above.
            unsafe { sys::spdk_nvmf_tgt_stop_listen(target.as_ptr(), &id) };
            Err(error.with_detail(format!("{address}")))
        }
    })
    .await
}

fn refused(address: &Address) -> String {
    match address {
        Address::Tcp { .. } => address.to_string(),
        Address::VfioUser { .. } => {
            format!("{address}: the directory must exist and be writable, and the name be free")
        }
    }
}

fn check_free(
    subsystem: Subsystem,
    operation: &'static str,
    address: &Address,
    secure: bool,
) -> Result<(), Error> {
    // SAFETY: runs on the app thread; the caller found the subsystem without an await since.
    let (own, any_host) = unsafe {
        (
            addresses(subsystem),
            sys::spdk_nvmf_subsystem_get_allow_any_host(subsystem.as_ptr()),
        )
    };
    if own.contains(address) {
        return Err(Error::new(operation, libc::EEXIST)
            .with_detail(format!("the subsystem listens at {address} already")));
    }
    if own.len() >= MAX_LISTENERS {
        return Err(Error::new(operation, libc::ENOSPC).with_detail(format!(
            "the subsystem listens at {MAX_LISTENERS} addresses, the most that it can"
        )));
    }
    if secure && any_host {
        return Err(Error::new(operation, libc::EINVAL)
            .with_detail("TLS needs a subsystem that lets hosts in by name, not any host"));
    }
    let overlapping = BOUND.with_borrow(|bound| {
        let mut others = bound.iter().filter(|(other, _)| *other != address);
        let (other, bindings) = others.find(|(other, _)| other.overlaps(address))?;
        Some((other.clone(), bindings.first()))
    });
    if let Some((other, nqn)) = overlapping {
        return Err(Error::new(operation, libc::EADDRINUSE).with_detail(format!(
            "{address} overlaps {other}, where subsystem {nqn:?} listens: use one of the two, or \
                 another port"
        )));
    }
    BOUND.with_borrow(|bound| match bound.get(address) {
        Some(bindings) if matches!(address, Address::VfioUser { .. }) => {
            let other = bindings.first();
            Err(Error::new(operation, libc::EADDRINUSE)
                .with_detail(format!("subsystem {other:?} has {address}")))
        }
        Some(bindings) if bindings.secure != secure => {
            let (how, want) = match bindings.secure {
                true => ("with", "without"),
                false => ("without", "with"),
            };
            let other = bindings.first();
            Err(Error::new(operation, libc::EADDRINUSE).with_detail(format!(
                "subsystem {other:?} listens at {address} {how} TLS, and this one would {want}: use \
                 another address or port"
            )))
        }
        _ => Ok(()),
    })
}

/// Removes a listener, and disconnects the hosts that connected through it. With its last subsystem the target stops
/// listening at the address.
///
/// ENODEV for an unknown subsystem, ENOENT if it does not listen there.
pub async fn remove(spdk: Spdk, nqn: &str, address: &Address) -> Result<(), Error> {
    const OPERATION: &str = "remove listener";
    let id = address.to_id()?;
    let target = target(spdk, OPERATION)?;
    let (address, name) = (address.clone(), nqn.to_owned());
    if lookup(spdk, OPERATION, nqn)?.is_none() {
        // The subsystem was deleted through SPDK's JSON-RPC, which also stopped its listeners.
        unbind(&address, nqn);
    }
    paused(spdk, OPERATION, nqn, 0, move |subsystem| {
        // SAFETY: runs on the app thread, with the subsystem paused.
        let rc = unsafe { sys::spdk_nvmf_subsystem_remove_listener(subsystem.as_ptr(), &id) };
        async move {
            // On failure too the subsystem does not listen there.
            unbind(&address, &name);
            check_status(OPERATION, rc).map_err(|error| {
                error.with_detail(format!("the subsystem does not listen at {address}"))
            })?;
            let stopped = call::<Status>(OPERATION, |callback, argument| {
                // SAFETY: on the app thread; the subsystem is paused and its lock
                // held, so it is still there; SPDK copies the id; the callback
                // takes the argument back, once, unless the call is refused.
                unsafe {
                    let transport = sys::spdk_nvmf_tgt_get_transport(
                        target.as_ptr(),
                        address.transport().name().as_ptr(),
                    );
                    if transport.is_null() {
                        return -libc::ENODEV;
                    }
                    sys::spdk_nvmf_transport_stop_listen_async(
                        transport,
                        &id,
                        subsystem.as_ptr(),
                        callback,
                        argument,
                    )
                }
            });
            check_status(OPERATION, stopped.await?)
                .map_err(|error| error.with_detail(address.to_string()))
        }
    })
    .await
}

/// Unbinds a stopped subsystem, without connected hosts, from all its addresses.
pub(super) fn stop_all(
    spdk: Spdk,
    operation: &'static str,
    subsystem: Subsystem,
) -> Result<(), Error> {
    let target = target(spdk, operation)?;
    // SAFETY: runs on the app thread; the caller found the subsystem without an await since.
    let nqn = unsafe { string(sys::spdk_nvmf_subsystem_get_nqn(subsystem.as_ptr())) };
    // SAFETY: as above.
    for address in unsafe { addresses(subsystem) } {
        let id = address.to_id()?;
        // SAFETY: runs on the app thread; releases the reference that `add` took.
        unsafe { sys::spdk_nvmf_tgt_stop_listen(target.as_ptr(), &id) };
        unbind(&address, &nqn);
    }
    Ok(())
}

/// Returns the addresses at which a subsystem listens.
pub fn list(spdk: Spdk, nqn: &str) -> Result<Vec<Address>, Error> {
    let subsystem = find(spdk, "list listeners", nqn)?;
    // SAFETY: runs on the app thread; the subsystem was found without an await since.
    Ok(unsafe { addresses(subsystem) })
}

/// # Safety
/// Runs on the app thread; the subsystem was found without an await since.
unsafe fn addresses(subsystem: Subsystem) -> Vec<Address> {
    let mut addresses = Vec::new();
    // SAFETY: by the caller's contract the subsystem is valid; its listeners change on this thread only. The ID of
    // a stopped listener is null.
    unsafe {
        let mut listener = sys::spdk_nvmf_subsystem_get_first_listener(subsystem.as_ptr());
        while !listener.is_null() {
            let id = sys::spdk_nvmf_subsystem_listener_get_trid(listener);
            addresses.extend(id.as_ref().and_then(Address::from_id));
            listener = sys::spdk_nvmf_subsystem_get_next_listener(subsystem.as_ptr(), listener);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_way_through_c() {
        for address in [
            Address::Tcp {
                ip: "127.0.0.1".parse().expect("an address"),
                port: 4420,
            },
            Address::Tcp {
                ip: "::1".parse().expect("an address"),
                port: 65535,
            },
            Address::VfioUser {
                dir: "/var/run/opi/sub0".to_owned(),
            },
        ] {
            let id = address.to_id().expect("a valid address");
            assert_eq!(Address::from_id(&id), Some(address));
        }
    }

    #[test]
    fn addresses_that_cannot_be_are_refused() {
        let port_0 = Address::Tcp {
            ip: "127.0.0.1".parse().expect("an address"),
            port: 0,
        };
        assert!(port_0.to_id().is_err());
        let mapped = Address::Tcp {
            ip: "::ffff:127.0.0.1".parse().expect("an address"),
            port: 4420,
        };
        assert!(mapped.to_id().is_err());
        let long = Address::VfioUser {
            dir: format!("/{}", "x".repeat(101)),
        };
        assert!(long.to_id().is_err());
    }

    #[test]
    fn an_address_overlaps_itself_and_what_a_wildcard_of_its_family_stands_for() {
        let address = |ip: &str, port| Address::Tcp {
            ip: ip.parse().expect("an address"),
            port,
        };
        for (a, b, overlap) in [
            ("0.0.0.0", "127.0.0.1", true),
            ("::", "::1", true),
            ("::1", "::1", true),
            ("::", "127.0.0.1", false),
            ("0.0.0.0", "::", false),
            ("127.0.0.1", "127.0.0.2", false),
        ] {
            let (a, b) = (address(a, 4420), address(b, 4420));
            assert_eq!(a.overlaps(&b), overlap, "{a} and {b}");
            assert_eq!(b.overlaps(&a), overlap, "{b} and {a}");
        }
        assert!(!address("0.0.0.0", 4420).overlaps(&address("127.0.0.1", 4421)));
    }
}
