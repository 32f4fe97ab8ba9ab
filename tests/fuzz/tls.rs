//! Fuzzer of TLS on NVMe/TCP: handshakes and records that are modified, truncated, duplicated or not TLS
//! at all.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use openssl::ssl::SslStream;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::common::nvme_tcp::{Command, Digests, Identity, Pdu, Sgl};
use super::common::{
    Client, PSK, Psk, Resource, base64, malloc, namespace, nqn_of, poll_blocking, subsystem,
    tcp_controller,
};
use super::door::{Door, Step};
use super::draw::Draw;
use super::world::World;

/// The TLS door.
pub struct Tls;

/// The attacked subsystem's ID, and its allowed host.
const SECURE: &str = "secure-fuzzed";
const HOSTNQN: &str = "nqn.2022-09.io.spdk:secure-host";

/// Connections per case.
const CONNECTIONS: usize = 3;

/// Read timeout: most answers arrive at once or never.
const ANSWER: Duration = Duration::from_millis(80);

/// Deadline for serving a regular host.
const SERVES: Duration = Duration::from_secs(5);

/// A mutation of the sent TLS bytes, at a byte offset of the connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Turn {
    Bits(usize, u8),
    /// Stops sending at this byte.
    Cut(usize),
    /// Sends the current write twice.
    Twice(usize),
    /// Inserts bytes before the current write.
    Insert(usize, Vec<u8>),
    /// Drops the current write.
    Drop(usize),
    /// Sends the current write byte by byte.
    Slow(usize),
}

/// The plaintext to send.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Said {
    Greeting,
    Connect,
    Identify,
    Bytes(Vec<u8>),
    /// A byte, repeated.
    Many(u8, u32),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Action {
    Dial(usize),
    /// A handshake with one of several identities and keys, and mutations.
    Shake(usize, u8, Vec<Turn>),
    /// Sends plaintext in records, without its last bytes.
    Say(usize, Said, u16),
    /// An unprotected record: type, version, declared length, bytes.
    Record(usize, u8, u16, u16, Vec<u8>),
    Raw(usize, Vec<u8>),
    Read(usize),
    /// Sends close_notify and continues.
    Goodbye(usize),
    Close(usize),
    Api(u8),
}

fn bytes(draw: &mut Draw, most: usize) -> Vec<u8> {
    let length = draw.below(most);
    (0..length).map(|_| draw.next() as u8).collect()
}

fn turn(draw: &mut Draw) -> Turn {
    // A ClientHello has about 300 bytes, the following Finished 90.
    let at = if draw.one_in(3) {
        draw.below(12)
    } else {
        draw.below(520)
    };
    match draw.below(8) {
        0 => Turn::Cut(at),
        1 => Turn::Twice(at),
        2 => Turn::Insert(at, bytes(draw, 24)),
        3 => Turn::Drop(at),
        4 => Turn::Slow(at),
        _ => Turn::Bits(at, 1 << draw.below(8)),
    }
}

fn action(draw: &mut Draw) -> Action {
    let at = draw.below(CONNECTIONS);
    match draw.below(16) {
        0 => Action::Dial(at),
        1..5 => {
            let count = draw.of(&[0, 0, 1, 1, 2, 3]);
            let who = draw.of(&[0, 0, 0, 0, 1, 2, 3, 4, 5, 6]);
            Action::Shake(at, who, (0..count).map(|_| turn(draw)).collect())
        }
        5..9 => {
            let said = match draw.below(6) {
                0 | 1 => Said::Greeting,
                2 => Said::Connect,
                3 => Said::Identify,
                4 => Said::Bytes(bytes(draw, 200)),
                _ => Said::Many(
                    draw.next() as u8,
                    draw.of(&[1, 72, 16_384, 16_385, 100_000]),
                ),
            };
            let less = if draw.one_in(4) {
                draw.below(80) as u16
            } else {
                0
            };
            Action::Say(at, said, less)
        }
        9 | 10 => {
            let kind = draw.of(&[20, 21, 22, 23, 23, 24, 0, 255]);
            let version = draw.of(&[0x0303, 0x0303, 0x0301, 0x0304, 0]);
            let inside = bytes(draw, 64);
            let length = if draw.one_in(3) {
                draw.edge() as u16
            } else {
                inside.len() as u16
            };
            Action::Record(at, kind, version, length, inside)
        }
        11 => Action::Raw(at, bytes(draw, 300)),
        12 => Action::Read(at),
        13 => Action::Goodbye(at),
        14 => Action::Close(at),
        _ => Action::Api(draw.below(4) as u8),
    }
}

