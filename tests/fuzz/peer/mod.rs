//! Fuzzer of the NVMe/TCP initiator: a target that sends valid and malformed answers while a path to it
//! is created, used and deleted.

mod steps;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;
use tonic::Code;

use super::common::nvme_tcp::{Command, Digests, Host, Identity, Pdu, Sgl, kind};
use super::common::nvme_tcp_peer::{NQN, Peer, ic_resp};
use super::common::{Client, Options, Resource, nqn_of, subsystem, tcp_controller, tcp_path};
use super::door::{Door, Step};
use super::draw::Draw;
use super::world::World;
use steps::{Action, Asks, Reply, action, answer, bent, list, told, turn};

/// The NVMe/TCP initiator's door.
pub struct PeerDoor;

/// IDs of the objects that cases create.
const CONTROLLER: &str = "fuzzed";
const OVER: &str = "over-fuzzed";

/// Timeout of a path's creation; the case continues without it.
const ATTACH: Duration = Duration::from_millis(600);

/// Timeout of I/O.
const ANSWER: Duration = Duration::from_millis(300);

/// Deadline of a case's cleanup: a connect attempt has its own timeout of 10 s.
const GONE: Duration = Duration::from_secs(20);

#[async_trait::async_trait]
impl Door for PeerDoor {
    fn name(&self) -> &'static str {
        "peer"
    }

    fn options(&self) -> Options {
        Options::default().args(["--remote-io-timeout", "1"])
    }

    fn draw(&self, draw: &mut Draw) -> Vec<Step> {
        let mut actions = Vec::new();
        if draw.one_in(2) {
            for _ in 0..1 + draw.below(3) {
                let before = if draw.one_in(2) {
                    told(draw)
                } else {
                    answer(draw)
                };
                actions.push(before);
            }
        }
        actions.push(Action::Attach);
        let count = 2 + draw.below(12);
        actions.extend((0..count).map(|_| action(draw)));
        let steps = actions.into_iter();
        steps
            .map(|action| serde_json::to_value(action).expect("JSON"))
            .collect()
    }

    async fn prepare(&self, world: &mut World) {
        let client = &world.fixture.client;
        let over = subsystem(client, OVER, json!({})).await;
        let (_, port) = tcp_controller(client, &over).await;
        world.place = Some(port);
    }

    async fn run(&self, world: &mut World, steps: &[Step]) -> Result<(), String> {
        let mut play = Play::new(world);
        for step in steps {
            let action = serde_json::from_value(step.clone()).expect("a step of this door");
            play.act(action).await;
        }
        play.end().await
    }
}

type Answers = Arc<Mutex<Vec<(Asks, u8, Reply)>>>;

/// A running case.
struct Play {
    client: Client,
    identity: Identity,
    peer: Peer,
    answers: Answers,
    host: Option<(Host, Host)>,
}

impl Play {
    fn new(world: &World) -> Self {
        let peer = Peer::start();
        let answers = Answers::default();
        let script = Arc::clone(&answers);
        peer.script(move |ask| turn(&mut script.lock(), ask));
        let port = world.place.expect("the door has been prepared");
        Self {
            client: world.fixture.client.clone(),
            identity: Identity::new(port, &nqn_of(OVER)),
            peer,
            answers,
            host: None,
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Answer(asks, skip, reply) => self.answers.lock().push((asks, skip, reply)),
            Action::Greet(bend) => self.peer.greet_with(bent(ic_resp(), bend)),
            Action::Identify(true, at, bytes) => {
                self.peer.change(|data| data.put(at.into(), &bytes));
            }
            Action::Identify(false, at, bytes) => self.peer.change(|data| {
                if data.namespaces.contains_key(&1) {
                    data.put_in(1, at.into(), &bytes);
                }
            }),
            Action::Registers(bits, version) => self.peer.change(|data| {
                data.capabilities ^= bits;
                data.version = version;
            }),
            Action::List(which) => self.peer.change(|data| data.list = list(which)),
            Action::Ana(page) => self.peer.change(|data| data.ana = page),
            Action::Namespace(nsid, comes) => self.peer.change(|data| {
                if comes {
                    data.add(nsid);
                } else {
                    data.namespaces.remove(&nsid);
                }
            }),
            Action::Attach => self.attach().await,
            Action::Io(opcode, block, blocks, waits) => self.io(opcode, block, blocks, waits),
            Action::Tell(event, information) => {
                self.peer.tell(event, information);
            }
            Action::CloseAll => self.peer.close_all(),
            Action::Mute(mute) => self.peer.mute(mute),
            Action::Wait(moment) => tokio::time::sleep(Duration::from_millis(moment.into())).await,
            Action::Again => {
                let path = format!("{}/nvmePaths/path", controller());
                let delete = self.client.call("DeleteNvmePath", json!({ "name": path }));
                let _ = tokio::time::timeout(ATTACH, delete).await;
                self.attach().await;
            }
            Action::Api(which) => self.call(which).await,
        }
    }

