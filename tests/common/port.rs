//! TCP ports for servers that a test starts later.

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// The first port of the range.
const FIRST: u16 = 10_240;

/// Size of the range. It ends below Linux's default ephemeral ports: an outgoing connection could take
/// such a port before the server binds it.
const COUNT: u16 = 22_528;

/// The next port to try. Each process starts at a random offset, so that concurrent processes rarely
/// race for a port.
static NEXT: LazyLock<AtomicU16> =
    LazyLock::new(|| AtomicU16::new(RandomState::new().hash_one("port") as u16));

/// Returns a TCP port that is free on the wildcard and the loopback address.
pub fn free_port() -> u16 {
    let mut ports = (0..COUNT).map(|_| FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT);
    let free = |port: &u16| {
        ["0.0.0.0", "127.0.0.1"]
            .iter()
            .all(|address| TcpListener::bind((*address, *port)).is_ok())
    };
    ports.find(free).expect("a port of the range is free")
}
