//! An NVMe host with an enabled controller, an admin queue and one I/O queue.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::link::Link;
use super::memory::{BASE, Memory, PAGE, READ, SIZE, WRITE};
use super::nvme::{Command, Completion, admin, io as opcode};

/// Guest address of data buffers, beyond the queues and lists.
pub const DATA: u64 = BASE + 0x10_0000;

/// Guest address of PRP lists and SGLs.
pub const LISTS: u64 = BASE + 0x2_0000;

/// Entries of each queue.
const ENTRIES: u16 = 32;

/// Timeout of every command.
const BOUND: Duration = Duration::from_secs(8);

/// Offset of the doorbells in BAR 0.
const DOORBELLS: u64 = 0x1000;

/// A submission queue and its completion queue.
#[derive(Clone, Debug)]
pub struct Queue {
    pub id: u16,
    /// Guest address of the submission queue; the completion queue is one page after it.
    pub address: u64,
    tail: u16,
    head: u16,
    phase: bool,
}

impl Queue {
    /// A queue pair at this guest address.
    pub fn new(id: u16, address: u64) -> Self {
        Self {
            id,
            address,
            tail: 0,
            head: 0,
            phase: true,
        }
    }
}

/// An NVMe host connected to a device.
pub struct Guest {
    pub link: Link,
    pub memory: Memory,
    pub admin: Queue,
    pub io: Queue,
    next: u16,
}

impl Guest {
    /// Wraps a connection; sends nothing.
    pub fn over(link: Link, memory: Memory) -> Self {
        Self {
            link,
            memory,
            admin: Queue::new(0, BASE),
            io: Queue::new(1, BASE + 0x4000),
            next: 1,
        }
    }

    /// Connects, maps memory and enables the controller, without an I/O queue.
    pub fn boot(socket: &Path) -> Self {
        let link = Link::attach_within(socket, BOUND);
        let mut guest = Self::over(link, Memory::new(BASE, SIZE));
        let mapped = guest.memory.map(&mut guest.link, 0, SIZE, READ | WRITE);
        assert_eq!(mapped.expect("the DMA_MAP is answered"), 0, "memory");
        guest.enable().expect("the register accesses are answered");
        guest
    }

    /// Connects, maps memory, enables the controller and creates the I/O queue.
    pub fn start(socket: &Path) -> Self {
        let mut guest = Self::boot(socket);
        let queue = guest.io.clone();
        assert!(guest.create(&queue).is_ok(), "an I/O queue");
        guest
    }

    /// Sets AQA, ASQ, ACQ and CC.EN, and waits for CSTS.RDY.
    pub fn enable(&mut self) -> io::Result<()> {
        self.admin = Queue::new(0, self.admin.address);
        let entries = u32::from(ENTRIES - 1);
        self.write_register(0x24, entries << 16 | entries)?;
        let (commands, completions) = (self.admin.address, self.admin.address + PAGE);
        self.link.write_region(0, 0x28, &commands.to_le_bytes())?;
        self.link
            .write_region(0, 0x30, &completions.to_le_bytes())?;
        // CC: queue entries of 64 and 16 bytes, and EN.
        self.write_register(0x14, 0x0046_0001)?;
        self.wait_ready(true)
    }

    /// Clears CC.EN and waits until CSTS.RDY is 0.
    pub fn disable(&mut self) -> io::Result<()> {
        self.write_register(0x14, 0x0046_0000)?;
        self.wait_ready(false)
    }

    fn wait_ready(&mut self, ready: bool) -> io::Result<()> {
        let end = Instant::now() + BOUND;
        while (self.read_register(0x1c)? & 1 == 1) != ready {
            assert!(Instant::now() < end, "CSTS.RDY is not {ready}");
        }
        Ok(())
    }

    /// Reads a 32-bit register.
    pub fn read_register(&mut self, offset: u64) -> io::Result<u32> {
        let reply = self.link.read_region(0, offset, 4)?;
        assert_eq!(reply.errno, 0, "register {offset:#x}");
        let bytes = reply.body.get(16..20).expect("a register");
        Ok(u32::from_le_bytes(bytes.try_into().expect("4 bytes")))
    }

    /// Writes a 32-bit register.
    pub fn write_register(&mut self, offset: u64, value: u32) -> io::Result<()> {
        self.link
            .write_region(0, offset, &value.to_le_bytes())
            .map(drop)
    }

