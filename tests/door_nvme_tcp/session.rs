//! Valid sessions: the checks refuse nothing that a host may do.

use crate::common::Fixture;
use crate::common::Target;
use crate::common::nvme_tcp::{Bystander, Digests, Identity};

/// Writes and reads by every kind of data transfer, with each choice of digests.
#[tokio::test]
async fn a_right_host_writes_and_reads_with_any_digests() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let fixture = Fixture::tcp(&target, 4).await;
    let identity = Identity::new(fixture.port, &fixture.nqn);
    let header = Digests {
        header: true,
        data: false,
    };
    for digests in [Digests::OFF, header, Digests::DATA, Digests::BOTH] {
        let admin = identity.admin(digests);
        let mut io = identity.io(&admin, 1);
        for (lba, blocks) in [(0, 1), (8, 7), (16, 8), (32, 64), (128, 256)] {
            let data: Vec<u8> = (0..blocks * 512_u32).map(|n| (n % 251) as u8).collect();
            let written = io.write(1, lba, &data).expect("a write");
            assert_eq!(written.status(), 0, "{digests:?} {blocks} blocks");
            let read = io.read(1, lba, blocks as u16).expect("a read");
            assert!(read == data, "{digests:?} {blocks} blocks");
        }
    }
    bystander.unharmed(&mut target, "right sessions").await;
}
