//! PDUs truncated at any byte by a close of the connection: nothing of them leaks.

use crate::common::nvme_tcp::{Command, Digests, Pdu, Sgl, kind};
use crate::world::World;

#[tokio::test]
async fn icreq_cut_at_any_byte_leaves_nothing() {
    let mut world = World::new().await;
    let whole = Pdu::ic_req(Digests::OFF).bytes(Digests::OFF);
    for length in 0..whole.len() {
        let mut host = world.identity.dial().expect("a connection");
        host.send_bytes(&whole[..length]).expect("a part");
    }
    world.unharmed("ICReq cut").await;
}

#[tokio::test]
async fn connect_cut_anywhere_leaves_nothing() {
    let mut world = World::new().await;
    let command = Command::connect(1, 0, 31, Sgl::InCapsule(1024));
    let data = world.identity.connect_data(0xffff);
    for digests in [Digests::OFF, Digests::BOTH] {
        let whole = Pdu::capsule(command, &data).bytes(digests);
        for length in (0..whole.len()).step_by(17) {
            let mut host = world.stranger(digests);
            host.send_bytes(&whole[..length]).expect("a part");
        }
    }
    world.unharmed("Connect cut").await;
}

#[tokio::test]
async fn data_and_terminations_cut_anywhere_leave_nothing() {
    let mut world = World::new().await;
    let admin = world.identity.admin(Digests::BOTH);
    let mut qid = 0;
    for length in (0..4128).step_by(251) {
        qid += 1;
        let mut io = world.identity.io(&admin, qid);
        let write = Command::io(1, 1, 1, 0, 8).sgl(Sgl::Transport(4096));
        io.send(&Pdu::capsule(write, &[])).expect("a capsule");
        let answer = io.receive().expect("an R2T");
        assert_eq!(answer.kind, kind::R2T);
        let data = Pdu::h2c_data(1, answer.r2t().0, 0, &[1; 4096]);
        io.send_bytes(&data.bytes(Digests::BOTH)[..length])
            .expect("a part");
    }
    for length in (0..152).step_by(13) {
        let mut host = world.stranger(Digests::OFF);
        let bytes = Pdu::h2c_term_req(2, &[0; 128]).bytes(Digests::OFF);
        host.send_bytes(&bytes[..length]).expect("a part");
    }
    drop(admin);
    world.unharmed("data cut").await;
}
