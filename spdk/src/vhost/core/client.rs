//! A connected client: carries out what its messages ask for, here and on the worker.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use spdk_gate::vhost_user::frontend::{Action, Frontend, Offer};
use spdk_gate::vhost_user::inflight::Area;
use spdk_gate::vhost_user::message::{CONFIG_SPACE, Header, Message, config_changed};
use spdk_gate::vhost_user::ring::locate;
use spdk_gate::vhost_user::room::Room;
use spdk_gate::vhost_user::{feature, protocol};

use super::call::Call;
use super::control::Door;
use super::device::{Device, Io};
use super::dirty::Dirty;
use super::inflight;
use super::journal::Journal;
use super::memory::{Map, Memory};
use super::queue::{Logged, Parts, Queue};
use super::room;
use super::session::{Answer, Handover, Session, Stopped};
use super::socket::{Connection, Read, send, wait};
use super::worker::Job;
use crate::sigbus::Lost;

/// How long the worker may be too busy to accept a job.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// How long requests may take to complete on their own during teardown, before they are aborted.
const PATIENCE: Duration = Duration::from_millis(300);

/// Replaced memory tables that requests may still use: the bound for backpressure.
const MAX_RETIRED: usize = 8;

/// Retry interval of what could not be done at once.
const RETRY: Duration = Duration::from_millis(100);

/// Why a client's session ends.
pub(super) enum End {
    /// The client has closed its connection.
    Gone,
    /// The device is being removed.
    Closed,
    /// The client violated the protocol.
    Broke(String),
}

impl<E: std::error::Error> From<E> for End {
    fn from(error: E) -> Self {
        Self::Broke(error.to_string())
    }
}

/// A client, and the resources that it has shared.
pub(super) struct Client<'a, D: Device> {
    door: &'a mut Door<D>,
    connection: Connection,
    frontend: Frontend,
    spoke: bool,
    lost: Arc<Lost>,
    /// Bounds what the client may have mapped.
    room: Arc<Room>,
    memory: Option<Arc<Memory>>,
    /// Replaced memory that requests in flight may still use.
    retired: Vec<Arc<Memory>>,
    session: Option<NonNull<Session<D::Io>>>,
    calls: HashMap<usize, Call>,
    /// Rings that are being stopped, while their receiver is not awaited.
    stopping: HashMap<usize, Receiver<Stopped<D::Io>>>,
    dirty: Option<Dirty>,
    inflight: Option<(Arc<Map>, Area)>,
    channel: Option<OwnedFd>,
    config_pending: bool,
}

impl<'a, D: Device> Client<'a, D> {
    pub(super) fn new(door: &'a mut Door<D>, connection: Connection) -> Self {
        let offer = Offer {
            features: door.device.features() | feature::CORE,
            protocol: protocol::CORE,
            rings: usize::from(door.device.max_queues()),
            told: door.device.queue_num().into(),
        };
        let lost = Lost::new(&*door.shared.bell);
        Self {
            door,
            connection,
            frontend: Frontend::new(offer),
            spoke: false,
            lost,
            room: room::of_a_client(),
            memory: None,
            retired: Vec::new(),
            session: None,
            calls: HashMap::new(),
            stopping: HashMap::new(),
            dirty: None,
            inflight: None,
            channel: None,
            config_pending: false,
        }
    }

