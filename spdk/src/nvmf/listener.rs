//! Listeners: the addresses at which hosts reach a subsystem.
//!
//! An address belongs to the target; a subsystem listens at it by being bound to
//! it. SPDK counts the bindings and stops listening with the last. It takes the
//! first binding's word on TLS for all of them, so that is kept here too. An address
//! and one that covers it (a wildcard) are two sockets to Linux and one to parts of
//! SPDK: a target has one of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use spdk_sys as sys;

use super::pause::paused;
use super::{Subsystem, Transport, check_status, find, lookup, target};
use crate::completion::{Status, begin, call};
use crate::cstr::{read, string};
use crate::error::Error;
use crate::runtime::Spdk;
use crate::transport_id::{self, Kind};

/// Where hosts reach a subsystem.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// NVMe/TCP. An unspecified IP is every address of the machine.
    Tcp {
        /// A local address.
        ip: IpAddr,
        /// From 1.
        port: u16,
    },
    /// A vfio-user controller: the socket `cntrl` in an existing directory, which
    /// one subsystem has for itself.
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

/// Linux's limit to a UNIX socket's path, without the terminator.
const SOCKET_PATH_MAX: usize = 107;

impl Address {
    fn transport(&self) -> Transport {
        match self {
            Self::Tcp { .. } => Transport::Tcp,
            Self::VfioUser { .. } => Transport::VfioUser,
        }
    }

    /// Whether one of two addresses is among those that the other stands for. The
    /// IPv6 wildcard stands for no IPv4 address: SPDK's sockets are of one family.
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

/// An address at which the target listens, and the subsystems that do.
struct Bindings {
    nqns: Vec<String>,
    secure: bool,
}

impl Bindings {
    /// The NQN of the subsystem that came first, to be named.
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

/// Has hosts reach a subsystem at `address`; `secure` demands TLS of them, which
/// needs a subsystem that lets hosts in by name.
///
/// ENODEV for an unknown subsystem, EEXIST if it listens there already,
/// EADDRINUSE if another program has the address, another subsystem with other TLS
/// settings (vfio-user: at all), or one listens at an address that overlaps it,
/// EADDRNOTAVAIL for an address that is not local, EINVAL for one that cannot be.
pub async fn add(spdk: Spdk, nqn: &str, address: &Address, secure: bool) -> Result<(), Error> {
    const OPERATION: &str = "add listener";
    let id = address.to_id()?;
    let target = target(spdk, OPERATION)?;
    let (address, name) = (address.clone(), nqn.to_owned());
    paused(spdk, OPERATION, nqn, 0, move |subsystem| {
        let listening = check_free(subsystem, OPERATION, &address, secure).and_then(|()| {
            // SAFETY: on the app thread; the target lives until SPDK stops; SPDK
            // copies the id.
            let rc = unsafe { sys::opi_nvmf_listen(target.as_ptr(), &id, secure) };
            check_status(OPERATION, rc).map_err(|error| error.with_detail(refused(&address)))?;
            // Before another task's look at who is bound here.
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
            // SAFETY: on the app thread; undoes the listen above.
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
    // SAFETY: on the app thread, with a subsystem that the caller has just found.
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

/// Stops a subsystem from listening at `address` and disconnects the hosts that
/// came by it. With the last subsystem there the target stops listening.
///
/// ENODEV for an unknown subsystem, ENOENT if it does not listen there.
pub async fn remove(spdk: Spdk, nqn: &str, address: &Address) -> Result<(), Error> {
    const OPERATION: &str = "remove listener";
    let id = address.to_id()?;
    let target = target(spdk, OPERATION)?;
    let (address, name) = (address.clone(), nqn.to_owned());
    if lookup(spdk, OPERATION, nqn)?.is_none() {
        // Removed by SPDK's own commands, which also stopped listening.
        unbind(&address, nqn);
    }
    paused(spdk, OPERATION, nqn, 0, move |subsystem| {
        // SAFETY: on the app thread, the subsystem paused.
        let rc = unsafe { sys::spdk_nvmf_subsystem_remove_listener(subsystem.as_ptr(), &id) };
        async move {
            // It no longer listens there either way.
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

/// Unbinds a stopped subsystem, whose hosts are gone, from all its addresses.
pub(super) fn stop_all(
    spdk: Spdk,
    operation: &'static str,
    subsystem: Subsystem,
) -> Result<(), Error> {
    let target = target(spdk, operation)?;
    // SAFETY: on the app thread, with a subsystem that the caller has just found.
    let nqn = unsafe { string(sys::spdk_nvmf_subsystem_get_nqn(subsystem.as_ptr())) };
    // SAFETY: as above.
    for address in unsafe { addresses(subsystem) } {
        let id = address.to_id()?;
        // SAFETY: on the app thread; gives back the reference that `add` took.
        unsafe { sys::spdk_nvmf_tgt_stop_listen(target.as_ptr(), &id) };
        unbind(&address, &nqn);
    }
    Ok(())
}

/// Where the subsystem listens.
pub fn list(spdk: Spdk, nqn: &str) -> Result<Vec<Address>, Error> {
    let subsystem = find(spdk, "list listeners", nqn)?;
    // SAFETY: on the app thread, the subsystem just found.
    Ok(unsafe { addresses(subsystem) })
}

/// # Safety
/// On the app thread, with a subsystem that was found without an await since.
unsafe fn addresses(subsystem: Subsystem) -> Vec<Address> {
    let mut addresses = Vec::new();
    // SAFETY: the caller's contract; listeners come and go on this thread alone.
    // A listener that has been stopped has no id.
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
