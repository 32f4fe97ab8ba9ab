//! What the discovery service tells a host.

use std::net::{IpAddr, SocketAddr};

use super::{Command, Digests, Host, Identity, Pdu, Sgl};

/// The discovery service.
pub const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Bytes of the log's header, and of each record.
const RECORD: usize = 1024;

/// A record of the discovery log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// 1 RDMA, 3 TCP.
    pub transport: u8,
    /// Where.
    pub address: String,
    /// Its port.
    pub service: String,
    /// The NQN there.
    pub subsystem: String,
    /// 1 another discovery service, 2 an NVM subsystem, 3 this discovery service.
    pub subtype: u8,
    /// 1 IPv4, 2 IPv6.
    pub family: u8,
}

impl Record {
    /// Of an NVM subsystem over TCP at an address of IPv4 or IPv6, or of the discovery service itself.
    pub fn tcp(address: &str, port: u16, subsystem: &str) -> Self {
        Self {
            transport: 3,
            address: address.to_owned(),
            service: port.to_string(),
            subsystem: subsystem.to_owned(),
            subtype: if subsystem == DISCOVERY { 3 } else { 2 },
            family: if address.contains(':') { 2 } else { 1 },
        }
    }

    /// Of another discovery service.
    pub fn referral(address: &str, port: u16, subsystem: &str) -> Self {
        Self {
            subtype: 1,
            ..Self::tcp(address, port, subsystem)
        }
    }
}

/// A host of the discovery service at this address.
pub fn discoverer(ip: &str, port: u16) -> Identity {
    let ip: IpAddr = ip.parse().expect("an address");
    Identity {
        address: SocketAddr::new(ip, port),
        ..Identity::new(port, DISCOVERY)
    }
}

/// What the discovery service tells a host that comes by this address.
pub fn discovered(ip: &str, port: u16) -> Vec<Record> {
    log(&mut discoverer(ip, port).admin(Digests::OFF))
}

/// What it tells a host that is connected.
pub fn log(admin: &mut Host) -> Vec<Record> {
    let length = 16 * u32::try_from(RECORD).expect("a length");
    let cid = admin.cid();
    let command = Command::new(0x02, cid).cdw(10, (length / 4 - 1) << 16 | 0x70);
    let command = command.sgl(Sgl::Transport(length));
    admin.send(&Pdu::capsule(command, &[])).expect("it goes");
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
            address: text(&r[512..768]),
            service: text(&r[32..64]),
            subsystem: text(&r[256..512]),
        })
        .collect();
    assert_eq!(records.len() as u64, count);
    records
}
