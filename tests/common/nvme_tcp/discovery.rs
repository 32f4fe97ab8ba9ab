//! The discovery log page, as a host reads it.

use std::net::{IpAddr, SocketAddr};

use super::{Command, Digests, Host, Identity, Pdu, Sgl};

/// The NQN of the discovery service.
pub const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Size of the log's header, and of each entry.
const RECORD: usize = 1024;

/// An entry of the discovery log page.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Transport type: 1 RDMA, 3 TCP.
    pub transport: u8,
    /// Transport address.
    pub address: String,
    /// Transport service ID: the port.
    pub service: String,
    /// The subsystem's NQN.
    pub subsystem: String,
    /// Subsystem type: 1 another discovery service, 2 an NVM subsystem, 3 this discovery service.
    pub subtype: u8,
    /// Address family: 1 IPv4, 2 IPv6.
    pub family: u8,
    /// Transport requirements, secure channel: 1 required, 2 not required.
    pub channel: u8,
    /// Security type over TCP: 0 none, 2 TLS 1.3.
    pub security: u8,
}

impl Record {
    /// The entry of an NVM subsystem over TCP (IPv4 or IPv6), or of the discovery service itself.
    pub fn tcp(address: &str, port: u16, subsystem: &str) -> Self {
        Self {
            transport: 3,
            address: address.to_owned(),
            service: port.to_string(),
            subsystem: subsystem.to_owned(),
            subtype: if subsystem == DISCOVERY { 3 } else { 2 },
            family: if address.contains(':') { 2 } else { 1 },
            channel: 2,
            security: 0,
        }
    }

    /// The same entry with TLS.
    pub fn secure(self) -> Self {
        Self {
            channel: 1,
            security: 2,
            ..self
        }
    }

    /// The entry of another discovery service.
    pub fn referral(address: &str, port: u16, subsystem: &str) -> Self {
        Self {
            subtype: 1,
            ..Self::tcp(address, port, subsystem)
        }
    }
}

/// A host that connects to the discovery service at this address.
pub fn discoverer(ip: &str, port: u16) -> Identity {
    let ip: IpAddr = ip.parse().expect("an address");
    Identity {
        address: SocketAddr::new(ip, port),
        ..Identity::new(port, DISCOVERY)
    }
}

/// Connects to the discovery service at this address and reads its log page.
pub fn discovered(ip: &str, port: u16) -> Vec<Record> {
    log(&mut discoverer(ip, port).admin(Digests::OFF))
}

/// Reads the discovery log page on an existing admin queue.
pub fn log(admin: &mut Host) -> Vec<Record> {
    let length = 16 * u32::try_from(RECORD).expect("a length");
    let cid = admin.cid();
    let command = Command::new(0x02, cid).cdw(10, (length / 4 - 1) << 16 | 0x70);
    let command = command.sgl(Sgl::Transport(length));
    admin
        .send(&Pdu::capsule(command, &[]))
        .expect("the command is sent");
    let (answer, log) = admin.completion(cid, &[]).expect("the log");
    assert_eq!(answer.status(), 0);
    let count = u64::from_le_bytes(log[8..16].try_into().expect("8 bytes"));
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.trim_matches(['\0', ' ']).to_owned()
    };
    let records = log[RECORD..].chunks_exact(RECORD);
    let records = records.take(usize::try_from(count).expect("a count"));
    let records: Vec<_> = records
        .map(|r| Record {
            transport: r[0],
            family: r[1],
            subtype: r[2],
            channel: r[3] & 3,
            security: r[768],
            address: text(&r[512..768]),
            service: text(&r[32..64]),
            subsystem: text(&r[256..512]),
        })
        .collect();
    assert_eq!(records.len() as u64, count);
    records
}