    async fn attach(&mut self) {
        let client = &self.client;
        let make = async {
            let object = json!({ "multipath": "NVME_MULTIPATH_DISABLE" });
            let controllers = Resource::new(client, "NvmeRemoteController");
            let _ = controllers.create("", CONTROLLER, object).await;
            let path = tcp_path(self.peer.port, NQN);
            let paths = Resource::new(client, "NvmePath");
            paths.create(&controller(), "path", path).await?;
            let spec = json!({ "spec": { "volume_name_ref": format!("{CONTROLLER}n1") } });
            let namespaces = Resource::new(client, "NvmeNamespace");
            namespaces.create(&over(), "fuzzed", spec).await
        };
        // After the timeout, the creation continues in the target while the case goes on.
        let made = tokio::time::timeout(ATTACH, make).await;
        if self.host.is_none() && made.is_ok_and(|made| made.is_ok()) {
            self.host = host(&self.identity).ok();
        }
    }

    fn io(&mut self, opcode: u8, block: u32, blocks: u16, waits: bool) {
        let Some((_, io)) = &mut self.host else {
            return;
        };
        let cid = io.cid();
        let length = u32::from(blocks) * 512;
        let command = Command::io(opcode, cid, 1, block.into(), blocks);
        let sent = match opcode {
            1 if length < 4096 => {
                let command = command.sgl(Sgl::InCapsule(length));
                io.send(&Pdu::capsule(command, &vec![0x3c; length as usize]))
            }
            1 | 2 => io.send(&Pdu::capsule(command.sgl(Sgl::Transport(length)), &[])),
            _ => io.send(&Pdu::capsule(command.sgl(Sgl::None), &[])),
        };
        let mut alive = sent.is_ok();
        let end = Instant::now() + ANSWER;
        while alive && waits && Instant::now() < end {
            match io.receive_within(end.saturating_duration_since(Instant::now())) {
                Ok(answer) if answer.kind == kind::CAPSULE_RESP => return,
                Ok(answer) if answer.kind == kind::R2T => {
                    let (ttag, offset, length) = answer.r2t();
                    let data = vec![0xc3; length as usize];
                    let pdu = Pdu::h2c_data(answer.u16(8), ttag, offset, &data);
                    alive = io.send(&pdu).is_ok();
                }
                Ok(_) => {}
                Err(error) => alive = error.kind() == std::io::ErrorKind::TimedOut,
            }
        }
        if !alive {
            self.host = host(&self.identity).ok();
        }
    }

    async fn call(&self, which: u8) {
        let (method, request) = match which {
            0 => (
                "ListNvmeRemoteNamespaces",
                json!({ "parent": controller() }),
            ),
            1 => ("ResetNvmeRemoteController", json!({ "name": controller() })),
            2 => ("ListNvmePaths", json!({ "parent": controller() })),
            3 => ("GetNvmeRemoteController", json!({ "name": controller() })),
            _ => (
                "StatsNvmePath",
                json!({ "name": format!("{}/nvmePaths/path", controller()) }),
            ),
        };
        let _ = tokio::time::timeout(ATTACH, self.client.call(method, request)).await;
    }

    /// Deletes all objects of the case; the error names the object that cannot be deleted.
    async fn end(mut self) -> Result<(), String> {
        self.host = None;
        let end = Instant::now() + GONE;
        // A path whose creation was abandoned may appear later: retry all deletions.
        loop {
            let mut last = None;
            for (method, name) in [
                (
                    "DeleteNvmeNamespace",
                    format!("{}/nvmeNamespaces/fuzzed", over()),
                ),
                ("DeleteNvmePath", format!("{}/nvmePaths/path", controller())),
                ("DeleteNvmeRemoteController", controller()),
            ] {
                let gone = self.client.call(method, json!({ "name": name })).await;
                last = match gone {
                    Err(status) if status.code() != Code::NotFound => Some((name, status)),
                    _ => None,
                };
            }
            let Some((name, status)) = last else {
                return Ok(());
            };
            if Instant::now() > end {
                return Err(format!("{name} cannot be deleted: {status}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn controller() -> String {
    format!("nvmeRemoteControllers/{CONTROLLER}")
}

fn over() -> String {
    format!("nvmeSubsystems/{OVER}")
}

fn host(identity: &Identity) -> std::io::Result<(Host, Host)> {
    let mut admin = identity.dial()?;
    admin.negotiate(Digests::OFF)?;
    admin.connect(identity, 0, 0xffff)?;
    admin.enable()?;
    let mut io = identity.dial()?;
    io.negotiate(Digests::OFF)?;
    io.connect(identity, 1, admin.cntlid)?;
    Ok((admin, io))
}
