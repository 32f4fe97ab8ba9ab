//! A driver's session with a device: negotiation, memory, rings.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::connection::Connection;
use super::guest::{Guest, Pages};
use super::message::{Message, feature, flag, protocol, request};
use super::queue::{Descriptor, Queue};

/// How long an answer of a device that is not limited may take.
const LIMIT: Duration = Duration::from_secs(3);

/// What a session asks for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What its memory is made of.
    pub pages: Pages,
    /// Bytes of it.
    pub memory: u64,
    /// Rings.
    pub queues: u32,
    /// Entries of each ring.
    pub queue_size: u16,
    /// Features that it acknowledges if the device has them.
    pub features: u64,
    /// Protocol features that it acknowledges if the device has them.
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
    /// With memory of these pages.
    pub fn pages(mut self, pages: Pages) -> Self {
        self.pages = pages;
        self
    }

    /// With this many bytes of memory.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// With this many rings.
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = queues;
        self
    }

    /// With these features too.
    pub fn features(mut self, features: u64) -> Self {
        self.features |= features;
        self
    }

    /// With these protocol features too.
    pub fn protocol(mut self, protocol: u64) -> Self {
        self.protocol |= protocol;
        self
    }
}

/// A session in any state.
pub struct Session {
    /// Its connection.
    pub connection: Connection,
    /// Its memory.
    pub guest: Guest,
    /// Its rings.
    pub queues: Vec<Queue>,
    /// The features that both sides have.
    pub features: u64,
    /// The protocol features that both sides have.
    pub protocol: u64,
}

impl Session {
    /// Does all that a driver does before its first request.
    pub fn start(socket: &Path, options: &Options) -> io::Result<Self> {
        let mut session = Self::negotiated(socket, options)?;
        session.share_memory()?;
        session.start_queues()?;
        Ok(session)
    }

    /// Connects and negotiates, and no more: the device knows neither memory nor rings.
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

    /// Tells the device of the memory.
    pub fn share_memory(&mut self) -> io::Result<()> {
        let table = self.guest.table();
        self.request(&table)
    }

    /// Sends a message and hears that it went well, if the device can tell.
    pub fn request(&mut self, message: &Message) -> io::Result<()> {
        match self.status(message)? {
            0 => Ok(()),
            status => Err(io::Error::other(format!("{message:?}: {status}"))),
        }
    }

    /// Sends a message and hears how it went; 0 where the device cannot tell.
    pub fn status(&mut self, message: &Message) -> io::Result<u64> {
        if self.protocol & protocol::REPLY_ACK == 0 {
            self.connection.send(message)?;
            return Ok(0);
        }
        self.connection.acknowledged(message)
    }

    /// Sends a message that is to be refused: the device says so, or ends the connection, and goes on in
    /// either case.
    pub fn refused(&mut self, message: &Message) {
        match self.status(message) {
            Ok(0) => panic!("taken: {message:?}"),
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

    /// Sets up all rings and enables them.
    pub fn start_queues(&mut self) -> io::Result<()> {
        for number in 0..self.queues.len() {
            self.start_queue(number)?;
        }
        Ok(())
    }

    /// Sets up one ring and enables it.
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

    /// Stops a ring; the number of the chain that would be next.
    pub fn stop_queue(&mut self, number: usize) -> io::Result<u32> {
        let message = self.queues[number].get_base();
        Ok(self.connection.ask(&message)?.word(4))
    }

    /// Offers a chain of these parts and waits for its end; what is in the writable ones then, and how
    /// many bytes the device says that it wrote.
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

    /// Puts parts into memory, page by page, and describes them; where the writable ones are.
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

    /// Whether the device ends the connection within its limit.
    pub fn is_ended(&mut self) -> bool {
        self.connection.is_ended()
    }

    /// The reply flag is what an answer has and a request must not.
    pub const REPLY: u32 = flag::REPLY;
}

/// What came of a chain.
#[derive(Debug)]
pub struct Transfer {
    /// Bytes that the device says that it wrote.
    pub written: u32,
    /// The writable parts.
    pub parts: Vec<Vec<u8>>,
}
