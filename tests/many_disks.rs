//! Many VMs connected at once: each disk works, whatever resources they share (buffers, descriptors,
//! workers).

mod common;

use common::vhost_user::{Disk, Kind};
use common::{Options, Resource, Target, blk_spec, malloc};

/// Twice as many as SPDK's default pools suffice for, were each disk to have a thread with buffers of its own.
const DISKS: usize = 64;

/// Bytes per request.
const LENGTH: usize = 16 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_disks_on_malloc_volumes_serve_as_many_machines_at_once() {
    serve(Options::hugepages(), DISKS).await;
}

/// Threads keep a part of the pools for themselves, so what a disk needs is there when its machine connects.
#[tokio::test(flavor = "multi_thread")]
async fn disks_serve_with_the_smallest_pools() {
    let pools = ["--iobuf-small", "64", "--iobuf-large", "8"];
    serve(Options::hugepages().args(pools), 4).await;
}

/// Has so many machines at once verify their disks.
async fn serve(options: Options, number: usize) {
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let blks = Resource::new(&client, "VirtioBlk");
    let mut sockets = Vec::new();
    for n in 0..number {
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
