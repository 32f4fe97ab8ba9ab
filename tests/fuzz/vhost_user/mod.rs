//! Fuzzer of vhost-user: a client of a device's socket, and a guest's driver.

mod steps;

use std::fs::File;
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::bend::Bend;
use super::common::{
    Client, Options as TargetOptions, Resource, blk_spec, lun_spec, malloc, poll_blocking,
    scsi_spec,
};
use super::door::{Door, Step};
use super::draw::Draw;
use super::vhost_user_client::{
    Connection, Descriptor, Disk, Kind, Message, Pages, Queue, Session, request,
};
use super::world::{World, text};
use steps::{Action, DEVICES, How, Part, Place, case};

/// The vhost-user door.
pub struct VhostUser;

/// The attacked devices: socket and kind.
const NAMES: [(&str, Kind); DEVICES] = [("fuzzed-blk", Kind::Blk), ("fuzzed-scsi", Kind::Scsi)];

/// Read timeout: most answers arrive at once or never.
const ANSWER: Duration = Duration::from_millis(40);

/// Deadline for a device to serve its next client.
const SERVES: Duration = Duration::from_secs(10);

/// Guest address of data buffers, beyond the rings.
const DATA: u64 = 4 << 20;

/// Guest addresses of request headers and of indirect tables.
const HEADERS: u64 = 3 << 20;
const TABLES: u64 = HEADERS + (512 << 10);

#[async_trait::async_trait]
impl Door for VhostUser {
    fn name(&self) -> &'static str {
        "vhost-user"
    }

    fn options(&self) -> TargetOptions {
        TargetOptions::hugepages()
    }

    fn draw(&self, draw: &mut Draw) -> Vec<Step> {
        let steps = case(draw).into_iter();
        steps
            .map(|action| serde_json::to_value(action).expect("JSON"))
            .collect()
    }

    async fn prepare(&self, world: &mut World) {
        let client = &world.fixture.client;
        let blk = malloc(client, "fuzzed-blk-volume", 8).await;
        let scsi = malloc(client, "fuzzed-scsi-volume", 8).await;
        Resource::new(client, "VirtioBlk")
            .created("", "fuzzed-blk", blk_spec(&blk))
            .await;
        Resource::new(client, "VirtioScsiController")
            .created("", "fuzzed-scsi", scsi_spec())
            .await;
        Resource::new(client, "VirtioScsiLun")
            .created("", "fuzzed-scsi", lun_spec("fuzzed-scsi", &scsi))
            .await;
    }

    async fn run(&self, world: &mut World, steps: &[Step]) -> Result<(), String> {
        let sockets = NAMES.map(|(name, _)| world.target().ctrlr_dir().join(name));
        let client = world.fixture.client.clone();
        let mut play = Play {
            sockets,
            sessions: Default::default(),
            used: 0,
        };
        for step in steps {
            let action: Action = serde_json::from_value(step.clone()).expect("a step of this door");
            if let Action::Api(which) = action {
                api(&client, which).await;
                continue;
            }
            // The client's own assertions end a session that has become inconsistent.
            let acted = std::panic::catch_unwind(AssertUnwindSafe(|| play.act(&action)));
            if acted.is_err() {
                play.sessions = Default::default();
            }
        }
        play.sessions = Default::default();
        play.serve()
    }
}

async fn api(client: &Client, which: u8) {
    // The result is ignored: the API has its own tests.
    let luns = Resource::new(client, "VirtioScsiLun");
    let _ = match which {
        0 => client
            .call("StatsVirtioBlk", json!({ "name": "virtioBlks/fuzzed-blk" }))
            .await
            .map(drop),
        1 => luns
            .create(
                "",
                "fuzzed-more",
                lun_spec("fuzzed-scsi", "volumes/fuzzed-more"),
            )
            .await
            .map(drop),
        2 => luns.delete("virtioScsiLuns/fuzzed-more").await,
        3 => {
            let object = json!({ "block_size": 512, "blocks_count": 4096 });
            Resource::new(client, "NullVolume")
                .create("", "fuzzed-more", object)
                .await
                .map(drop)
        }
        4 => {
            Resource::new(client, "NullVolume")
                .delete("nullVolumes/fuzzed-more")
                .await
        }
        _ => client.call("ListVirtioBlks", json!({})).await.map(drop),
    };
}

/// A connection, with the driver's state as far as it was set up.
enum Way {
    Bare(Connection, Vec<Queue>),
    Session(Box<Session>),
}

