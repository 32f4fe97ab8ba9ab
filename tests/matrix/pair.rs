//! The invariants of each pair.

use std::collections::HashSet;
use std::ops::Range;

use crate::common::{Bdevperf, Job, pattern, unique};
use crate::lab::Lab;
use crate::ways_in::{Unmapped, WayIn};
use crate::ways_out::{Export, TCP, WayOut};
use crate::{BLOCK, MIB};

const KIB: usize = 1024;
const SIZE: usize = MIB as usize * KIB * KIB;

/// The ranges of the disk used by the jobs; the ranges between and around them must not change.
const ZEROED: Range<usize> = 1024 * KIB..1536 * KIB;
const UNMAPPED: Range<usize> = 2048 * KIB..2560 * KIB;
const VERIFIED: Range<usize> = 3072 * KIB..3584 * KIB;

/// Bytes per verified I/O, and per other I/O.
const SMALL: usize = 4 * KIB;
const LARGE: usize = 64 * KIB;

/// Runs the whole test of a pair.
pub async fn holds(lab: &Lab, way_in: &WayIn, way_out: &WayOut) {
    let before = lab.inventory().await;
    let id = unique("pair");
    let mut volume = (way_in.make)(lab, &id).await;
    let export = (way_out.make)(lab, &volume.reference, &format!("{id}-out")).await;

    let written = pattern(MIB * 1024);
    write(lab, &export, &written).await;
    if let Some(remote) = &volume.remote {
        remote.lose_a_path().await;
    }
    expect_same(&read(lab, &export).await, &written);

    operate(lab, way_in, way_out, &export).await;
    let read_back = read(lab, &export).await;
    let mut expected = written.clone();
    expected[ZEROED].fill(0);
    match way_in.unmapped {
        Unmapped::Zeroes => expected[UNMAPPED].fill(0),
        Unmapped::Anything => expected[UNMAPPED].copy_from_slice(&read_back[UNMAPPED]),
        Unmapped::Never => {}
    }
    // The content of this range has been verified by the job that wrote it.
    expected[VERIFIED].copy_from_slice(&read_back[VERIFIED]);
    expect_same(&read_back, &expected);

    export.made.delete().await;
    if let Some(base) = &volume.beneath {
        volume.made.delete_last().await;
        let export = (TCP.make)(lab, base, &format!("{id}-beneath")).await;
        expect_ciphertext(&read(lab, &export).await, &written);
        export.made.delete().await;
    }
    volume.made.delete().await;
    for (before, after) in before.iter().zip(lab.inventory().await) {
        assert_eq!(after, *before, "objects of the pair were left behind");
    }
    if let Some(remote) = volume.remote {
        remote.stop();
    }
}

/// Writes the data to the disk from its start.
async fn write(lab: &Lab, Export { driver, disk, .. }: &Export, bytes: &[u8]) {
    let file = lab.dir().join("written");
    std::fs::write(&file, bytes).expect("the file can be written");
    let copied = driver.copy_in(lab.dir(), &file, disk).await;
    copied.expect("the disk can be written");
}

/// Reads the whole disk.
async fn read(lab: &Lab, Export { driver, disk, .. }: &Export) -> Vec<u8> {
    let file = lab.dir().join("read");
    let copied = driver.copy_out(lab.dir(), disk, MIB * 1024, &file).await;
    copied.expect("the disk can be read");
    std::fs::read(&file).expect("the file can be read")
}

