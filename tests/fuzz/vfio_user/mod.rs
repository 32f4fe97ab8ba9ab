//! Fuzzer of vfio-user: a client of a device's socket, and a guest's driver.

mod steps;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use super::common::vfio_user::{
    BASE, Command, DATA, Guest, Header, LISTS, Link, Memory, PAGE, Queue, READ, SIZE, WRITE, Which,
    command, map_at,
};
use super::common::{Client, Options as TargetOptions, Resource, pcie_export, poll_blocking};
use super::door::{Door, Step};
use super::draw::Draw;
use super::world::{World, text};
use steps::{Action, DEVICES, Data, Entry, How, case};

/// The vfio-user door.
pub struct VfioUser;

/// IDs of the attacked devices.
const NAMES: [&str; DEVICES] = ["fuzzed-one", "fuzzed-two"];

/// Read timeout: most answers arrive at once or never.
const ANSWER: Duration = Duration::from_millis(60);

/// Timeout of a version negotiation: the previous client may still be in teardown.
const OPEN: Duration = Duration::from_millis(500);

/// Deadline for a device to serve its next client.
const SERVES: Duration = Duration::from_secs(10);

#[async_trait::async_trait]
impl Door for VfioUser {
    fn name(&self) -> &'static str {
        "vfio-user"
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
        let client = world.fixture.client.clone();
        for (function, name) in (1..).zip(NAMES) {
            pcie_export(world.target(), &client, name, 8, function).await;
        }
    }

    async fn run(&self, world: &mut World, steps: &[Step]) -> Result<(), String> {
        let sockets = NAMES.map(|name| world.target().ctrlr_dir().join(name).join("cntrl"));
        let client = world.fixture.client.clone();
        let mut play = Play {
            sockets,
            guests: Default::default(),
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
                play.guests = Default::default();
            }
        }
        play.guests = Default::default();
        play.serve()
    }
}

async fn api(client: &Client, which: u8) {
    // The result is ignored: the API has its own tests.
    let exported = format!("nvmeSubsystems/{}", NAMES[0]);
    let _ = match which {
        0 | 1 => {
            let object = json!({ "block_size": 512, "blocks_count": 4096 });
            let nulls = Resource::new(client, "NullVolume");
            let _ = nulls.create("", "fuzzed-more", object).await;
            let spec = json!({ "spec": { "volume_name_ref": "volumes/fuzzed-more" } });
            let namespaces = Resource::new(client, "NvmeNamespace");
            namespaces.create(&exported, "more", spec).await.map(drop)
        }
        2 | 3 => {
            let name = format!("{exported}/nvmeNamespaces/more");
            Resource::new(client, "NvmeNamespace").delete(&name).await
        }
        4 => {
            let request = json!({ "parent": exported });
            client.call("ListNvmeControllers", request).await.map(drop)
        }
        _ => {
            let request = json!({ "name": exported });
            client.call("StatsNvmeSubsystem", request).await.map(drop)
        }
    };
}

struct Play {
    sockets: [PathBuf; DEVICES],
    guests: [Option<Guest>; DEVICES],
}

