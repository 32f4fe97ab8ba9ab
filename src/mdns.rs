//! Announces the discovery service by multicast DNS, so that hosts find it without an address (NVM Express TP 8009):
//! service `_nvme-disc._tcp`, with transport and NQN in its TXT record.
//!
//! The library has its own thread, which inherits the CPU affinity of the starting thread and thus avoids the
//! reactors' cores where others exist.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mdns_sd::{IfKind, ServiceDaemon, ServiceInfo};
use parking_lot::Mutex;
use spdk::nvmf::nqn;

/// Service type with domain.
const SERVICE: &str = "_nvme-disc._tcp.local.";

/// Timeout of the goodbye message.
const GOODBYE: Duration = Duration::from_millis(250);

/// Maximum length of a DNS label, in bytes.
const LABEL_MAX: usize = 63;

/// The announcement of this process.
#[derive(Default)]
pub struct Announcement(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Nothing,
    Service(ServiceDaemon, String),
    /// The process is ending.
    Withdrawn,
}

impl Announcement {
    /// Announces the discovery service at `address`: on the interfaces with that address, or on all interfaces of its
    /// family if it is unspecified. A failure is only logged: the service remains reachable by its address.
    pub fn begin(&self, address: SocketAddr) {
        let mut state = self.0.lock();
        if !matches!(*state, State::Nothing) {
            return;
        }
        match announce(address) {
            Ok((daemon, name)) => {
                tracing::info!(%address, name, "discovery service is told of by mDNS");
                *state = State::Service(daemon, name);
            }
            Err(error) => {
                tracing::error!(%address, %error, "discovery-mdns: the discovery service cannot be told of");
            }
        }
    }

    /// Withdraws the announcement, for good. Blocks for half a second at most.
    pub fn withdraw(&self) {
        let state = std::mem::replace(&mut *self.0.lock(), State::Withdrawn);
        let State::Service(daemon, name) = state else {
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

fn announce(address: SocketAddr) -> Result<(ServiceDaemon, String), mdns_sd::Error> {
    let machine = machine();
    let port = address.port();
    let instance = label(&format!("opi-spdk {port} {machine}"));
    // A host name of its own, since the machine's name may belong to another responder.
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
    let state = daemon
        .disable_interface(IfKind::All)
        .and_then(|()| daemon.enable_interface(on))
        .and_then(|()| daemon.register(service));
    match state {
        Ok(()) => Ok((daemon, name)),
        Err(error) => {
            let _ = daemon.shutdown();
            Err(error)
        }
    }
}

/// The machine's host name, without its domain.
fn machine() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let first = name.split('.').next().unwrap_or_default();
    first.to_owned()
}

/// Truncates a text to the length of a label.
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
        assert!(matches!(*announcement.0.lock(), State::Withdrawn));
    }
}
