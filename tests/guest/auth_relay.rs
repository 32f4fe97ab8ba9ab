//! A relay between Linux's host and the target that reads the messages of DH-HMAC-CHAP.
//!
//! Linux offers all hashes and DH groups that it knows, and the target, whose list is fixed, takes the strongest: the relay
//! restricts an offer to one of each. That is possible to anyone on the network, as no message is protected without TLS. The
//! relay records the first PDUs of each connection, which an attacker would replay to the target or to the host.

use std::io::Result;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::common::nvme_tcp::{Host, flag, kind};

/// PDUs to record of each direction: all of an authentication, and a few more.
const RECORDED: usize = 12;

/// Length of a command capsule's header, and of a C2HData's.
const CAPSULE: usize = 72;
const C2H_DATA: usize = 24;

/// Offset of the command in a capsule, and of the command ID in a capsule, a completion and a C2HData.
const COMMAND: usize = 8;
const CID: usize = 10;
const CID_OF_COMPLETION: usize = 20;
const CID_OF_DATA: usize = 8;

/// Opcode of fabrics commands, and the fabrics command type of AUTH_Send.
const FABRICS: u8 = 0x7f;
const AUTH_SEND: u8 = 5;

/// First bytes (AUTH_Type, AUTH_ID) of messages (NVMe Base Specification 2.1, section 8.3.4.5).
const NEGOTIATE: [u8; 2] = [0, 0];
const REPLY: [u8; 2] = [1, 2];
/// The target accepts the host's proof.
const SUCCESS1: [u8; 2] = [1, 3];
/// The target refuses the host.
pub const FAILURE1: [u8; 2] = [0, 0xf1];

/// Offsets in AUTH_Negotiate: lengths and lists of the hashes and the DH groups of the only protocol descriptor.
const HASHES_LEN: usize = 10;
const GROUPS_LEN: usize = 11;
const HASHES: usize = 12;
const GROUPS: usize = 42;

/// Identifiers of a hash and a DH group.
pub type Choice = (u8, u8);

/// What a queue's host and target have used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Hash and DH group of the target's challenge.
    pub choice: Choice,
    /// Whether the host demanded a proof from the target.
    pub mutual: bool,
}

/// The first PDUs of a connection.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    requests: Vec<Vec<u8>>,
    answers: Vec<Vec<u8>>,
}

impl Recording {
    /// Returns the identifiers of the hashes and the DH groups that were offered to the target.
    pub fn offered(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let offer = self
            .host_messages()
            .find(|message| is(message, NEGOTIATE))?;
        let list = |at: usize, length: usize| offer[at..][..usize::from(offer[length])].to_vec();
        Some((list(HASHES, HASHES_LEN), list(GROUPS, GROUPS_LEN)))
    }

    /// Returns what was used, if the target has accepted the host's proof.
    pub fn agreed(&self) -> Option<Agreed> {
        let mut answers = self.target_messages();
        let challenge = answers.next()?;
        answers.next().filter(|message| is(message, SUCCESS1))?;
        let reply = self.host_messages().find(|message| is(message, REPLY))?;
        Some(Agreed {
            choice: (challenge[8], challenge[9]),
            mutual: reply[8] == 1,
        })
    }

    /// Sends the recorded requests to a target once more; returns its answer to the proof.
    pub fn replay(&self, port: u16) -> Result<Vec<u8>> {
        let mut host = Host::dial(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        let mut messages = Vec::new();
        for request in &self.requests {
            host.send_bytes(request)?;
            if request[0] == kind::IC_REQ {
                host.receive()?;
                continue;
            }
            let (_, message) = host.completion(u16_at(request, CID), &[])?;
            messages.extend((!message.is_empty()).then_some(message));
            // The challenge, then the answer to the proof.
            if messages.len() == 2 {
                break;
            }
        }
        messages
            .pop()
            .ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }

    /// Answers hosts on a port of its own with the recorded answers; returns the port.
    pub async fn impersonate(self) -> (u16, AbortHandle) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let serving = tokio::spawn(async move {
            while let Ok((host, _)) = listener.accept().await {
                // A host that goes ends the connection only.
                let _ = self.answer(host).await;
            }
        });
        (port, serving.abort_handle())
    }

    async fn answer(&self, host: TcpStream) -> Option<()> {
        let (mut from, mut to) = host.into_split();
        let mut answers = self.answers.iter().cloned();
        while let Some(request) = receive(&mut from).await {
            loop {
                let mut answer = answers.next()?;
                let cid = match answer[0] {
                    kind::CAPSULE_RESP => Some(CID_OF_COMPLETION),
                    kind::C2H_DATA => Some(CID_OF_DATA),
                    _ => None,
                };
                if let Some(at) = cid {
                    answer[at..at + 2].copy_from_slice(&request[CID..CID + 2]);
                }
                to.write_all(&answer).await.ok()?;
                if answer[0] != kind::C2H_DATA || answer[1] & flag::SUCCESS != 0 {
                    break;
                }
            }
        }
        Some(())
    }