    /// Waits for the next event and handles it. `first` is the deadline of the first message.
    pub(super) fn turn(&mut self, first: Instant) -> Result<(), End> {
        let first = (!self.spoke).then_some(first);
        let deadline = self.connection.deadline().or(first);
        let now = Instant::now();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
        let retry = (self.config_pending || !self.retired.is_empty()).then_some(RETRY);
        let limit = left.into_iter().chain(retry).min();
        let events = self.wait(libc::POLLIN, limit)?;
        self.attend()?;
        if events != 0 {
            match self.connection.read().map_err(End::Broke)? {
                Read::Gone => return Err(End::Gone),
                Read::More => {}
                Read::Whole(header, message, payload, fds) => {
                    self.spoke = true;
                    return self.handle(&header, &message, &payload, fds);
                }
            }
        }
        let deadline = self.connection.deadline().or(first);
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let what = "a client must speak within 10 s, and end a message within 5 s";
            return Err(End::Broke(what.to_owned()));
        }
        Ok(())
    }

    /// Waits for the client, other clients, or the bell. Returns the client's events.
    fn wait(&mut self, events: i16, limit: Option<Duration>) -> Result<i16, End> {
        let listener = self.door.listener.as_ref().map(AsRawFd::as_raw_fd);
        let bell = Some(self.door.shared.bell.as_raw_fd());
        let client = Some(self.connection.as_raw_fd());
        let list = [
            (client, events),
            (listener, libc::POLLIN),
            (bell, libc::POLLIN),
        ];
        let [client, others, rung] = wait(list, limit);
        if others != 0 {
            self.door.turn_away();
        }
        if rung != 0 {
            self.door.shared.bell.hush();
        }
        Ok(client)
    }

    /// Handles the causes of the bell.
    fn attend(&mut self) -> Result<(), End> {
        if self.door.shared.is_closing() {
            return Err(End::Closed);
        }
        if self.lost.is_hit() {
            let what = "memory that is shared must stay: its file was cut";
            return Err(End::Broke(what.to_owned()));
        }
        self.config_pending |= self.door.shared.take_config();
        if self.config_pending
            && let Some(channel) = &self.channel
        {
            // Retried later if the channel is full, dropped if it is broken.
            let sent = send(channel.as_raw_fd(), &config_changed(), None);
            let full = |error: std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
            self.config_pending = sent.is_err_and(full);
        } else {
            self.config_pending = false;
        }
        self.retired.retain(|memory| Arc::strong_count(memory) > 1);
        Ok(())
    }

    fn handle(
        &mut self,
        header: &Header,
        message: &Message,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<(), End> {
        let action = self.frontend.apply(message)?;
        let mut fd = fds.into_iter();
        let mut replied = true;
        match action {
            Action::Reply(number) => self.reply(header, &number.to_le_bytes(), None)?,
            Action::Config => {
                let reply = self.config(message, payload)?;
                self.reply(header, &reply, None)?;
            }
            Action::StopRing { ring } => {
                let base = self.stop(ring)?;
                let reply = u64::from(base) << 32 | ring as u64;
                self.reply(header, &reply.to_le_bytes(), None)?;
            }
            Action::MapLog { size, offset } => {
                if let Some(file) = fd.next() {
                    let map = Map::new(&file, offset, size, &self.lost, &self.room)?;
                    self.dirty = Some(Dirty::new(Arc::new(map)));
                }
                self.relog()?;
                self.reply(header, &0_u64.to_le_bytes(), None)?;
            }
            Action::MakeInflight(area) => {
                let (area, file) = inflight::make(area)?;
                self.reply(header, &area.bytes(), Some(&file))?;
            }
            action => {
                self.act(action, message, fd.collect())?;
                replied = false;
            }
        }
        let acknowledged = self.frontend.protocol() & protocol::REPLY_ACK != 0;
        if !replied && header.needs_reply && acknowledged {
            self.reply(header, &0_u64.to_le_bytes(), None)?;
        }
        Ok(())
    }

    fn act(&mut self, action: Action, message: &Message, fds: Vec<OwnedFd>) -> Result<(), End> {
        match action {
            Action::MapMemory => {
                if let Message::SetMemTable(table) = message {
                    let dma = self.door.device.needs_dma();
                    self.make_room(table.bytes())?;
                    let memory = Memory::new(table, &fds, &self.lost, &self.room, dma)?;
                    if dma && !memory.is_registered() {
                        let what = "memory must be on huge pages: a device reads and writes it";
                        return Err(End::Broke(what.to_owned()));
                    }
                    self.remap(Arc::new(memory))?;
                }
                self.start()
            }
            Action::MapInflight(area) => {
                if let Some(file) = fds.into_iter().next() {
                    let map = Map::new(&file, area.offset, area.size, &self.lost, &self.room)?;
                    self.inflight = Some((Arc::new(map), area));
                }
                Ok(())
            }
            // Rings are polled, so the kick fd is closed.
            Action::Kick => self.start(),
            Action::Call { ring } => {
                let call = fds.into_iter().next().map(Call::new).transpose()?;
                self.set_call(ring, call)
            }
            Action::Enable { ring } => self.enable(ring),
            Action::Relog => self.relog(),
            Action::StopAll => {
                let running: Vec<_> = self.frontend.running().collect();
                running
                    .into_iter()
                    .try_for_each(|ring| self.stop(ring).map(drop))
            }
            Action::Channel => {
                self.channel = fds.into_iter().next();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn reply(&self, header: &Header, payload: &[u8], fd: Option<&OwnedFd>) -> Result<(), End> {
        let size = u32::try_from(payload.len()).unwrap_or_default();
        let sent = self.connection.send(header.reply(size), payload, fd);
        sent.map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => {
                End::Broke("a client must read its replies".to_owned())
            }
            _ => End::Gone,
        })
    }

    /// Returns the requested part of the configuration space, behind the request's own header.
    fn config(&self, message: &Message, payload: &[u8]) -> Result<Vec<u8>, End> {
        let mut space = [0; CONFIG_SPACE];
        self.door.device.config(&mut space);
        let Message::GetConfig(span) = message else {
            return Ok(Vec::new());
        };
        let part = space.get(span.offset..span.offset + span.length);
        let head = payload.get(..12).unwrap_or_default();
        Ok([head, part.unwrap_or_default()].concat())
    }
}

mod rings;
