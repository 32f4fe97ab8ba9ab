//! A TCP port for a server that a test starts later.

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// The first of the ports that are given out.
const FIRST: u16 = 10_240;

/// How many there are: all below those that Linux gives to outgoing connections by default, or any of them
/// might take the port before the server does.
const COUNT: u16 = 22_528;

/// The next to try. Processes begin anywhere, so that two of them hardly ever try the same one.
static NEXT: LazyLock<AtomicU16> =
    LazyLock::new(|| AtomicU16::new(RandomState::new().hash_one("port") as u16));

/// A TCP port that nobody listens on, at any address.
pub fn free_port() -> u16 {
    let mut ports = (0..COUNT).map(|_| FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT);
    let free = |port: &u16| {
        ["0.0.0.0", "127.0.0.1"]
            .iter()
            .all(|address| TcpListener::bind((*address, *port)).is_ok())
    };
    ports.find(free).expect("one of so many ports is free")
}
