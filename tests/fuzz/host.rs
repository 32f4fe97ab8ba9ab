//! Fuzzer of the NVMe/TCP target: hosts that send valid and malformed PDUs in any order.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::common::nvme_tcp::{
    Command, Digests, Host as Connection, Identity, Pdu, Sgl, connect_data, kind,
};
use super::door::{Door, Step};
use super::draw::Draw;
use super::world::World;

/// The NVMe/TCP target's door.
pub struct Host;

/// Connections per case.
const CONNECTIONS: usize = 3;

/// Read timeout: most answers arrive at once or never.
const ANSWER: Duration = Duration::from_millis(30);

/// A mutation of a PDU.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Wrong {
    Nothing,
    Hlen(u8),
    Pdo(u8),
    Plen(u32),
    Flags(u8),
    Kind(u8),
    Byte(u8, u8),
    Digest,
    Cut(u16),
}

/// The SGL of a command, with a length that may be wrong.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Where {
    Nowhere,
    Capsule(u32),
    Transport(u32),
    Other(u8, u32),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Action {
    /// Opens a new connection in this slot.
    Dial(usize),
    /// ICReq; bit mask of digests.
    Greet(usize, u8, Wrong),
    /// Connect as host 0 or 1: queue ID, host, SGL, bytes of in-capsule data.
    Connect(usize, u16, u8, Where, u16, Wrong),
    /// A valid setup up to an enabled controller (queue 0) or one of its I/O queues.
    Rightly(usize, u16),
    /// A Fabrics, admin or I/O command: opcode, FCTYPE or NSID, command dwords 10 to 15, FUSE, SGL,
    /// bytes of in-capsule data.
    Command(usize, u8, u32, [u32; 6], u8, Where, u16, Wrong),
    /// H2CData for the latest R2T: offset, length and tag differ by these numbers; flags.
    Data(usize, i32, i32, i16, u8, Wrong),
    /// H2CTermReq: fatal error status, length of data.
    Term(usize, u16, u16, Wrong),
    /// Raw bytes.
    Raw(usize, Vec<u8>),
    /// Reads answers until the read timeout expires.
    Read(usize),
    /// Buffers what is sent on this connection until the next read, and sends it in one write.
    Gather(usize),
    /// Closes the connection.
    Close(usize),
    /// An API call.
    Api(u8),
}

fn wrong(draw: &mut Draw) -> Wrong {
    match draw.below(16) {
        0 => Wrong::Hlen(draw.edge() as u8),
        1 => Wrong::Pdo(draw.edge() as u8),
        2 => Wrong::Plen(draw.edge()),
        3 => Wrong::Flags(draw.next() as u8),
        4 => Wrong::Kind(draw.below(12) as u8),
        5 => Wrong::Byte(draw.next() as u8, draw.next() as u8),
        6 => Wrong::Digest,
        7 => Wrong::Cut(draw.below(80) as u16),
        _ => Wrong::Nothing,
    }
}

fn place(draw: &mut Draw) -> Where {
    match draw.below(6) {
        0 => Where::Nowhere,
        1 | 2 => Where::Capsule(draw.edge()),
        3 => Where::Other(draw.next() as u8, draw.edge()),
        _ => Where::Transport(draw.edge()),
    }
}

/// Generates a command; its fields often match its opcode.
fn command(draw: &mut Draw, at: usize) -> Action {
    const OPCODES: [u8; 24] = [
        0x00, 0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0a, 0x0c, 0x0d, 0x0e, 0x11, 0x15, 0x18, 0x19,
        0x1d, 0x7f, 0x7f, 0x80, 0x81, 0x82, 0xc0, 0xc1, 0xff,
    ];
    let opcode = draw.of(&OPCODES);
    let nsid = if opcode == 0x7f {
        u32::from(draw.of(&[0_u8, 1, 4, 5, 6, 8, 0xff]))
    } else {
        draw.of(&[0, 1, 1, 1, 2, 0xffff_fffe, 0xffff_ffff])
    };
    let mut words = [0; 6];
    for word in &mut words {
        if draw.one_in(3) {
            *word = draw.edge();
        }
    }
    let data = match (opcode, draw.below(2)) {
        (0x01 | 0x02 | 0x05 | 0x08, 0) => {
            let blocks = draw.of(&[1_u32, 2, 8, 16, 256]);
            words = [draw.below(64) as u32, 0, blocks - 1, 0, 0, 0];
            let length = blocks * 512;
            if opcode != 2 && length <= 8192 && draw.one_in(2) {
                Where::Capsule(length)
            } else {
                Where::Transport(length)
            }
        }
        (0x06, 0) => Where::Transport(4096),
        _ => place(draw),
    };
    let inside = match data {
        Where::Capsule(length) if !draw.one_in(4) => length.min(16_384) as u16,
        _ if draw.one_in(4) => draw.below(9000) as u16,
        _ => 0,
    };
    let fuse = if draw.one_in(5) {
        draw.below(4) as u8
    } else {
        0
    };
    Action::Command(at, opcode, nsid, words, fuse, data, inside, wrong(draw))
}

