//! KVM mode with a real QEMU and a guest that uses the hot-plugged devices.

use std::path::Path;

use serde_json::{Value, json};
use tonic::Code;

use crate::common::{Client, Resource, Target, malloc, pcie_spec, subsystem, unique};
use crate::kvm_mode;
use crate::vm::{self, Hardware, Qemu, Vm};

/// A physical function on the bus that does not exist.
const NO_BUS: i32 = 32;

fn blk(volume: &str, function: i32) -> Value {
    json!({
        "pcie_id": { "port_id": 0, "physical_function": function, "virtual_function": 0 },
        "volume_name_ref": volume,
    })
}

/// Returns the sockets left in the controllers' directory.
fn sockets(target: &Target) -> Vec<String> {
    let entries =
        std::fs::read_dir(target.ctrlr_dir()).expect("the target has created the directory");
    let names = entries.map(|entry| {
        entry
            .expect("the entry can be read")
            .file_name()
            .to_string_lossy()
            .into_owned()
    });
    names.collect()
}

/// Returns the PCI slot of the guest's virtio disk.
async fn slot(vm: &mut Vm) -> i32 {
    let address = vm
        .ok("basename $(readlink -f /sys/block/vda/device/..)")
        .await;
    let slot = address
        .trim_end()
        .strip_prefix("0000:01:")
        .and_then(|rest| rest.strip_suffix(".0"));
    let slot = slot.and_then(|slot| i32::from_str_radix(slot, 16).ok());
    slot.unwrap_or_else(|| panic!("no slot of the bus: {address}"))
}

