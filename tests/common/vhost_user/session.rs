//! A driver's session with a device: feature negotiation, memory, queues.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::connection::Connection;
use super::guest::{Guest, Pages};
use super::message::{Message, feature, flag, protocol, request};
use super::queue::{Descriptor, Queue};

/// Timeout of a request on a device without rate limits.
const LIMIT: Duration = Duration::from_secs(3);

/// Options of a session.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Page size of guest memory.
    pub pages: Pages,
    /// Size of guest memory, bytes.
    pub memory: u64,
    /// Number of queues.
    pub queues: u32,
    /// Descriptors per queue.
    pub queue_size: u16,
    /// Features to acknowledge if offered.
    pub features: u64,
    /// Protocol features to acknowledge if offered.
    pub protocol: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pages: Pages::Huge,
            memory: 8 << 20,
            queues: 1,
            queue_size: 128,
            features: feature::VERSION_1
                | feature::PROTOCOL_FEATURES
                | feature::INDIRECT_DESC
                | feature::BLK_DISCARD
                | feature::SCSI_HOTPLUG
                | feature::SCSI_CHANGE,
            protocol: protocol::MQ
                | protocol::REPLY_ACK
                | protocol::CONFIG
                | protocol::BACKEND_REQ
                | protocol::CONFIGURE_MEM_SLOTS
                | protocol::INFLIGHT_SHMFD,
        }
    }
}

impl Options {
    /// Sets the page size of guest memory.
    pub fn pages(mut self, pages: Pages) -> Self {
        self.pages = pages;
        self
    }

    /// Sets the size of guest memory.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Sets the number of queues.
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = queues;
        self
    }

    /// Adds features.
    pub fn features(mut self, features: u64) -> Self {
        self.features |= features;
        self
    }

    /// Adds protocol features.
    pub fn protocol(mut self, protocol: u64) -> Self {
        self.protocol |= protocol;
        self
    }
}

/// A session in any state of setup.
pub struct Session {
    /// The connection.
    pub connection: Connection,
    /// Guest memory.
    pub guest: Guest,
    /// The queues.
    pub queues: Vec<Queue>,
    /// The negotiated features.
    pub features: u64,
    /// The negotiated protocol features.
    pub protocol: u64,
}

impl Session {
    /// Connects, negotiates features, shares memory and starts the queues.
    pub fn start(socket: &Path, options: &Options) -> io::Result<Self> {
        let mut session = Self::negotiated(socket, options)?;
        session.share_memory()?;
        session.start_queues()?;
        Ok(session)
    }

    /// Connects and negotiates features only: the device has neither memory nor queues yet.
    pub fn negotiated(socket: &Path, options: &Options) -> io::Result<Self> {
        let mut connection = Connection::open(socket)?;
        let offered = connection
            .ask(&Message::new(request::GET_FEATURES))?
            .number();
        let features = offered & options.features;
        let offered = connection
            .ask(&Message::new(request::GET_PROTOCOL_FEATURES))?
            .number();
        let protocol = offered & options.protocol;
        connection.send(&Message::new(request::SET_PROTOCOL_FEATURES).u64s([protocol]))?;
        connection.send(&Message::new(request::SET_OWNER))?;
        connection.send(&Message::new(request::SET_FEATURES).u64s([features]))?;
        let mut guest = Guest::new(options.pages, options.memory);
        let queues =
            (0..options.queues).map(|index| Queue::new(&mut guest, index, options.queue_size));
        let queues = queues.collect();
        Ok(Self {
            connection,
            guest,
            queues,
            features,
            protocol,
        })
    }

    /// Sends the memory table.
    pub fn share_memory(&mut self) -> io::Result<()> {
        let table = self.guest.table();
        self.request(&table)
    }

    /// Sends a message that must succeed, as far as the device reports it (REPLY_ACK).
    pub fn request(&mut self, message: &Message) -> io::Result<()> {
        match self.status(message)? {
            0 => Ok(()),
            status => Err(io::Error::other(format!("{message:?}: {status}"))),
        }
    }

