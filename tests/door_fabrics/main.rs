//! Adversarial tests of NVMe over Fabrics above the transport: Connect, identities, data lengths, command order,
//! discovery.

#[path = "../common/mod.rs"]
mod common;

mod data;
mod flood;
mod identity;
mod listeners;
mod order;
mod pace;
mod records;
mod tls;

use common::nvme_tcp::{Answer, Host, kind};

/// Returns whether a PDU was refused: by a status, a TermReq or the end of the connection.
fn refused(host: &mut Host) -> bool {
    match host.receive() {
        Ok(answer) if answer.kind == kind::CAPSULE_RESP => answer.status() != 0,
        Ok(answer) => answer.kind == kind::C2H_TERM_REQ,
        Err(error) => error.kind() != std::io::ErrorKind::TimedOut,
    }
}

/// Receives until the completion of a command, skipping its data.
fn completion_of(host: &mut Host, cid: u16) -> Answer {
    loop {
        let answer = host.receive().expect("a completion");
        if answer.kind == kind::CAPSULE_RESP && answer.cid() == cid {
            return answer;
        }
    }
}