/// Runs all workloads concurrently, each on its own range, and checks how the driver performs them.
async fn operate(lab: &Lab, way_in: &WayIn, way_out: &WayOut, export: &Export) {
    let unmaps = way_out.always_unmaps || way_in.unmapped != Unmapped::Never;
    let mut jobs = vec![
        job("verify", SMALL, VERIFIED),
        job("write_zeroes", LARGE, ZEROED),
    ];
    if way_out.flushes {
        jobs.push(job("flush", LARGE, 0..SIZE));
    } else {
        let flushed = export.driver.workload(lab.dir(), "flush").await;
        let said = flushed.expect_err("the driver does not support flush");
        assert!(said.contains("task offset: 0 on job"), "{said}");
    }
    if unmaps {
        jobs.push(job("unmap", LARGE, UNMAPPED));
    }
    let mut host = Bdevperf::start(&export.driver, lab.dir(), export.disk, &jobs).await;
    let described = host.describe().await;
    assert_eq!(described["block_size"], BLOCK, "{described}");
    assert_eq!(
        described["num_blocks"],
        SIZE / BLOCK as usize,
        "{described}"
    );
    for (kind, can) in [("unmap", unmaps), ("write_zeroes", true), ("flush", true)] {
        assert_eq!(
            described["supported_io_types"][kind], can,
            "{kind}: {described}"
        );
    }

    let performed = host.perform().await;
    let (all, stats) = performed.unwrap_or_else(|why| panic!("not every I/O succeeded: {why}"));
    for (job, done) in jobs.iter().zip(&all) {
        assert_eq!(done.kind, job.kind, "{all:?}");
        let once = job.blocks.1 * u64::from(BLOCK) / job.size;
        // One verified I/O proves verification; the other workloads must have covered their whole range,
        // which is compared later.
        let enough = if job.kind == "verify" { 1 } else { once };
        assert!(
            done.ios >= enough,
            "the job did not cover its range: {job:?} {done:?}"
        );
    }

    let count = |name: &str| stats[name].as_u64().expect("a counter") as usize;
    let verified = all[0].ios as usize * SMALL;
    let zeroed = count("bytes_written").saturating_sub(verified);
    let all_of_it = ZEROED.len();
    let by_command = zeroed < all_of_it;
    assert_eq!(
        by_command, way_out.zeroes_by_command,
        "{zeroed} bytes of zeroes written for {all_of_it} that were zeroed: {stats}"
    );

    if let Some(limit) = way_in.limit {
        let bytes = (count("bytes_read") + count("bytes_written")) as f64;
        let rate = bytes / all[0].seconds / (KIB * KIB) as f64;
        // A busy machine polls late, and unused quota of a timeslice (1 ms) expires.
        let around = 0.2 * f64::from(limit)..1.25 * f64::from(limit);
        assert!(
            around.contains(&rate),
            "limited to {limit} MiB/s, measured {rate} MiB/s"
        );
    }
}

fn job(kind: &'static str, size: usize, part: Range<usize>) -> Job {
    let blocks = |bytes: usize| bytes as u64 / u64::from(BLOCK);
    Job {
        kind,
        size: size as u64,
        depth: 8,
        blocks: (blocks(part.start), blocks(part.len())),
    }
}

fn expect_same(read: &[u8], expected: &[u8]) {
    assert_eq!(read.len(), expected.len(), "the lengths differ");
    let at = read.iter().zip(expected).position(|(a, b)| a != b);
    if let Some(at) = at {
        let differ = read.iter().zip(expected).filter(|(a, b)| a != b).count();
        panic!("{differ} bytes differ, the first one at {at:#x} of {SIZE:#x}");
    }
}

/// Asserts that the base volume contains no word of the plaintext, and no block that was never written.
fn expect_ciphertext(beneath: &[u8], plain: &[u8]) {
    assert_eq!(beneath.len(), plain.len(), "the lengths differ");
    let words: HashSet<_> = plain.chunks_exact(8).collect();
    for (block, n) in beneath.chunks_exact(BLOCK as usize).zip(0..) {
        let at = n * BLOCK as usize;
        // Unmap is passed down to the base volume, where it means zeroes.
        if UNMAPPED.contains(&at) {
            continue;
        }
        let leaks = block.chunks_exact(8).any(|word| words.contains(word));
        assert!(!leaks, "the base volume has plaintext at {at:#x}");
        assert!(
            block != [0; BLOCK as usize],
            "the base volume was not written at {at:#x}"
        );
    }
}
