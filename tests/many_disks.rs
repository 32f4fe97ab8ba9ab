//! Many VMs connected at once: each disk works, whatever resources they share (buffers, descriptors,
//! workers).

mod common;

use common::vhost_user::{Disk, Kind};
use common::{Options, Resource, Target, blk_spec, malloc};

/// More than the buffers in SPDK's default pools sufficed for.
const DISKS: usize = 40;

/// Bytes per request.
const LENGTH: usize = 16 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn forty_disks_on_malloc_volumes_serve_forty_machines_at_once() {
    let target = Target::start_with(Options::hugepages()).await;
    let client = target.client().await;
    let blks = Resource::new(&client, "VirtioBlk");
    let mut sockets = Vec::new();
    for n in 0..DISKS {
        let id = format!("disk-{n}");
        let volume = malloc(&client, &format!("volume-{n}"), 1).await;
        blks.created("", &id, blk_spec(&volume)).await;
        sockets.push(target.ctrlr_dir().join(id));
    }
    tokio::task::block_in_place(|| {
        let mut disks: Vec<Disk> = sockets
            .iter()
            .map(|socket| Disk::open(Kind::Blk, socket).expect("its driver connects"))
            .collect();
        for _ in 0..2 {
            for (disk, seed) in disks.iter_mut().zip(0..) {
                let verified = disk.verify(8, LENGTH, seed);
                verified.unwrap_or_else(|error| panic!("disk {seed}: {error}"));
            }
        }
    });
    target.stop();
}
