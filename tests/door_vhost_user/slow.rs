//! Regular I/O that outlives its client.

use std::time::Duration;

use crate::lab::Lab;
use crate::vhost_user::{Disk, Kind};

/// At 1 MB/s these reads outlast every timeout of the teardown.
const OUTSTANDING: usize = 6 << 20;

/// Opens a rate-limited disk and submits reads that stay in flight.
fn busy(lab: &Lab, kind: Kind) -> Disk {
    let options = kind.options().memory(16 << 20);
    let mut disk = lab.slow_disk(kind, &options);
    disk.begin_reads(OUTSTANDING);
    disk
}

/// Waits until a new client's I/O on the rate-limited volume succeeds: the outstanding I/O has drained.
fn drained(lab: &mut Lab, kind: Kind) {
    let end = std::time::Instant::now() + Duration::from_secs(9);
    loop {
        let served = Disk::open(kind, &lab.slow(kind)).and_then(|mut disk| disk.verify(0, 4096, 3));
        if served.is_ok() {
            break;
        }
        assert!(
            std::time::Instant::now() < end,
            "the slow device accepts no client: {served:?}"
        );
        lab.undisturbed("while I/O is slow");
    }
}

pub fn memory_of_a_client_gone_under_slow_io_is_released_later(lab: &mut Lab, kind: Kind) {
    let disk = busy(lab, kind);
    drop(disk);
    lab.undisturbed("when a client left");
    drained(lab, kind);
}

pub fn a_ring_stopped_under_slow_io_delays_no_other_client(lab: &mut Lab, kind: Kind) {
    let mut disk = busy(lab, kind);
    let stop = disk.session.queues[kind.queue()].get_base();
    disk.session
        .connection
        .send(&stop)
        .expect("the message is sent");
    lab.undisturbed("while a ring stops");
    lab.serves(kind, &lab.victim(kind));
    disk.session.connection.set_limit(Duration::from_secs(9));
    let answer = disk.session.connection.receive();
    let base = answer
        .expect("the ring stops once its I/O has drained")
        .word(4);
    // A turn takes some of the requests; what it has left is not begun once the ring is to stop.
    let submitted = u32::from(disk.session.queues[kind.queue()].next_available());
    assert!((1..=submitted).contains(&base), "{base} of {submitted}");
    // The reply means that the device no longer accesses the ring's memory.
    let Disk { session, .. } = &mut disk;
    let mut used = 0;
    while session.queues[kind.queue()]
        .take_used(&session.guest)
        .is_some()
    {
        used += 1;
    }
    assert_eq!(
        used, base,
        "all requests that were begun are used before the reply"
    );
    drop(disk);
    drained(lab, kind);
}

pub fn a_new_memory_table_under_slow_io_is_safe(lab: &mut Lab, kind: Kind) {
    let mut disk = busy(lab, kind);
    let table = disk.session.guest.table();
    disk.session
        .connection
        .send(&table)
        .expect("the message is sent");
    lab.undisturbed("while a memory table waits");
    drop(disk);
    drained(lab, kind);
}
