//! A raw NVMe/TCP host that builds each PDU byte by byte, and the checks that follow an attack.

mod afterwards;
mod discovery;
mod host;
mod pdu;

pub use afterwards::{Bystander, connections};
pub use discovery::{DISCOVERY, Record, discovered, discoverer, log};
pub use host::{ANSWER, Answer, CC, CC_ENABLED, CSTS, Host, Identity};
pub use pdu::{Command, Digests, Pdu, Sgl, connect_data, crc32c, flag, kind};
