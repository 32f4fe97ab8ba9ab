//! Identities of virtio disks: unique per volume, whatever the volumes' names are.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::vhost_user::{Command, Disk, Kind, RESPONSE, blk_header};
use common::{Options, Resource, Target, blk_spec, lun_spec, malloc, scsi_spec};
use serde_json::json;

/// Names with the same first 20 characters, the length of a virtio-blk ID (virtio 1.2, 5.2.6).
const NAMES: [&str; 2] = ["customer-database-volume-1", "customer-database-volume-2"];

/// The virtio-blk request VIRTIO_BLK_T_GET_ID, and the length of the ID.
const GET_ID: u32 = 8;
const ID_LEN: usize = 20;

/// Vital Product Data pages of INQUIRY: Unit Serial Number, Device Identification (SPC-4, 7.8).
const PAGES: [u8; 2] = [0x80, 0x83];

fn id_of_blk(socket: &Path) -> Vec<u8> {
    let mut disk = Disk::open(Kind::Blk, socket).expect("the driver connects");
    let request = blk_header(GET_ID, 0);
    let answer = disk.session.transfer(0, &[&request], &[ID_LEN, 1]);
    let mut parts = answer.expect("the request is answered").parts;
    assert_eq!(parts[1], [0]);
    parts.swap_remove(0)
}

fn pages_of_scsi(socket: &Path) -> [Vec<u8>; 2] {
    let mut disk = Disk::open(Kind::Scsi, socket).expect("the driver connects");
    PAGES.map(|page| {
        let inquiry = Command::new(0, &[0x12, 1, page, 0, 255, 0]).encode();
        let queue = Kind::Scsi.queue();
        let answer = disk.session.transfer(queue, &[&inquiry], &[RESPONSE, 255]);
        let mut parts = answer.expect("the request is answered").parts;
        assert_eq!(parts[0][10..12], [0, 0], "status and response");
        let data = parts.swap_remove(1);
        let length = usize::from(u16::from_be_bytes([data[2], data[3]]));
        assert!(length > 0, "page {page:#x} is empty");
        data[4..4 + length].to_vec()
    })
}

/// Returns each disk's identities: the virtio-blk ID and the two SCSI pages.
async fn identities(target: &Target) -> Vec<[Vec<u8>; 3]> {
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    let mut all = Vec::new();
    for name in NAMES {
        let [blk, scsi] = ["blk", "scsi"].map(|kind| format!("{kind}-{name}"));
        let volume = malloc(&client, name, 4).await;
        of("VirtioBlk").created("", &blk, blk_spec(&volume)).await;
        let id = id_of_blk(&target.ctrlr_dir().join(&blk));
        of("VirtioBlk").deleted(&format!("volumes/{blk}")).await;
        let controllers = of("VirtioScsiController");
        controllers.created("", &scsi, scsi_spec()).await;
        of("VirtioScsiLun")
            .created("", &scsi, lun_spec(&scsi, &volume))
            .await;
        let socket = target.ctrlr_dir().join(&scsi);
        let [serial, designator] = pages_of_scsi(&socket);
        all.push([id, serial, designator]);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_identities_are_unique_across_names_and_machines() {
    let mut seen = [(); 3].map(|()| BTreeSet::new());
    for _ in 0..2 {
        // Each target has its own state directory, as on two machines.
        let target = Target::start_with(Options::hugepages()).await;
        for identity in identities(&target).await {
            for (seen, value) in seen.iter_mut().zip(identity) {
                assert!(value.iter().any(|byte| *byte != 0), "{value:?}");
                assert!(
                    seen.insert(value.clone()),
                    "two disks have the identity {value:?}"
                );
            }
        }
        target.stop();
    }
    assert_eq!(json!(seen.map(|seen| seen.len())), json!([4, 4, 4]));
}