    /// Creates both queues of a pair on the device.
    pub fn create(&mut self, queue: &Queue) -> Completion {
        let (id, at) = (queue.id, queue.address);
        let made = self.admin(Command::create_cq(id, ENTRIES, at + PAGE));
        if !made.is_ok() {
            return made;
        }
        self.memory.write(at + PAGE, &[0; PAGE as usize]);
        self.admin(Command::create_sq(id, id, ENTRIES, at))
    }

    /// Places a command in the submission queue without ringing the doorbell; returns the command ID.
    pub fn push(&mut self, queue: Which, command: Command) -> u16 {
        let id = self.next;
        self.next = if self.next == 0x7fff {
            1
        } else {
            self.next + 1
        };
        let queue = queue.of(&mut self.admin, &mut self.io);
        let at = queue.address + u64::from(queue.tail) * 64;
        queue.tail = (queue.tail + 1) % ENTRIES;
        self.memory.write(at, &command.id(id).0);
        id
    }

    /// Rings the submission queue's doorbell for all commands placed so far.
    pub fn ring(&mut self, queue: Which) -> io::Result<()> {
        let queue = queue.of(&mut self.admin, &mut self.io);
        let (id, tail) = (queue.id, queue.tail);
        self.doorbell(id, false, u32::from(tail))
    }

    /// Writes an arbitrary value to a doorbell.
    pub fn doorbell(&mut self, qid: u16, is_cq: bool, value: u32) -> io::Result<()> {
        let at = DOORBELLS + u64::from(qid) * 8 + if is_cq { 4 } else { 0 };
        self.link
            .write_region(0, at, &value.to_le_bytes())
            .map(drop)
    }

    /// Waits for the next completion of a queue; returns `None` when the timeout expires.
    pub fn completion(&mut self, which: Which, within: Duration) -> Option<Completion> {
        let end = Instant::now() + within;
        loop {
            let queue = which.of(&mut self.admin, &mut self.io);
            let at = queue.address + PAGE + u64::from(queue.head) * 16;
            let bytes = self.memory.read(at, 16);
            let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            if (word(14) & 1 == 1) == queue.phase {
                queue.head = (queue.head + 1) % ENTRIES;
                queue.phase ^= queue.head == 0;
                let (id, head) = (queue.id, queue.head);
                let completion = Completion {
                    id: word(12),
                    // SCT and SC only, without CRD, M and DNR.
                    status: word(14) >> 1 & 0x7ff,
                    result: u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes")),
                };
                self.doorbell(id, true, u32::from(head)).ok()?;
                return Some(completion);
            }
            if Instant::now() > end {
                return None;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Submits a command and waits for its completion.
    pub fn execute(&mut self, queue: Which, command: Command) -> Completion {
        let opcode = command.0[0];
        let id = self.push(queue, command);
        self.ring(queue).expect("the doorbell write is answered");
        let completion = self.completion(queue, BOUND);
        let completion =
            completion.unwrap_or_else(|| panic!("command {opcode:#x} is not completed"));
        assert_eq!(completion.id, id, "a completion of another command");
        completion
    }

    /// Submits an admin command and waits for its completion.
    pub fn admin(&mut self, command: Command) -> Completion {
        self.execute(Which::Admin, command)
    }

    /// Submits an I/O command and waits for its completion.
    pub fn io(&mut self, command: Command) -> Completion {
        self.execute(Which::Io, command)
    }

    /// Sends Identify Controller to the admin queue; the data goes to [`DATA`].
    pub fn identify(&mut self) -> Completion {
        self.admin(Command::new(admin::IDENTIFY).dword(10, 1).prps(DATA, 0))
    }

    /// Writes a page of a pattern, reads it back into another buffer and compares.
    pub fn verify(&mut self, seed: u8) {
        let data: Vec<u8> = (0..PAGE)
            .map(|n| (n as u8).wrapping_mul(31) ^ seed)
            .collect();
        let (from, to) = (DATA, DATA + PAGE);
        self.memory.write(from, &data);
        self.memory.write(to, &vec![0; data.len()]);
        let block = u64::from(seed) * 8;
        let written = self.io(Command::rw(opcode::WRITE, block, 8).prps(from, 0));
        assert!(written.is_ok(), "a write: {written:?}");
        let read = self.io(Command::rw(opcode::READ, block, 8).prps(to, 0));
        assert!(read.is_ok(), "a read: {read:?}");
        assert!(
            self.memory.read(to, data.len()) == data,
            "the data read differs from the data written"
        );
    }
}

/// Selects one of a guest's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Admin,
    Io,
}

impl Which {
    fn of<'a>(self, admin: &'a mut Queue, io: &'a mut Queue) -> &'a mut Queue {
        match self {
            Self::Admin => admin,
            Self::Io => io,
        }
    }
}
