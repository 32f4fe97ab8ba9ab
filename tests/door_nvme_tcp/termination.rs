//! TermReqs of hosts: any status ends the connection.

use std::time::Duration;

use crate::common::eventually;
use crate::common::nvme_tcp::{Digests, Pdu};
use crate::world::World;

#[tokio::test]
async fn a_termination_with_any_status_ends_the_connection_and_is_named_right() {
    let mut world = World::new().await;
    for fes in [0, 1, 2, 5, 6, 7, 255, 0xffff] {
        let mut host = world.stranger(Digests::OFF);
        host.send(&Pdu::h2c_term_req(fes, &[0; 72]))
            .expect("a TermReq");
        drop(host);
    }
    world.unharmed("TermReqs").await;
    // Each log site is limited to one line a second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut host = world.stranger(Digests::OFF);
    host.send(&Pdu::h2c_term_req(6, &[0; 72]))
        .expect("a TermReq");
    let ended = host.closed_within(Duration::from_secs(3));
    assert!(ended.is_ok(), "the connection stays open after a TermReq");
    eventually("the status is named", Duration::from_secs(3), async || {
        let log = world.target.log();
        log.contains("status 6, Unsupported parameter")
            .then_some(())
    })
    .await;
}