struct Play {
    sockets: [PathBuf; DEVICES],
    sessions: [Option<Way>; DEVICES],
    used: u64,
}

impl Play {
    fn act(&mut self, action: &Action) {
        match action {
            Action::Open(at, how) => {
                self.sessions[*at] = None;
                self.sessions[*at] = self.open(*at, *how);
            }
            Action::Message(at, number, flags, words, fds, bend) => {
                let mut message = Message::new(*number);
                message.flags = *flags;
                for word in words {
                    message = message.u64s([*word]);
                }
                let file = memory(self.sessions[*at].as_ref());
                for _ in 0..*fds {
                    message = message.fd(&file);
                }
                self.send(*at, &message, *bend);
            }
            Action::Usual(at, which, ring, bend) => {
                if let Some(message) = self.usual(*at, *which, *ring) {
                    self.send(*at, &message, *bend);
                }
            }
            Action::Request(at, queue, header, chain) => self.request(*at, *queue, header, chain),
            Action::Right(at, sector, sectors) => self.right(*at, *sector, *sectors),
            Action::Poke(at, queue, part, offset, value) => {
                let Some(Way::Session(session)) = &self.sessions[*at] else {
                    return;
                };
                let Some(queue) = session.queues.get(usize::from(*queue)) else {
                    return;
                };
                let base = [queue.descriptors, queue.available, queue.used][usize::from(*part) % 3];
                let at = base + u64::from(*offset) * 2;
                session.guest.store(at, *value);
            }
            Action::Kick(at, queue) => {
                let queues = match &self.sessions[*at] {
                    Some(Way::Session(session)) => &session.queues,
                    Some(Way::Bare(_, queues)) => queues,
                    None => return,
                };
                if let Some(queue) = queues.get(usize::from(*queue)) {
                    queue.kick();
                }
            }
            Action::Read(at) => self.read(*at),
            Action::Raw(at, bytes) => {
                if let Some(connection) = self.connection(*at)
                    && connection.send_bytes(bytes, &[]).is_err()
                {
                    self.sessions[*at] = None;
                }
            }
            Action::Resize(at, length) => {
                if let Some(Way::Session(session)) = self.sessions[*at].take() {
                    // The truncation would affect the client's own mapping: drop the mapping first.
                    let file = session.guest.regions[0].file.clone();
                    let Session {
                        connection, queues, ..
                    } = *session;
                    self.sessions[*at] = Some(Way::Bare(connection, queues));
                    let _ = file.set_len((*length).into());
                }
            }
            Action::Close(at) => self.sessions[*at] = None,
            Action::Api(_) => {}
        }
    }

    fn open(&self, at: usize, how: How) -> Option<Way> {
        let (_, kind) = NAMES[at];
        let options = kind.options().pages(Pages::Ordinary);
        let socket = &self.sockets[at];
        if matches!(how, How::Open) {
            let connection = Connection::open(socket).ok()?;
            connection.set_limit(ANSWER);
            return Some(Way::Bare(connection, Vec::new()));
        }
        let mut session = Session::negotiated(socket, &options).ok()?;
        session.connection.set_limit(ANSWER);
        if !matches!(how, How::Negotiated) {
            session.share_memory().ok()?;
        }
        if matches!(how, How::Started) {
            session.start_queues().ok()?;
        }
        Some(Way::Session(Box::new(session)))
    }

    fn connection(&mut self, at: usize) -> Option<&mut Connection> {
        match self.sessions[at].as_mut()? {
            Way::Bare(connection, _) => Some(connection),
            Way::Session(session) => Some(&mut session.connection),
        }
    }

    fn send(&mut self, at: usize, message: &Message, bend: Bend) {
        let bytes = bend.bent(message.encode(), 8);
        if bytes.is_empty() {
            return;
        }
        if let Some(connection) = self.connection(at)
            && connection.send_bytes(&bytes, &message.borrowed()).is_err()
        {
            self.sessions[at] = None;
        }
    }