    /// Sends a message; returns its status, or 0 without REPLY_ACK.
    pub fn status(&mut self, message: &Message) -> io::Result<u64> {
        if self.protocol & protocol::REPLY_ACK == 0 {
            self.connection.send(message)?;
            return Ok(0);
        }
        self.connection.acknowledged(message)
    }

    /// Asserts that a message is rejected: the device replies with an error or closes the connection,
    /// and keeps running.
    pub fn refused(&mut self, message: &Message) {
        match self.status(message) {
            Ok(0) => panic!("accepted: {message:?}"),
            Ok(_) => {}
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::BrokenPipe
                ),
                "neither refused nor disconnected within the limit: {error}: {message:?}"
            ),
        }
    }

    /// Sets up and enables all queues.
    pub fn start_queues(&mut self) -> io::Result<()> {
        for number in 0..self.queues.len() {
            self.start_queue(number)?;
        }
        Ok(())
    }

    /// Sets up and enables one queue.
    pub fn start_queue(&mut self, number: usize) -> io::Result<()> {
        for message in self.queues[number].setup(&self.guest) {
            self.request(&message)?;
        }
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            let enable = self.queues[number].set_enable(true);
            self.request(&enable)?;
        }
        Ok(())
    }

    /// Stops a queue; returns its next available index.
    pub fn stop_queue(&mut self, number: usize) -> io::Result<u32> {
        let message = self.queues[number].get_base();
        Ok(self.connection.ask(&message)?.word(4))
    }

    /// Submits a chain of these buffers and waits for its completion; returns the content of the
    /// writable buffers and the number of bytes that the device reports as written.
    pub fn transfer(
        &mut self,
        queue: usize,
        readable: &[&[u8]],
        writable: &[usize],
    ) -> io::Result<Transfer> {
        let mark = self.guest.mark();
        let (chain, places) = self.place(readable, writable);
        let submitted = self.queues[queue].submit(&self.guest, &chain);
        let Some((id, written)) = self.queues[queue].wait_used(&self.guest, LIMIT) else {
            return Err(io::ErrorKind::TimedOut.into());
        };
        if id != u32::from(submitted) {
            return Err(io::Error::other(format!(
                "chain {id} ended, {submitted} was submitted"
            )));
        }
        let parts = places
            .iter()
            .map(|(at, length)| self.guest.read(*at, *length));
        let parts = parts.collect();
        self.guest.release(mark);
        Ok(Transfer { written, parts })
    }

    /// Allocates the buffers, page-aligned; returns their descriptors and the places of the writable
    /// ones.
    pub fn place(
        &mut self,
        readable: &[&[u8]],
        writable: &[usize],
    ) -> (Vec<Descriptor>, Vec<(u64, usize)>) {
        let mut chain = Vec::new();
        for bytes in readable {
            let at = self.guest.allocate(bytes.len() as u64, 4096);
            self.guest.write(at, bytes);
            chain.push(Descriptor::readable(at, bytes.len() as u32));
        }
        let mut places = Vec::new();
        for length in writable {
            let at = self.guest.allocate(*length as u64, 4096);
            self.guest.write(at, &vec![0xee; *length]);
            chain.push(Descriptor::writable(at, *length as u32));
            places.push((at, *length));
        }
        (chain, places)
    }

    /// Returns whether the device closes the connection before the timeout expires.
    pub fn is_ended(&mut self) -> bool {
        self.connection.is_ended()
    }

    /// The reply flag: set in replies, invalid in requests.
    pub const REPLY: u32 = flag::REPLY;
}

/// The result of a chain.
#[derive(Debug)]
pub struct Transfer {
    /// Number of bytes that the device reports as written.
    pub written: u32,
    /// The content of the writable buffers.
    pub parts: Vec<Vec<u8>>,
}