#[async_trait::async_trait]
impl Door for Tls {
    fn name(&self) -> &'static str {
        "tls"
    }

    fn draw(&self, draw: &mut Draw) -> Vec<Step> {
        let begin = if draw.one_in(3) {
            Action::Dial(0)
        } else {
            Action::Shake(0, 0, Vec::new())
        };
        let count = 2 + draw.below(14);
        let actions = std::iter::once(begin).chain((0..count).map(|_| action(draw)));
        actions
            .map(|action| serde_json::to_value(action).expect("JSON"))
            .collect()
    }

    async fn prepare(&self, world: &mut World) {
        let client = &world.fixture.client;
        let volume = malloc(client, "secure-volume", 4).await;
        let subsystem = subsystem(client, SECURE, secure()).await;
        namespace(client, &subsystem, &volume, json!({})).await;
        let (_, port) = tcp_controller(client, &subsystem).await;
        world.place = Some(port);
        // From now on the host's address is known as good: failed handshakes of the cases do not delay
        // it.
        let served = Play::at(port).served();
        served.expect("a host with a key is served");
    }

    async fn run(&self, world: &mut World, steps: &[Step]) -> std::result::Result<(), String> {
        let port = world.place.expect("the door has been prepared");
        let client = world.fixture.client.clone();
        let mut play = Play::at(port);
        for step in steps {
            match serde_json::from_value(step.clone()).expect("a step of this door") {
                Action::Api(which) => api(&client, which).await,
                action => play.act(action),
            }
        }
        play.places = Default::default();
        let served = poll_blocking(SERVES, || play.served().ok());
        served.ok_or_else(|| {
            let last = play.served().map_err(|error| error.to_string());
            format!("a host with a key is not served: {last:?}")
        })
    }
}

fn secure() -> Value {
    json!({ "hostnqn": HOSTNQN, "psk": base64(PSK) })
}

async fn api(client: &Client, which: u8) {
    // The result is ignored: the API has its own tests.
    let subsystems = Resource::new(client, "NvmeSubsystem");
    let _ = match which {
        0 => {
            let mut spec = secure();
            spec["nqn"] = nqn_of("secure-more").into();
            let object = json!({ "spec": spec });
            subsystems.create("", "secure-more", object).await.map(drop)
        }
        1 => subsystems.delete("nvmeSubsystems/secure-more").await,
        _ => {
            let request = json!({ "name": format!("nvmeSubsystems/{SECURE}") });
            client.call("StatsNvmeSubsystem", request).await.map(drop)
        }
    };
}

/// A connection: TCP, or TLS on top of it.
enum Way {
    Plain(Bent),
    Tls(Box<SslStream<Bent>>),
}

impl Way {
    fn bent(&mut self) -> &mut Bent {
        match self {
            Self::Plain(bent) => bent,
            Self::Tls(tls) => tls.get_mut(),
        }
    }
}

struct Play {
    identity: Identity,
    places: [Option<Way>; CONNECTIONS],
}

impl Play {
    fn at(port: u16) -> Self {
        Self {
            identity: Identity {
                hostnqn: HOSTNQN.into(),
                ..Identity::new(port, &nqn_of(SECURE))
            },
            places: Default::default(),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Dial(at) => self.places[at] = self.dialed(&[]).ok().map(Way::Plain),
            Action::Shake(at, who, turns) => {
                self.places[at] = None;
                self.places[at] = self.shaken(who, &turns).ok();
            }
            Action::Say(at, said, less) => {
                let mut bytes = self.bytes(said);
                bytes.truncate(bytes.len().saturating_sub(less.into()));
                self.with(at, |way| match way {
                    Way::Plain(bent) => bent.write_all(&bytes),
                    Way::Tls(tls) => tls.write_all(&bytes),
                });
            }
            Action::Record(at, kind, version, length, inside) => {
                let mut record = vec![kind];
                record.extend(version.to_be_bytes());
                record.extend(length.to_be_bytes());
                record.extend(inside);
                self.with(at, |way| way.bent().stream.write_all(&record));
            }
            Action::Raw(at, bytes) => self.with(at, |way| way.bent().stream.write_all(&bytes)),
            Action::Read(at) => self.with(at, |way| {
                let mut bytes = [0; 4096];
                match way {
                    Way::Plain(bent) => bent.read(&mut bytes).map(drop),
                    Way::Tls(tls) => tls.read(&mut bytes).map(drop),
                }
            }),
            Action::Goodbye(at) => self.with(at, |way| {
                if let Way::Tls(tls) = way {
                    let _ = tls.shutdown();
                }
                Ok(())
            }),
            Action::Close(at) => self.places[at] = None,
            Action::Api(_) => {}
        }
    }