    /// Returns a regular message of a driver.
    fn usual(&self, at: usize, which: u8, ring: u8) -> Option<Message> {
        let Way::Session(session) = self.sessions[at].as_ref()? else {
            return None;
        };
        let number = u32::from(ring);
        let queue = session
            .queues
            .get(usize::from(ring))
            .or(session.queues.first())?;
        let region = session.guest.regions.first()?;
        Some(match which {
            0 => session.guest.table(),
            1..6 => queue.setup(&session.guest)[usize::from(which) - 1].clone(),
            6 => queue.set_enable(true),
            7 => queue.set_enable(false),
            8 => queue.get_base(),
            9 => Message::new(request::SET_VRING_BASE).u32s([number, 7]),
            10 => Message::new(request::GET_INFLIGHT_FD)
                .u64s([0, 0])
                .bytes(&[2, 0, 128, 0, 0, 0, 0, 0]),
            11 => Message::new(request::SET_INFLIGHT_FD)
                .u64s([4096, 0])
                .bytes(&[2, 0, 128, 0, 0, 0, 0, 0])
                .fd(&region.file),
            12 => Message::new(request::ADD_MEM_REG)
                .u64s([0])
                .u64s(region.words())
                .fd(&region.file),
            _ => Message::new(request::REM_MEM_REG)
                .u64s([0])
                .u64s(region.words()),
        })
    }

    fn request(&mut self, at: usize, queue: u8, header: &[u8], chain: &[Part]) {
        self.used = (self.used + 1) % 64;
        let (header_at, table) = (HEADERS + self.used * 256, TABLES + self.used * 256);
        let Some(Way::Session(session)) = &mut self.sessions[at] else {
            return;
        };
        let session = &mut **session;
        session.guest.write(header_at, header);
        let end = session.guest.end();
        let descriptors: Vec<Descriptor> = chain
            .iter()
            .map(|part| Descriptor {
                address: match part.place {
                    Place::Header => header_at,
                    Place::Data(offset) => DATA + u64::from(offset),
                    Place::End(before) => end.wrapping_sub(before.into()),
                    Place::Table => table,
                    Place::Any(address) => address,
                },
                length: part.length,
                flags: part.flags,
                next: 0,
            })
            .collect();
        // Write the chain to the indirect table as well, for descriptors that point there.
        for (n, descriptor) in descriptors.iter().enumerate().take(16) {
            let linked = if n + 1 < descriptors.len() {
                descriptor.then(n as u16 + 1)
            } else {
                *descriptor
            };
            session.guest.write(table + n as u64 * 16, &linked.encode());
        }
        let Some(ring) = session.queues.get_mut(usize::from(queue)) else {
            return;
        };
        while ring.take_used(&session.guest).is_some() {}
        ring.submit(&session.guest, &descriptors);
    }

    /// Submits a valid request and waits briefly for its completion.
    fn right(&mut self, at: usize, sector: u32, sectors: u8) {
        let Some(Way::Session(session)) = self.sessions[at].take() else {
            return;
        };
        let mut disk = Disk {
            session: *session,
            kind: NAMES[at].1,
        };
        disk.begin_read(sector, usize::from(sectors) * 512);
        let queue = disk.kind.queue();
        let session = &mut disk.session;
        session.queues[queue].wait_used(&session.guest, ANSWER);
        self.sessions[at] = Some(Way::Session(Box::new(disk.session)));
    }

    fn read(&mut self, at: usize) {
        let Some(connection) = self.connection(at) else {
            return;
        };
        let ended = loop {
            match connection.receive() {
                Ok(_) => {}
                Err(error) => break error.kind() == std::io::ErrorKind::UnexpectedEof,
            }
        };
        if ended {
            self.sessions[at] = None;
        }
    }

    /// Checks that each device serves its next client.
    fn serve(&self) -> Result<(), String> {
        for (socket, (name, kind)) in self.sockets.iter().zip(NAMES) {
            let options = kind.options().pages(Pages::Ordinary);
            let mut last = None;
            let served = poll_blocking(SERVES, || {
                let used = std::panic::catch_unwind(|| {
                    Disk::open_with(kind, socket, &options)
                        .and_then(|mut disk| disk.verify(8, 8192, 5))
                });
                match used {
                    Ok(Ok(())) => Some(()),
                    Ok(Err(error)) => {
                        last = Some(error.to_string());
                        None
                    }
                    Err(panic) => {
                        last = Some(text(&*panic));
                        None
                    }
                }
            });
            served.ok_or_else(|| format!("{name} does not serve its next client: {last:?}"))?;
        }
        Ok(())
    }
}

/// Returns a file to pass: guest memory, or a pipe.
fn memory(place: Option<&Way>) -> File {
    let file = match place {
        Some(Way::Session(session)) => session.guest.regions[0].file.try_clone().ok(),
        _ => None,
    };
    file.unwrap_or_else(|| {
        let pipe = std::io::pipe().expect("a pipe");
        File::from(pipe.0.as_fd().try_clone_to_owned().expect("a descriptor"))
    })
}
