//! A raw NVMe/TCP target, for paths to attach to: it does right unless a script says otherwise, at each
//! command.

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

/// A command that has come, before it is answered.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Which connection it is of, from 0.
    pub connection: usize,
    /// The queue: 0 is the admin queue.
    pub queue: u16,
    /// The submission queue entry.
    pub sqe: [u8; 64],
}

impl Ask {
    /// The opcode.
    pub fn opcode(&self) -> u8 {
        self.sqe[0]
    }

    /// The command's ID.
    pub fn cid(&self) -> u16 {
        u16::from_le_bytes([self.sqe[2], self.sqe[3]])
    }

    /// A command dword, 1 to 15.
    pub fn dword(&self, at: usize) -> u32 {
        let bytes = &self.sqe[at * 4..at * 4 + 4];
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }

    /// The length of its data.
    pub fn length(&self) -> u32 {
        self.dword(8)
    }

    /// Whether it is this command of an I/O queue.
    pub fn is_io(&self, opcode: u8) -> bool {
        self.queue != 0 && self.opcode() == opcode
    }

    /// Whether it is this command of the admin queue.
    pub fn is_admin(&self, opcode: u8) -> bool {
        self.queue == 0 && self.opcode() == opcode
    }

    /// Whether it asks for identify data of this kind (CNS).
    pub fn is_identify(&self, cns: u8) -> bool {
        self.is_admin(0x06) && self.sqe[40] == cns
    }

    /// Whether it is a Fabrics command of this type.
    pub fn is_fabrics(&self, fctype: u8) -> bool {
        self.opcode() == 0x7f && self.sqe[4] == fctype
    }
}

/// What the peer does with a command.
#[derive(Debug, Clone)]
pub enum Turn {
    /// What is right.
    Right,
    /// Nothing, for ever.
    Silent,
    /// Sends these PDUs, and no other answer.
    Send(Vec<Vec<u8>>),
    /// Sends these PDUs, and then what is right.
    First(Vec<Vec<u8>>),
    /// Fails it with this status code type and code.
    Fail(u8, u8),
    /// Closes the connection.
    Close,
}

type Script = Box<dyn FnMut(&Ask) -> Turn + Send>;

struct Shared {
    data: Mutex<Data>,
    disk: Mutex<Vec<u8>>,
    /// What it answers ICReq.
    greeting: Mutex<Vec<u8>>,
    script: Mutex<Script>,
    connections: AtomicUsize,
    /// Bytes that came in data PDUs.
    taken: AtomicU64,
    /// Commands that came, by queue kind and opcode.
    asked: Mutex<Vec<(u16, u8)>>,
    /// Asynchronous event requests that wait, and where.
    waiting: Mutex<Vec<(usize, u16, TcpStream)>>,
    open: Mutex<Vec<TcpStream>>,
    /// Says nothing any more, to anyone.
    mute: AtomicBool,
    ends: AtomicBool,
}

/// A running peer; it ends on drop.
pub struct Peer {
    /// Where it listens on loopback.
    pub port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

/// Its subsystem.
pub const NQN: &str = "nqn.2022-09.io.spdk:a-peer";

/// Blocks of its namespaces, of 512 bytes each.
pub const BLOCKS: usize = 8192;

impl Peer {
    /// One with a namespace, 1.
    pub fn start() -> Self {
        Self::with(Data::new(&[1]))
    }

    /// One that says this of itself.
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

    /// From now on does with each command what this says.
    pub fn script(&self, script: impl FnMut(&Ask) -> Turn + Send + 'static) {
        *self.shared.script.lock() = Box::new(script);
    }

    /// From now on does what is right.
    pub fn do_right(&self) {
        self.script(|_| Turn::Right);
    }

    /// From now on answers ICReq with these bytes.
    pub fn greet_with(&self, bytes: Vec<u8>) {
        *self.shared.greeting.lock() = bytes;
    }

    /// Says nothing any more, or again what it should.
    pub fn mute(&self, mute: bool) {
        self.shared.mute.store(mute, Ordering::Relaxed);
    }

    /// Changes what it says of itself.
    pub fn change(&self, change: impl FnOnce(&mut Data)) {
        change(&mut self.shared.data.lock());
    }

    /// Tells all hosts of an event: its type and information (NVMe base specification, AER).
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

    /// Tells all hosts that namespaces have changed.
    pub fn tell_of_namespaces(&self) -> usize {
        self.tell(2, 0)
    }

    /// Connections that were made to it.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Bytes that came in data PDUs.
    pub fn taken(&self) -> u64 {
        self.shared.taken.load(Ordering::Relaxed)
    }

    /// How often such a command has come, on the admin queue or not.
    pub fn asked(&self, admin: bool, opcode: u8) -> usize {
        let asked = self.shared.asked.lock();
        let is = |(queue, code): &&(u16, u8)| (*queue == 0) == admin && *code == opcode;
        asked.iter().filter(is).count()
    }

    /// The bytes of its disk from there.
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
        // It ends with its connection, which the peer closes at the latest when it is dropped.
        std::thread::spawn(move || serve::serve(&shared, connection, stream));
    }
}