fn action(draw: &mut Draw) -> Action {
    let at = draw.below(CONNECTIONS);
    match draw.below(24) {
        0 => Action::Dial(at),
        1 => Action::Greet(at, draw.below(4) as u8, wrong(draw)),
        2 | 3 => {
            let inside = draw.of(&[0_u16, 4, 1023, 1024, 1024, 1025, 4096]);
            let data = if draw.one_in(2) {
                Where::Capsule(u32::from(inside))
            } else {
                place(draw)
            };
            let qid = draw.of(&[0, 0, 1, 1, 2, 65_535]);
            Action::Connect(at, qid, draw.below(2) as u8, data, inside, wrong(draw))
        }
        4 | 5 => Action::Rightly(at, draw.below(2) as u16),
        6..14 => command(draw, at),
        14..17 => {
            let off = draw.of(&[0, 0, 0, 512, -512, i32::MIN, i32::MAX]);
            let more = draw.of(&[0, 0, 0, 1, -1, 512, i32::MIN]);
            let tag = draw.of(&[0, 0, 0, 1, -1, i16::MAX]);
            Action::Data(at, off, more, tag, draw.of(&[4, 4, 0, 255]), wrong(draw))
        }
        17 => Action::Term(at, draw.edge() as u16, draw.below(200) as u16, wrong(draw)),
        18 => {
            let length = draw.below(200);
            Action::Raw(at, (0..length).map(|_| draw.next() as u8).collect())
        }
        19 | 20 => Action::Read(at),
        21 => Action::Gather(at),
        22 => Action::Close(at),
        _ => Action::Api(draw.below(6) as u8),
    }
}

#[async_trait::async_trait]
impl Door for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn draw(&self, draw: &mut Draw) -> Vec<Step> {
        let count = 3 + draw.below(20);
        let begin = match draw.below(3) {
            0 => vec![Action::Dial(0)],
            1 => vec![Action::Rightly(0, 0)],
            _ => vec![Action::Rightly(0, 0), Action::Rightly(1, 1)],
        };
        let actions = begin.into_iter().chain((0..count).map(|_| action(draw)));
        actions
            .map(|action| serde_json::to_value(action).expect("JSON"))
            .collect()
    }

    async fn prepare(&self, _: &mut World) {}

    async fn run(&self, world: &mut World, steps: &[Step]) -> Result<(), String> {
        let identity = Identity::new(world.fixture.port, &world.fixture.nqn);
        let mut session = Session {
            identity,
            places: Default::default(),
        };
        for step in steps {
            let action: Action = serde_json::from_value(step.clone()).expect("a step of this door");
            match action {
                Action::Api(which) => api(world, which).await,
                action => session.act(action),
            }
        }
        Ok(())
    }
}

/// Runs an API call; creates are undone by a later call.
async fn api(world: &World, which: u8) {
    let client = &world.fixture.client;
    // The result is ignored: the API has its own tests.
    let _ = match which {
        0 => {
            let request = json!({ "name": world.fixture.namespace });
            client.call("StatsNvmeNamespace", request).await
        }
        1 | 2 => {
            let object = json!({ "spec": { "volume_name_ref": "volumes/extra" } });
            let request = json!({ "parent": world.fixture.subsystem, "nvme_namespace_id": "extra",
                "nvme_namespace": object });
            let volume = json!({ "null_volume_id": "extra",
                "null_volume": { "block_size": 512, "blocks_count": 4096 } });
            let _ = client.call("CreateNullVolume", volume).await;
            client.call("CreateNvmeNamespace", request).await
        }
        3 | 4 => {
            let name = format!("{}/nvmeNamespaces/extra", world.fixture.subsystem);
            client
                .call("DeleteNvmeNamespace", json!({ "name": name }))
                .await
        }
        _ => {
            let request = json!({ "name": world.fixture.controller });
            client.call("StatsNvmeController", request).await
        }
    };
}

/// A connection with its buffered output.
#[derive(Default)]
struct Place {
    connection: Option<Connection>,
    gathered: Option<Vec<u8>>,
    /// Latest R2T: CCCID, TTAG, offset, length.
    asked: Option<(u16, u16, u32, u32)>,
}

struct Session {
    identity: Identity,
    places: [Place; CONNECTIONS],
}

