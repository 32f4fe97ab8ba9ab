//! Deletion of devices while clients connect, and the stop of the program.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tonic::Code;

use crate::common::{Resource, blk_spec, eventually, malloc, name_of};
use crate::lab::{Lab, patiently};
use crate::vhost_user::{Disk, Kind, Pages, Session};

/// Without the fix, the process died after 2, 7 and 22 rounds.
const ROUNDS: usize = 30;

pub fn a_device_is_deleted_while_its_client_reconnects(lab: &mut Lab, _: Kind) {
    let socket = lab.socket("fleeting");
    let stop = AtomicBool::new(false);
    let client = lab.client.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| reconnect(&socket, &stop));
        lab.wait(async {
            let blks = Resource::new(&client, "VirtioBlk");
            let volume = malloc(&client, "fleeting", 1).await;
            for _ in 0..ROUNDS {
                blks.created("", "fleeting", blk_spec(&volume)).await;
                eventually(
                    "the device is deleted",
                    Duration::from_secs(5),
                    async || {
                        match blks.delete("volumes/fleeting").await {
                            Ok(()) => Some(()),
                            // The client is connected at this moment: retry.
                            Err(status) => {
                                assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                                None
                            }
                        }
                    },
                )
                .await;
            }
            Resource::new(&client, "MallocVolume")
                .deleted(&volume)
                .await;
        });
        stop.store(true, Ordering::Relaxed);
    });
}

/// Connects and disconnects in various states of the handshake, as a restarting QEMU does.
fn reconnect(socket: &PathBuf, stop: &AtomicBool) {
    let options = Kind::Blk.options();
    let mut round = 0u32;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        match round % 3 {
            0 => drop(std::os::unix::net::UnixStream::connect(socket)),
            1 => drop(Session::negotiated(socket, &options)),
            _ => drop(Session::start(socket, &options)),
        }
        std::thread::sleep(Duration::from_millis(u64::from(round % 4)));
    }
}

/// The reactor that serves a machine gets its channel to the volume when the machine connects.
pub fn machines_come_while_limits_are_lifted(lab: &mut Lab, _: Kind) {
    const MACHINES: usize = 200;
    let socket = lab.socket("limited");
    let client = lab.client.clone();
    let [blks, limits] = ["VirtioBlk", "QosVolume"].map(|kind| Resource::new(&client, kind));
    let volume = lab.wait(malloc(&client, "base", 1));
    let device = lab.wait(blks.created("", "limited", blk_spec(&volume)));
    let lifted = std::thread::scope(|scope| {
        let machines = scope.spawn(|| {
            for _ in 0..MACHINES {
                let mut disk = patiently(|| Disk::open(Kind::Blk, &socket));
                disk.read(0, 512).expect("data");
            }
        });
        let mut lifted = 0;
        while !machines.is_finished() {
            let limited = json!({
                "volume_name_ref": volume,
                "limits": { "max": { "rw_iops_kiops": 1 } },
            });
            let limited = name_of(&lab.wait(limits.created("", "limit", limited)));
            lab.wait(limits.deleted(&limited));
            lifted += 1;
        }
        lifted
    });
    assert!(lifted > MACHINES / 10, "lifted {lifted} times only");
    lab.wait(async {
        blks.deleted(&name_of(&device)).await;
        Resource::new(&client, "MallocVolume")
            .deleted(&volume)
            .await;
    });
}

pub fn a_stop_does_not_wait_for_slow_io_or_disconnecting_clients(lab: Lab) {
    let slow: Vec<_> = Kind::ALL
        .iter()
        .map(|kind| {
            // Hugepages of these clients would count as leaked by the target.
            let options = kind.options().pages(Pages::Ordinary).memory(16 << 20);
            let mut disk = lab.slow_disk(*kind, &options);
            disk.begin_reads(6 << 20);
            disk
        })
        .collect();
    // These clients disconnect at the moment of the stop, with I/O in flight.
    let leaving: Vec<Disk> = Kind::ALL
        .iter()
        .map(|kind| {
            let mut disk = lab.disk(*kind);
            disk.begin_reads(1 << 20);
            disk
        })
        .collect();
    let mut target = lab.into_target();
    drop(leaving);
    target.stop_with(Signal::TERM);
    drop(slow);
}

/// A deletion returns after 3 s at most and leaves slow I/O to the device's own thread.
pub fn a_stop_does_not_wait_for_io_of_a_deleted_device(lab: Lab) {
    // 10 s at 1 MB/s: 3 s for the deletion, and more than twice what a stop may take.
    const OUTSTANDING: usize = 10 << 20;
    let options = Kind::Blk.options().pages(Pages::Ordinary).memory(16 << 20);
    let mut disk = lab.slow_disk(Kind::Blk, &options);
    disk.begin_reads(OUTSTANDING);
    drop(disk);
    let blks = Resource::new(&lab.client, "VirtioBlk");
    lab.wait(eventually(
        "the device is deleted",
        Duration::from_secs(8),
        async || blks.delete("volumes/slow-blk").await.ok(),
    ));
    lab.into_target().stop_with(Signal::TERM);
}