async fn machine(qemu: Qemu, dir: &Path) -> (Target, Client, Vm) {
    let target = Target::start_with(kvm_mode(dir)).await;
    let client = target.client().await;
    let vm = Vm::boot(dir, &Hardware::pluggable(qemu)).await;
    (target, client, vm)
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn a_virtio_blk_disk_is_plugged_and_unplugged() {
    let dir = vm::directory();
    let (target, client, mut vm) = machine(Qemu::Installed, dir.path()).await;
    let disks = Resource::new(&client, "VirtioBlk");
    let volume = malloc(&client, &unique("disk"), 16).await;
    // The first slot, the last one, and one in between.
    for function in [0, 31, 5] {
        disks.created("", "disk", blk(&volume, function)).await;
        vm.verify("/dev/vda").await;
        assert_eq!(slot(&mut vm).await, function);
        disks.deleted("volumes/disk").await;
        vm.ok("test ! -e /dev/vda").await;
    }

    // A device in use is unplugged too, a surprise removal.
    disks.created("", "disk", blk(&volume, 1)).await;
    vm.until("test -b /dev/vda").await;
    vm.ok("(sleep 100 </dev/vda &)").await;
    disks.deleted("volumes/disk").await;
    vm.ok("test ! -e /dev/vda").await;
    assert_eq!(sockets(&target), Vec::<String>::new());
    drop(vm);
    target.stop();
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn a_failed_plug_is_rolled_back_and_reported() {
    let dir = vm::directory();
    let (target, client, mut vm) = machine(Qemu::Installed, dir.path()).await;
    let disks = Resource::new(&client, "VirtioBlk");
    let [volume, other] = [
        malloc(&client, &unique("disk"), 16).await,
        malloc(&client, &unique("disk"), 16).await,
    ];

    let status = disks
        .refused("", "disk", blk(&volume, NO_BUS), Code::FailedPrecondition)
        .await;
    assert!(status.message().contains("no.such.bus"), "{status}");
    assert_eq!(sockets(&target), Vec::<String>::new());
    let status = disks
        .refused("", "disk", blk(&volume, 64), Code::InvalidArgument)
        .await;
    assert!(
        status.message().contains("64 has no place in the machine"),
        "{status}"
    );

    // QEMU has no remains of the failed plug: the same ID works in a free slot. Two concurrent creates
    // race for one slot: exactly one succeeds.
    let mut two = [("disk", &volume), ("other", &other)];
    let both = tokio::join!(
        disks.create("", two[0].0, blk(two[0].1, 2)),
        disks.create("", two[1].0, blk(two[1].1, 2)),
    );
    let lost = match both {
        (Ok(_), Err(lost)) => lost,
        (Err(lost), Ok(_)) => {
            two.reverse();
            lost
        }
        _ => panic!("not exactly one of two creates got the slot"),
    };
    assert_eq!(lost.code(), Code::AlreadyExists, "{lost}");
    vm.verify("/dev/vda").await;
    let [(plugged, of_plugged), (other, of_other)] = two;
    let name = format!("volumes/{plugged}");
    let moved = blk(of_plugged, 3);
    let moved = disks
        .update_refused(&name, moved, None, Code::InvalidArgument)
        .await;
    assert!(moved.message().contains("pcie_id"), "{moved}");
    disks.created("", other, blk(of_other, 3)).await;
    vm.verify("/dev/vdb").await;
    drop(vm);
    target.stop();
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn devices_are_plugged_again_into_the_successor_of_a_machine() {
    let dir = vm::directory();
    let (target, client, mut vm) = machine(Qemu::Installed, dir.path()).await;
    let disks = Resource::new(&client, "VirtioBlk");
    let volume = malloc(&client, &unique("disk"), 16).await;
    disks.created("", "disk", blk(&volume, 4)).await;
    vm.verify("/dev/vda").await;
    let pattern = vm
        .ok("dd if=/dev/vda bs=4k count=1024 2>/dev/null | md5sum")
        .await;

    vm.kill();
    let status = disks
        .refused("", "disk", blk(&volume, 4), Code::Unavailable)
        .await;
    assert!(status.message().contains("QEMU does not run"), "{status}");

    // Repeating the create plugs the device into the running VM; repeating it again is idempotent.
    let mut vm = Vm::boot(dir.path(), &Hardware::pluggable(Qemu::Installed)).await;
    disks.created("", "disk", blk(&volume, 4)).await;
    vm.until("test -b /dev/vda").await;
    disks.created("", "disk", blk(&volume, 4)).await;
    let again = vm
        .ok("dd if=/dev/vda bs=4k count=1024 2>/dev/null | md5sum")
        .await;
    assert_eq!(
        again, pattern,
        "the volume keeps the data written by the previous VM"
    );
    vm.verify("/dev/vda").await;

    vm.kill();
    disks.deleted("volumes/disk").await;
    let status = disks
        .refused("", "disk", blk(&volume, 4), Code::Unavailable)
        .await;
    assert!(status.message().contains("QEMU does not run"), "{status}");
    assert_eq!(sockets(&target), Vec::<String>::new());
    target.stop();
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn a_virtio_scsi_controller_is_plugged_with_its_luns() {
    let dir = vm::directory();
    let (target, client, mut vm) = machine(Qemu::Installed, dir.path()).await;
    let [controllers, luns] =
        ["VirtioScsiController", "VirtioScsiLun"].map(|kind| Resource::new(&client, kind));
    let volume = malloc(&client, &unique("disk"), 16).await;
    let object =
        json!({ "pcie_id": { "port_id": 0, "physical_function": 7, "virtual_function": 0 } });
    controllers.created("", "adapter", object).await;
    let lun = json!({ "target_name_ref": "adapter", "volume_name_ref": volume });
    luns.created("", "lun", lun).await;
    vm.verify("/dev/sda").await;
    luns.deleted("volumes/lun").await;
    vm.until("test ! -e /dev/sda").await;
    controllers.deleted("volumes/adapter").await;
    vm.ok("test -z \"$(ls /sys/class/scsi_host)\"").await;
    drop(vm);
    target.stop();
}

/// Creates a subsystem with a namespace.
async fn nvme(client: &Client) -> String {
    nvme_of(client, &unique("disk"), &unique("sub")).await
}

/// Creates a subsystem with a namespace and these IDs; idempotent.
async fn nvme_of(client: &Client, volume: &str, id: &str) -> String {
    let volume = malloc(client, volume, 16).await;
    let subsystem = subsystem(client, id, json!({ "serial_number": "OPI-1" })).await;
    let spec = json!({ "spec": { "host_nsid": 1, "volume_name_ref": volume } });
    Resource::new(client, "NvmeNamespace")
        .created(&subsystem, "namespace", spec)
        .await;
    subsystem
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn an_nvme_controller_is_not_unplugged_from_a_qemu_that_would_abort() {
    let dir = vm::directory();
    let (target, client, mut vm) = machine(Qemu::Newest, dir.path()).await;
    let controllers = Resource::new(&client, "NvmeController");
    let subsystem = nvme(&client).await;
    let name = format!("{subsystem}/nvmeControllers/nvme");
    controllers.created(&subsystem, "nvme", pcie_spec(6)).await;
    vm.verify("/dev/nvme0n1").await;
    assert_eq!(
        vm.ok("cat /sys/class/nvme/nvme0/serial").await.trim(),
        "OPI-1"
    );
    assert_eq!(
        vm.ok("cat /sys/class/nvme/nvme0/address").await.trim(),
        "0000:01:06.0"
    );

    let kept = controllers
        .delete(&name)
        .await
        .expect_err("the unplug would make QEMU abort");
    assert_eq!(kept.code(), Code::FailedPrecondition, "{kept}");
    assert!(kept.message().contains("kvm-force-unplug"), "{kept}");
    vm.verify("/dev/nvme0n1").await;
    vm.kill();

    // The following VMs get the device once the create is repeated.
    for _ in 0..2 {
        let mut vm = Vm::boot(dir.path(), &Hardware::pluggable(Qemu::Newest)).await;
        controllers.created(&subsystem, "nvme", pcie_spec(6)).await;
        vm.verify("/dev/nvme0n1").await;
        vm.kill();
    }
    controllers.deleted(&name).await;
    assert_eq!(sockets(&target), Vec::<String>::new());
    target.stop();
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn the_target_survives_a_qemu_aborted_by_a_forced_unplug() {
    let dir = vm::directory();
    let target = Target::start_with(kvm_mode(dir.path()).args(["--kvm-force-unplug"])).await;
    let client = target.client().await;
    let mut vm = Vm::boot(dir.path(), &Hardware::pluggable(Qemu::Newest)).await;
    let controllers = Resource::new(&client, "NvmeController");
    let subsystem = nvme(&client).await;
    let name = format!("{subsystem}/nvmeControllers/nvme");
    controllers.created(&subsystem, "nvme", pcie_spec(6)).await;
    vm.verify("/dev/nvme0n1").await;

    // QEMU 11.1 aborts here; a later version may not. The device is gone in either case.
    controllers.deleted(&name).await;
    if vm.ended().is_none() {
        vm.until("test ! -e /dev/nvme0").await;
    }
    drop(vm);
    assert_eq!(sockets(&target), Vec::<String>::new());
    target.stop();
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn a_killed_targets_disk_is_reconnected_or_moved_by_its_successor() {
    let dir = vm::directory();
    let (mut target, client, mut vm) = machine(Qemu::Installed, dir.path()).await;
    let volume = unique("disk");
    let made = malloc(&client, &volume, 16).await;
    let disks = Resource::new(&client, "VirtioBlk");
    disks.created("", "disk", blk(&made, 8)).await;
    vm.verify("/dev/vda").await;

    for function in [8, 9] {
        target.kill();
        target.forget();
        let options = kvm_mode(dir.path()).after(&target);
        target = Target::start_with(options).await;
        let client = target.client().await;
        let disks = Resource::new(&client, "VirtioBlk");
        let made = malloc(&client, &volume, 16).await;
        disks.created("", "disk", blk(&made, function)).await;
        vm.verify("/dev/vda").await;
        assert_eq!(slot(&mut vm).await, function);
    }
    drop(vm);
    target.stop();
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn a_killed_targets_nvme_controller_is_left_plugged_by_its_successor() {
    let dir = vm::directory();
    let (mut target, client, mut vm) = machine(Qemu::Newest, dir.path()).await;
    let make = async |client: &Client| {
        let subsystem = nvme_of(client, "disk", "sub").await;
        Resource::new(client, "NvmeController")
            .create(&subsystem, "nvme", pcie_spec(6))
            .await
    };
    make(&client).await.expect("the controller is plugged");
    vm.verify("/dev/nvme0n1").await;

    // With and without the previous state: the orchestrator repeats the same calls, and an unplug would
    // make QEMU abort.
    for forgets in [false, true] {
        target.kill();
        if forgets {
            target.forget();
        }
        target = Target::start_with(kvm_mode(dir.path()).after(&target)).await;
        match make(&target.client().await).await {
            Ok(_) => assert!(!forgets, "the device's owner is unknown without the state"),
            Err(refused) => {
                assert!(forgets, "{refused}");
                assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
                assert!(refused.message().contains("kvm-force-unplug"), "{refused}");
            }
        }
        assert!(vm.ended().is_none(), "QEMU has ended");
        vm.ok("test -e /sys/bus/pci/devices/0000:01:06.0").await;
    }

    // The guest's disk is lost: QEMU's vfio-user client does not reconnect. The next VM gets it again.
    vm.kill();
    let mut vm = Vm::boot(dir.path(), &Hardware::pluggable(Qemu::Newest)).await;
    let made = make(&target.client().await).await;
    made.expect("the controller is plugged into the new VM");
    vm.verify("/dev/nvme0n1").await;
    drop(vm);
    target.stop();
}