    /// Acts on a connection, if there is one. An error other than a timeout ends the connection.
    fn with(&mut self, at: usize, act: impl FnOnce(&mut Way) -> Result<()>) {
        let Some(way) = &mut self.places[at] else {
            return;
        };
        if let Err(error) = act(way)
            && !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
        {
            self.places[at] = None;
        }
    }

    fn dialed(&self, turns: &[Turn]) -> Result<Bent> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.identity.address.port()))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        Ok(Bent {
            stream,
            sent: 0,
            turns: turns.to_vec(),
        })
    }

    fn shaken(&self, who: u8, turns: &[Turn]) -> Result<Way> {
        let key = Psk::new(PSK, HOSTNQN, &self.identity.subnqn);
        let right = key.identity.clone();
        let mut key = match who {
            2 => key.called(""),
            3 => key.called(&"x".repeat(250)),
            4 => key.called(&format!("{right} ")),
            5 => key.called(&right.replace("NVMe0R01", "NVMe1R02")),
            6 => key.called("NVMe0R01 a b\n"),
            _ => key,
        };
        if who == 1 {
            key.key[0] ^= 1;
        }
        let stream = self.dialed(turns)?;
        let setup = key.setup().map_err(Error::other)?;
        let tls = setup
            .connect("", stream)
            .map_err(|error| Error::other(error.to_string()))?;
        Ok(Way::Tls(Box::new(tls)))
    }

    fn bytes(&self, said: Said) -> Vec<u8> {
        match said {
            Said::Greeting => Pdu::ic_req(Digests::OFF).bytes(Digests::OFF),
            Said::Connect => {
                let command = Command::connect(1, 0, 31, Sgl::InCapsule(1024));
                let data = self.identity.connect_data(0xffff);
                Pdu::capsule(command, &data).bytes(Digests::OFF)
            }
            Said::Identify => {
                let command = Command::new(6, 2).cdw(10, 1).sgl(Sgl::Transport(4096));
                Pdu::capsule(command, &[]).bytes(Digests::OFF)
            }
            Said::Bytes(bytes) => bytes,
            Said::Many(byte, count) => vec![byte; count as usize],
        }
    }

    /// Checks that a regular host gets its ICResp and can connect.
    fn served(&self) -> Result<()> {
        let mut way = self.shaken(0, &[])?;
        let Way::Tls(tls) = &mut way else {
            return Err(Error::other("no TLS"));
        };
        tls.get_mut().stream.set_read_timeout(Some(SERVES))?;
        tls.write_all(&Pdu::ic_req(Digests::OFF).bytes(Digests::OFF))?;
        let mut answer = [0; 128];
        tls.read_exact(&mut answer)?;
        if answer[0] != 1 {
            return Err(Error::other(format!("no ICResp: {answer:?}")));
        }
        tls.write_all(&self.bytes(Said::Connect))?;
        let mut answer = [0; 24];
        tls.read_exact(&mut answer)?;
        if answer[0] != 5 || answer[22..] != [0, 0] {
            return Err(Error::other(format!("not connected: {answer:?}")));
        }
        Ok(())
    }
}

/// A TCP connection that applies mutations to what is written.
#[derive(Debug)]
struct Bent {
    stream: TcpStream,
    sent: usize,
    turns: Vec<Turn>,
}

impl Read for Bent {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        self.stream.read(bytes)
    }
}

impl Write for Bent {
    fn write(&mut self, given: &[u8]) -> Result<usize> {
        let begin = self.sent;
        self.sent += given.len();
        let within = |at: usize| at.checked_sub(begin).filter(|at| *at < given.len());
        let mut bytes = given.to_vec();
        let mut slow = false;
        for turn in &self.turns {
            match turn {
                Turn::Bits(at, bits) => {
                    if let Some(byte) = within(*at).and_then(|at| bytes.get_mut(at)) {
                        *byte ^= bits;
                    }
                }
                Turn::Cut(at) => {
                    if let Some(at) = within(*at) {
                        bytes.truncate(at);
                        self.stream.write_all(&bytes)?;
                        return Err(ErrorKind::BrokenPipe.into());
                    }
                }
                Turn::Twice(at) if within(*at).is_some() => bytes.extend(bytes.clone()),
                Turn::Insert(at, more) if within(*at).is_some() => {
                    bytes.splice(0..0, more.iter().copied());
                }
                Turn::Drop(at) if within(*at).is_some() => bytes.clear(),
                Turn::Slow(at) => slow |= within(*at).is_some(),
                _ => {}
            }
        }
        for part in bytes.chunks(if slow { 1 } else { usize::MAX }) {
            self.stream.write_all(part)?;
        }
        Ok(given.len())
    }

    fn flush(&mut self) -> Result<()> {
        self.stream.flush()
    }
}
