//! Checks after each attack: the program runs, calls are answered, another host's I/O is correct, and
//! the attackers' connections have been released.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{Digests, Host, Identity};
use crate::common::{Fixture, Target, eventually};

/// Deadline for the release of connections and for answers to calls.
const BACK: Duration = Duration::from_secs(5);

/// Upper bound of another host's 128 KiB write and read during an attack.
const IO: Duration = Duration::from_secs(2);

/// The state LISTEN in /proc/net/tcp.
const LISTEN: &str = "0A";

/// Blocks of one I/O: 128 KiB, the size of a large iobuf buffer.
const BLOCKS: u16 = 256;

/// Another host with its own volume, connected before the attack.
pub struct Bystander {
    /// The host's volume and subsystem.
    pub fixture: Fixture,
    admin: Host,
    io: Host,
    connections: usize,
    round: u8,
}

impl Bystander {
    /// Connects the host and counts the target's connections as the baseline.
    pub async fn new(target: &Target) -> Self {
        let fixture = Fixture::tcp(target, 4).await;
        let identity = Identity::new(fixture.port, &fixture.nqn).named("bystander");
        let admin = identity.admin(Digests::OFF);
        let io = identity.io(&admin, 1);
        let mut bystander = Self {
            fixture,
            admin,
            io,
            connections: 0,
            round: 0,
        };
        bystander.verify();
        bystander.connections = connections(target);
        bystander
    }

    /// Writes 128 KiB of new data, reads it back and compares; asserts the latency bound.
    pub fn verify(&mut self) {
        let begin = Instant::now();
        self.round = self.round.wrapping_add(1);
        let round = self.round;
        let bytes =
            (0..u32::from(BLOCKS) * 512).map(|n| n.to_le_bytes()[1] ^ n.to_le_bytes()[0] ^ round);
        let data: Vec<u8> = bytes.collect();
        let written = self.io.write(1, 0, &data).expect("the bystander writes");
        assert_eq!(written.status(), 0, "the bystander's write");
        let read = self.io.read(1, 0, BLOCKS).expect("the bystander reads");
        assert!(read == data, "the bystander's data differs");
        let took = begin.elapsed();
        assert!(took < IO, "the bystander's I/O took {took:?}");
    }

    /// Asserts that the attack `what` did no harm; the attack's connections must be closed by now.
    pub async fn unharmed(&mut self, target: &mut Target, what: &str) {
        assert!(
            target.exited().is_none(),
            "{what}: the target has ended:\n{}",
            target.log()
        );
        self.verify();
        let keep_alive = self.admin.cid();
        let alive = self.admin.call(super::Command::new(0x18, keep_alive), &[]);
        assert_eq!(
            alive.expect("a keep alive").status(),
            0,
            "{what}: keep alive"
        );
        let volumes = self.fixture.resource("MallocVolume");
        let stats = tokio::time::timeout(BACK, volumes.stats(&self.fixture.volume)).await;
        assert!(stats.is_ok(), "{what}: a gRPC call timed out");
        let identity = Identity::new(self.fixture.port, &self.fixture.nqn).named("newcomer");
        drop(identity.admin(Digests::OFF));
        eventually(
            &format!("{what}: the attack's connections are released"),
            BACK,
            async || (connections(target) <= self.connections).then_some(()),
        )
        .await;
    }
}

/// Counts the target's TCP connections on other ports than those of its API: NVMe/TCP connections.
pub fn connections(target: &Target) -> usize {
    let dir = format!("/proc/{}/fd", target.pid().as_raw_nonzero());
    let entries = std::fs::read_dir(dir).expect("the target runs");
    let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let inodes: HashSet<String> = links
        .filter_map(|link| {
            let link = link.to_string_lossy();
            let inode = link.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let api = [target.grpc.port(), target.http.port()];
    let held = table.lines().skip(1).filter(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9))
        else {
            return false;
        };
        let port = local
            .rsplit(':')
            .next()
            .and_then(|hex| u16::from_str_radix(hex, 16).ok());
        *state != LISTEN && inodes.contains(*inode) && !port.is_some_and(|port| api.contains(&port))
    });
    held.count()
}