impl Play {
    fn act(&mut self, action: &Action) {
        let done = match action {
            Action::Open(at, how) => {
                self.guests[*at] = None;
                self.guests[*at] = self.open(*at, *how).ok();
                return;
            }
            Action::Message(at, ..)
            | Action::Region(at, ..)
            | Action::Map(at, ..)
            | Action::Unmap(at, ..)
            | Action::Commands(at, ..)
            | Action::Lists(at, ..)
            | Action::Bell(at, ..)
            | Action::Read(at)
            | Action::Reset(at)
            | Action::Raw(at, ..)
            | Action::Resize(at, ..) => {
                let Some(guest) = &mut self.guests[*at] else {
                    return;
                };
                (at, used(guest, action))
            }
            Action::Close(at) => {
                self.guests[*at] = None;
                return;
            }
            Action::Api(_) => return,
        };
        // The device has closed the session, or the read timed out.
        if let (at, Err(error)) = done
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.guests[*at] = None;
        }
    }

    fn open(&self, at: usize, how: How) -> io::Result<Guest> {
        let socket = &self.sockets[at];
        let link = if matches!(how, How::Open) {
            Link::open(socket)?
        } else {
            let end = Instant::now() + OPEN;
            loop {
                match Link::attach(socket) {
                    Ok(link) => break link,
                    Err(error) if Instant::now() > end => return Err(error),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        };
        let mut guest = Guest::over(link, Memory::new(BASE, SIZE));
        if matches!(how, How::Booted | How::Started) {
            guest.memory.map(&mut guest.link, 0, SIZE, READ | WRITE)?;
            guest.enable()?;
        }
        if matches!(how, How::Started) {
            let queue = guest.io.clone();
            let _ = guest.create(&queue);
        }
        guest.link.set_limit(ANSWER);
        Ok(guest)
    }

    /// Checks that each device serves its next client.
    fn serve(&self) -> Result<(), String> {
        for (socket, name) in self.sockets.iter().zip(NAMES) {
            let mut last = None;
            let served = poll_blocking(SERVES, || {
                let used = std::panic::catch_unwind(|| Guest::start(socket).verify(3));
                used.map_err(|panic| last = Some(text(&*panic))).ok()
            });
            served.ok_or_else(|| format!("{name} does not serve its next client: {last:?}"))?;
        }
        Ok(())
    }
}

fn used(guest: &mut Guest, action: &Action) -> io::Result<()> {
    match action {
        Action::Message(_, command, flags, body, fds, bend) => {
            let mut header = Header::new(*command, body.len());
            header.flags = *flags;
            let mut bytes = header.bytes();
            bytes.extend(body);
            let bytes = bend.bent(bytes, 4);
            if bytes.is_empty() {
                return Ok(());
            }
            let file = guest.memory.file.try_clone()?;
            let files = vec![file.as_fd(); (*fds).into()];
            guest.link.send_raw(&bytes, &files)?;
            guest.link.receive().map(drop)
        }
        Action::Region(_, true, region, offset, bytes) => {
            guest.link.write_region(*region, *offset, bytes).map(drop)
        }
        Action::Region(_, false, region, offset, bytes) => {
            let length = bytes.len() as u32;
            guest.link.read_region(*region, *offset, length).map(drop)
        }
        Action::Map(_, address, size, offset, flags) => {
            let file: File = guest.memory.file.try_clone()?;
            map_at(&mut guest.link, *address, *size, *offset, *flags, &file).map(drop)
        }
        Action::Unmap(_, address, size) => {
            let mut body = [24_u32.to_le_bytes(), [0; 4]].concat();
            body.extend(address.to_le_bytes());
            body.extend(size.to_le_bytes());
            guest.link.ask(command::DMA_UNMAP, &body, &[]).map(drop)
        }
        Action::Commands(_, is_admin, entries, rings) => {
            let which = if *is_admin { Which::Admin } else { Which::Io };
            for entry in entries {
                guest.push(which, of(entry));
            }
            if *rings {
                guest.ring(which)?;
            }
            Ok(())
        }
        Action::Lists(_, words) => {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            guest.memory.write(LISTS, &bytes);
            Ok(())
        }
        Action::Bell(_, queue, is_cq, value) => guest.doorbell(*queue, *is_cq, *value),
        Action::Read(_) => {
            while guest.completion(Which::Admin, ANSWER / 8).is_some() {}
            while guest.completion(Which::Io, ANSWER / 8).is_some() {}
            Ok(())
        }
        Action::Reset(_) => {
            guest.link.set_limit(OPEN);
            guest.write_register(0x14, 0x0046_0000)?;
            guest.io = Queue::new(1, guest.io.address);
            let end = Instant::now() + OPEN;
            while guest.read_register(0x1c)? & 1 == 1 {
                if Instant::now() > end {
                    return Ok(());
                }
            }
            guest
                .memory
                .write(guest.admin.address, &[0; 2 * PAGE as usize]);
            guest.enable()?;
            guest.link.set_limit(ANSWER);
            Ok(())
        }
        Action::Raw(_, bytes) => guest.link.send_raw(bytes, &[]),
        Action::Resize(_, length) => guest.memory.file.set_len(*length),
        Action::Open(..) | Action::Close(_) | Action::Api(_) => Ok(()),
    }
}

fn of(entry: &Entry) -> Command {
    let mut command = Command::new(entry.opcode)
        .nsid(entry.nsid)
        .fused(entry.fused);
    for (n, word) in entry.words.into_iter().enumerate() {
        command = command.dword(10 + n, word);
    }
    match entry.data {
        Data::Right => command.prps(DATA, DATA + PAGE),
        Data::Prps(first, second) => command.prps(first, second),
        Data::List(first) => command.prps(first, LISTS),
        Data::Sgl(address, length, kind) => command.sgl(address, length, kind),
        Data::Segment(length, kind) => command.sgl(LISTS, length, kind),
    }
}