    /// The host's messages, in order.
    fn host_messages(&self) -> impl Iterator<Item = &[u8]> {
        let sends = self.requests.iter().filter(|pdu| is_send(pdu));
        sends.map(|pdu| &pdu[CAPSULE..])
    }

    /// The target's messages, and data after these, in order.
    fn target_messages(&self) -> impl Iterator<Item = &[u8]> {
        let data = self.answers.iter().filter(|pdu| pdu[0] == kind::C2H_DATA);
        data.map(|pdu| &pdu[C2H_DATA..])
    }
}

/// What the relay does and has seen.
#[derive(Default)]
struct Shared {
    only: Option<Choice>,
    recordings: Vec<Arc<Mutex<Recording>>>,
}

/// A running relay; ends with all connections on drop.
pub struct AuthRelay {
    /// The relay's own port.
    pub port: u16,
    shared: Arc<Mutex<Shared>>,
    accepting: AbortHandle,
}

impl AuthRelay {
    /// Starts a relay to this loopback port.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let of_task = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            let mut relayed = JoinSet::new();
            while let Ok((host, _)) = listener.accept().await {
                relayed.spawn(relay(host, port, Arc::clone(&of_task)));
            }
        });
        Self {
            port: own,
            shared,
            accepting: accepting.abort_handle(),
        }
    }

    /// Restricts later offers to one hash and one DH group, or to none.
    pub fn restrict(&self, only: Option<Choice>) {
        self.shared.lock().only = only;
    }

    /// Returns and forgets the connections so far, in the order in which they were accepted.
    pub fn take(&self) -> Vec<Recording> {
        let recordings = std::mem::take(&mut self.shared.lock().recordings);
        recordings.iter().map(|one| one.lock().clone()).collect()
    }
}

impl Drop for AuthRelay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn relay(host: TcpStream, port: u16, shared: Arc<Mutex<Shared>>) {
    let Ok(target) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let recording = Arc::new(Mutex::new(Recording::default()));
    shared.lock().recordings.push(Arc::clone(&recording));
    let ((host_in, host_out), (target_in, target_out)) = (host.into_split(), target.into_split());
    let requests = pass_on(host_in, target_out, |pdu| {
        if let Some(choice) = shared.lock().only {
            restrict(pdu, choice);
        }
        record(&mut recording.lock().requests, pdu);
    });
    let answers = pass_on(target_in, host_out, |pdu| {
        record(&mut recording.lock().answers, pdu);
    });
    tokio::join!(requests, answers);
}

fn record(pdus: &mut Vec<Vec<u8>>, pdu: &[u8]) {
    if pdus.len() < RECORDED {
        pdus.push(pdu.to_vec());
    }
}

async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut look: impl FnMut(&mut Vec<u8>),
) {
    while let Some(mut pdu) = receive(&mut from).await {
        look(&mut pdu);
        if to.write_all(&pdu).await.is_err() {
            return;
        }
    }
}

/// Receives a PDU of a connection without digests; returns `None` at its end.
async fn receive(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut pdu = vec![0; 8];
    from.read_exact(&mut pdu).await.ok()?;
    let length = u32::from_le_bytes([pdu[4], pdu[5], pdu[6], pdu[7]]);
    pdu.resize(usize::try_from(length).ok()?, 0);
    from.read_exact(&mut pdu[8..]).await.ok()?;
    Some(pdu)
}

/// Restricts an AUTH_Negotiate; leaves other PDUs as they are.
fn restrict(pdu: &mut [u8], (hash, group): Choice) {
    if !is_send(pdu) || !is(&pdu[CAPSULE..], NEGOTIATE) {
        return;
    }
    let message = &mut pdu[CAPSULE..];
    (message[HASHES_LEN], message[HASHES]) = (1, hash);
    (message[GROUPS_LEN], message[GROUPS]) = (1, group);
}

/// Returns whether this is an AUTH_Send; Linux sends its message within the capsule.
fn is_send(pdu: &[u8]) -> bool {
    pdu[0] == kind::CAPSULE_CMD
        && pdu[COMMAND] == FABRICS
        && pdu[COMMAND + 4] == AUTH_SEND
        && pdu.len() > CAPSULE
}

fn is(message: &[u8], kind: [u8; 2]) -> bool {
    message.starts_with(&kind)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
