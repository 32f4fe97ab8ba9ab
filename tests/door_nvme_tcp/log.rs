//! Rate limits on the log lines that strangers can cause.

use std::time::Duration;

use crate::common::eventually;
use crate::common::nvme_tcp::{Command, Digests, Pdu};
use crate::world::World;

/// Bound of log lines that a flood may add: one a second from each of a few log sites.
const LINES: usize = 60;

#[tokio::test]
async fn a_flood_of_wrong_pdus_is_counted_not_written() {
    let mut world = World::new().await;
    let before = world.target.log().lines().count();
    let flood: Vec<u8> = (0..20_000)
        .flat_map(|_| Pdu::capsule(Command::new(0x18, 1), &[]).bytes(Digests::OFF))
        .collect();
    let mut host = world.stranger(Digests::OFF);
    // The target closes the connection in the middle of the flood.
    let _ = host.send_bytes(&flood);
    drop(host);
    for n in 0..300_u16 {
        let mut host = world.identity.dial().expect("a connection");
        let wrong = Pdu {
            kind: n.to_le_bytes()[0] | 0x10,
            header: vec![0; 16],
            ..Pdu::default()
        };
        let _ = host.send(&wrong);
    }
    world.unharmed("a flood").await;
    // A log site's next line comes a second later, with the number of suppressed lines.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut host = world.identity.dial().expect("a connection");
    let _ = host.send(&Pdu::capsule(Command::new(0x18, 1), &[]));
    eventually("the flood is counted", Duration::from_secs(3), async || {
        let log = world.target.log();
        log.contains("earlier lines like this one were left out")
            .then_some(())
    })
    .await;
    let log = world.target.log();
    let added = log.lines().count() - before;
    assert!(added < LINES, "{added} lines for a flood:\n{log}");
}
