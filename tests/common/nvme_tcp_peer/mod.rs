//! A raw NVMe/TCP target for paths to attach to. It follows the specification unless a script tells it
//! otherwise, command by command.

mod data;
mod pdus;
mod serve;

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

pub use data::Data;
pub use pdus::{Resp, c2h_data, ic_resp, r2t, term_req};

/// A received command that has not been answered yet.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Number of the connection, from 0.
    pub connection: usize,
    /// The queue ID; 0 is the admin queue.
    pub queue: u16,
    /// The submission queue entry.
    pub sqe: [u8; 64],
}

impl Ask {
    /// Returns the opcode.
    pub fn opcode(&self) -> u8 {
        self.sqe[0]
    }

    /// Returns the command ID.
    pub fn cid(&self) -> u16 {
        u16::from_le_bytes([self.sqe[2], self.sqe[3]])
    }

    /// Returns a command dword, 1 to 15.
    pub fn dword(&self, at: usize) -> u32 {
        let bytes = &self.sqe[at * 4..at * 4 + 4];
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }

    /// Returns the length in the SGL descriptor.
    pub fn length(&self) -> u32 {
        self.dword(8)
    }

    /// Returns whether this is an I/O command with this opcode.
    pub fn is_io(&self, opcode: u8) -> bool {
        self.queue != 0 && self.opcode() == opcode
    }

    /// Returns whether this is an admin command with this opcode.
    pub fn is_admin(&self, opcode: u8) -> bool {
        self.queue == 0 && self.opcode() == opcode
    }

    /// Returns whether this is an Identify command with this CNS.
    pub fn is_identify(&self, cns: u8) -> bool {
        self.is_admin(0x06) && self.sqe[40] == cns
    }

    /// Returns whether this is a Fabrics command of this type.
    pub fn is_fabrics(&self, fctype: u8) -> bool {
        self.opcode() == 0x7f && self.sqe[4] == fctype
    }
}

/// The peer's reaction to a command.
#[derive(Debug, Clone)]
pub enum Turn {
    /// Answers as the specification demands.
    Right,
    /// Never answers.
    Silent,
    /// Sends these PDUs and no other answer.
    Send(Vec<Vec<u8>>),
    /// Sends these PDUs, then the regular answer.
    First(Vec<Vec<u8>>),
    /// Fails the command with this status code type and status code.
    Fail(u8, u8),
    /// Closes the connection.
    Close,
}

type Script = Box<dyn FnMut(&Ask) -> Turn + Send>;

struct Shared {
    data: Mutex<Data>,
    disk: Mutex<Vec<u8>>,
    /// The answer to ICReq.
    greeting: Mutex<Vec<u8>>,
    script: Mutex<Script>,
    connections: AtomicUsize,
    /// Bytes received in data PDUs.
    taken: AtomicU64,
    /// Received commands: queue ID and opcode.
    asked: Mutex<Vec<(u16, u8)>>,
    /// Outstanding Asynchronous Event Requests: connection, command ID and socket.
    waiting: Mutex<Vec<(usize, u16, TcpStream)>>,
    open: Mutex<Vec<TcpStream>>,
    /// Sends nothing on any connection.
    mute: AtomicBool,
    ends: AtomicBool,
}

/// A running peer; stopped on drop.
pub struct Peer {
    /// The loopback port that the peer listens on.
    pub port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

/// The NQN of the peer's subsystem.
pub const NQN: &str = "nqn.2022-09.io.spdk:a-peer";

/// Number of 512-byte blocks of each namespace.
pub const BLOCKS: usize = 8192;

impl Peer {
    /// Starts a peer with namespace 1.
    pub fn start() -> Self {
        Self::with(Data::new(&[1]))
    }

    /// Starts a peer that reports `data`.
    pub fn with(data: Data) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            data: Mutex::new(data),
            disk: Mutex::new(vec![0; BLOCKS * 512]),
            greeting: Mutex::new(ic_resp()),
            script: Mutex::new(Box::new(|_| Turn::Right)),
            connections: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            asked: Mutex::new(Vec::new()),
            waiting: Mutex::new(Vec::new()),
            open: Mutex::new(Vec::new()),
            mute: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        let accepting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self {
            port,
            shared,
            accepting: Some(accepting),
        }
    }

    /// Sets the script that decides the reaction to each command.
    pub fn script(&self, script: impl FnMut(&Ask) -> Turn + Send + 'static) {
        *self.shared.script.lock() = Box::new(script);
    }

    /// Removes the script: the peer follows the specification again.
    pub fn do_right(&self) {
        self.script(|_| Turn::Right);
    }

    /// Overrides the answer to ICReq.
    pub fn greet_with(&self, bytes: Vec<u8>) {
        *self.shared.greeting.lock() = bytes;
    }

    /// Suppresses or resumes all output.
    pub fn mute(&self, mute: bool) {
        self.shared.mute.store(mute, Ordering::Relaxed);
    }

    /// Changes what the peer reports.
    pub fn change(&self, change: impl FnOnce(&mut Data)) {
        change(&mut self.shared.data.lock());
    }

    /// Sends an asynchronous event to every connected host: type and information (NVMe base
    /// specification, Asynchronous Event Request). Returns the number of hosts.
    pub fn tell(&self, event: u8, information: u8) -> usize {
        let waiting = std::mem::take(&mut *self.shared.waiting.lock());
        let cdw0 = u32::from(event) | u32::from(information) << 8;
        let mut told = Vec::new();
        for (connection, cid, mut stream) in waiting {
            if told.contains(&connection) {
                self.shared.waiting.lock().push((connection, cid, stream));
                continue;
            }
            let answer = Resp::of(cid).with_cdw0(cdw0).bytes();
            if std::io::Write::write_all(&mut stream, &answer).is_ok() {
                told.push(connection);
            }
        }
        told.len()
    }

    /// Sends a Namespace Attribute Changed event to every connected host.
    pub fn tell_of_namespaces(&self) -> usize {
        self.tell(2, 0)
    }

    /// Returns the number of connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes received in data PDUs.
    pub fn taken(&self) -> u64 {
        self.shared.taken.load(Ordering::Relaxed)
    }

    /// Returns how many commands with this opcode were received, on the admin queue or on I/O queues.
    pub fn asked(&self, admin: bool, opcode: u8) -> usize {
        let asked = self.shared.asked.lock();
        let is = |(queue, code): &&(u16, u8)| (*queue == 0) == admin && *code == opcode;
        asked.iter().filter(is).count()
    }

    /// Returns bytes of the peer's disk.
    pub fn disk(&self, at: usize, length: usize) -> Vec<u8> {
        self.shared.disk.lock()[at..at + length].to_vec()
    }

    /// Closes all connections.
    pub fn close_all(&self) {
        for stream in self.shared.open.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.shared.waiting.lock().clear();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        self.close_all();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        self.close_all();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.ends.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let connection = shared.connections.fetch_add(1, Ordering::Relaxed);
        if let Ok(again) = stream.try_clone() {
            shared.open.lock().push(again);
        }
        let shared = Arc::clone(shared);
        // The thread ends with its connection, which is closed at the latest when the peer is dropped.
        std::thread::spawn(move || serve::serve(&shared, connection, stream));
    }
}
