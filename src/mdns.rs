//! The discovery service told of by multicast DNS, so that hosts find it without an address (NVM Express TP 8009):
//! service `_nvme-disc._tcp`, with the transport and the NQN in its TXT record.
//!
//! The library answers on a thread of its own, which inherits the cores of the thread that starts it: none of a
//! reactor, where there are others.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mdns_sd::{IfKind, ServiceDaemon, ServiceInfo};
use parking_lot::Mutex;
use spdk::nvmf::nqn;

/// The type of service, with its domain.
const SERVICE: &str = "_nvme-disc._tcp.local.";

/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_millis(250);

/// Most bytes of a label of DNS.
const LABEL_MAX: usize = 63;

/// What is told on the network.
#[derive(Default)]
pub struct Announcement(Mutex<Told>);

#[derive(Default)]
enum Told {
    #[default]
    Nothing,
    Service(ServiceDaemon, String),
    /// The process ends.
    Withdrawn,
}

impl Announcement {
    /// Tells of the discovery service at `address`: on the interfaces that have it, or on all of its family where it
    /// is unspecified. What fails is logged, and the service is found by its address alone.
    pub fn begin(&self, address: SocketAddr) {
        let mut told = self.0.lock();
        if !matches!(*told, Told::Nothing) {
            return;
        }
        match tell(address) {
            Ok((daemon, name)) => {
                tracing::info!(%address, name, "discovery service is told of by mDNS");
                *told = Told::Service(daemon, name);
            }
            Err(error) => {
                tracing::error!(%address, %error, "discovery-mdns: the discovery service cannot be told of");
            }
        }
    }

    /// Says that the service is gone, and tells of nothing more. Blocks for half a second at most.
    pub fn withdraw(&self) {
        let told = std::mem::replace(&mut *self.0.lock(), Told::Withdrawn);
        let Told::Service(daemon, name) = told else {
            return;
        };
        let withdrawn = daemon.unregister(&name);
        let withdrawn = withdrawn.map(|done| done.recv_timeout(GOODBYE));
        if !matches!(withdrawn, Ok(Ok(_))) {
            tracing::warn!(
                name,
                "mDNS: hosts were not told that the discovery service is gone"
            );
        }
        let ended = daemon.shutdown();
        let _ = ended.map(|done| done.recv_timeout(GOODBYE));
    }
}

fn tell(address: SocketAddr) -> Result<(ServiceDaemon, String), mdns_sd::Error> {
    let machine = machine();
    let port = address.port();
    let instance = label(&format!("opi-spdk {port} {machine}"));
    // A name of its own: that of the machine is another responder's.
    let host = format!("{}.local.", label(&format!("opi-spdk-{port}-{machine}")));
    let text = [("p", "tcp"), ("nqn", nqn::DISCOVERY)];
    let (ip, is_any) = (address.ip(), address.ip().is_unspecified());
    let own = if is_any { Vec::new() } else { vec![ip] };
    let service = ServiceInfo::new(SERVICE, &instance, &host, &own[..], port, &text[..])?;
    let service = if is_any {
        service.enable_addr_auto()
    } else {
        service
    };
    let name = service.get_fullname().to_owned();
    let daemon = ServiceDaemon::new()?;
    let on = match (is_any, ip) {
        (false, ip) => IfKind::Addr(ip),
        (true, IpAddr::V4(_)) => IfKind::IPv4,
        (true, IpAddr::V6(_)) => IfKind::IPv6,
    };
    let told = daemon
        .disable_interface(IfKind::All)
        .and_then(|()| daemon.enable_interface(on))
        .and_then(|()| daemon.register(service));
    match told {
        Ok(()) => Ok((daemon, name)),
        Err(error) => {
            let _ = daemon.shutdown();
            Err(error)
        }
    }
}

/// The first part of the name of this machine.
fn machine() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let first = name.split('.').next().unwrap_or_default();
    first.to_owned()
}

/// As much of a text as a label takes.
fn label(text: &str) -> String {
    let mut label = String::new();
    for letter in text.chars() {
        if label.len() + letter.len_utf8() > LABEL_MAX {
            break;
        }
        label.push(letter);
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_cut_between_letters() {
        assert_eq!(label("opi-spdk 8009 a"), "opi-spdk 8009 a");
        assert_eq!(label(&"x".repeat(70)).len(), LABEL_MAX);
        assert_eq!(label(&"ü".repeat(40)).len(), LABEL_MAX - 1);
    }

    #[test]
    fn nothing_is_told_after_the_end() {
        let announcement = Announcement::default();
        announcement.withdraw();
        announcement.begin(SocketAddr::from(([127, 0, 0, 1], 8009)));
        assert!(matches!(*announcement.0.lock(), Told::Withdrawn));
    }
}