impl Session {
    fn act(&mut self, action: Action) {
        match action {
            Action::Dial(at) => self.places[at] = self.dialed(),
            Action::Greet(at, digests, wrong) => {
                let digests = Digests {
                    header: digests & 1 != 0,
                    data: digests & 2 != 0,
                };
                self.send(at, Pdu::ic_req(digests), wrong);
                self.read(at);
                if let Some(connection) = &mut self.places[at].connection {
                    connection.digests = digests;
                }
            }
            Action::Rightly(at, qid) => self.rightly(at, qid),
            Action::Connect(at, qid, who, data, inside, wrong) => {
                let hostnqn = format!("nqn.2022-09.io.spdk:host-{who}");
                let mut bytes =
                    connect_data([who + 1; 16], 0xffff, &self.identity.subnqn, &hostnqn);
                bytes.resize(usize::from(inside), 0);
                let command = located(Command::connect(1, qid, 31, Sgl::None), data);
                self.send(at, Pdu::capsule(command, &bytes), wrong);
            }
            Action::Command(at, opcode, nsid, words, fuse, data, inside, wrong) => {
                let cid = self.places[at]
                    .connection
                    .as_mut()
                    .map_or(0, Connection::cid);
                let mut command = if opcode == 0x7f {
                    Command::fabrics(nsid as u8, cid)
                } else {
                    Command::new(opcode, cid).nsid(nsid)
                };
                for (n, word) in words.into_iter().enumerate() {
                    command = command.cdw(10 + n, word);
                }
                let command = located(command.fuse(fuse), data);
                let bytes = vec![0xa5; usize::from(inside)];
                self.send(at, Pdu::capsule(command, &bytes), wrong);
            }
            Action::Data(at, off, more, tag, flags, wrong) => {
                let (cccid, ttag, offset, length) = self.places[at].asked.unwrap_or((1, 1, 0, 512));
                let bytes = vec![0x5a; length.min(131_072) as usize];
                let ttag = ttag.wrapping_add_signed(tag);
                let offset = offset.wrapping_add_signed(off);
                let pdu = Pdu::h2c_data(cccid, ttag, offset, &bytes)
                    .with_datal(length.wrapping_add_signed(more))
                    .with_flags(flags);
                self.send(at, pdu, wrong);
            }
            Action::Term(at, fes, length, wrong) => {
                let data = vec![0; usize::from(length)];
                self.send(at, Pdu::h2c_term_req(fes, &data), wrong);
            }
            Action::Raw(at, bytes) => self.send_bytes(at, bytes),
            Action::Read(at) => self.read(at),
            Action::Gather(at) => self.places[at].gathered = Some(Vec::new()),
            Action::Close(at) => self.places[at] = Place::default(),
            Action::Api(_) => {}
        }
    }

    fn dialed(&self) -> Place {
        Place {
            connection: self.identity.dial().ok(),
            ..Place::default()
        }
    }

    /// Connects like a regular host; leaves the slot empty if the target rejects it.
    fn rightly(&mut self, at: usize, qid: u16) {
        let cntlid = match qid {
            0 => 0xffff,
            _ => self.places[0]
                .connection
                .as_ref()
                .map_or(1, |admin| admin.cntlid),
        };
        let mut place = self.dialed();
        place.connection = place.connection.and_then(|mut connection| {
            connection.negotiate(Digests::OFF).ok()?;
            connection.connect(&self.identity, qid, cntlid).ok()?;
            if qid == 0 {
                connection.enable().ok()?;
            }
            Some(connection)
        });
        self.places[at] = place;
    }

    fn send(&mut self, at: usize, mut pdu: Pdu, wrong: Wrong) {
        let digests = match &self.places[at].connection {
            Some(connection) => connection.digests,
            None => return,
        };
        match wrong {
            Wrong::Hlen(hlen) => pdu.hlen = Some(hlen),
            Wrong::Pdo(pdo) => pdu.pdo = Some(pdo),
            Wrong::Plen(plen) => pdu.plen = Some(plen),
            Wrong::Flags(flags) => pdu.flags ^= flags,
            Wrong::Kind(kind) => pdu.kind = kind,
            Wrong::Byte(at, value) => {
                let length = pdu.header.len().max(1);
                if let Some(byte) = pdu.header.get_mut(usize::from(at) % length) {
                    *byte ^= value;
                }
            }
            Wrong::Digest => pdu.data_digest = Some(0x1234_5678),
            Wrong::Nothing | Wrong::Cut(_) => {}
        }
        let mut bytes = pdu.bytes(digests);
        if let Wrong::Cut(length) = wrong {
            bytes.truncate(usize::from(length));
        }
        self.send_bytes(at, bytes);
    }

    fn send_bytes(&mut self, at: usize, bytes: Vec<u8>) {
        let place = &mut self.places[at];
        if let Some(gathered) = &mut place.gathered {
            gathered.extend(bytes);
        } else if let Some(connection) = &mut place.connection
            && connection.send_bytes(&bytes).is_err()
        {
            place.connection = None;
        }
    }

    fn read(&mut self, at: usize) {
        if let Some(bytes) = self.places[at].gathered.take() {
            self.send_bytes(at, bytes);
        }
        let place = &mut self.places[at];
        let Some(connection) = &mut place.connection else {
            return;
        };
        while let Ok(answer) = connection.receive_within(ANSWER) {
            if answer.kind == kind::R2T && answer.header.len() >= 20 {
                let (ttag, offset, length) = answer.r2t();
                place.asked = Some((answer.u16(8), ttag, offset, length));
            }
        }
    }
}

fn located(command: Command, data: Where) -> Command {
    match data {
        Where::Nowhere => command.sgl(Sgl::None),
        Where::Capsule(length) => command.sgl(Sgl::InCapsule(length)),
        Where::Transport(length) => command.sgl(Sgl::Transport(length)),
        Where::Other(identifier, length) => {
            command.sgl(Sgl::Transport(length)).put(39, &[identifier])
        }
    }
}
