//! The program as it runs on a DPU: in a VM with NVMe devices, one of which it takes over through
//! vfio-pci and exports. `opi-spdk setup` prepares the machine and restores it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tonic::Code;

use crate::common::{
    Client, Initiator, Machine, Resource, eventually, free_port, namespace, nqn_of, pattern,
    subsystem,
};
use crate::vm::{self, Hardware, Qemu, Vm};

/// The device that is taken over; the other one stays with Linux.
const DEVICE: &str = "0000:00:05.0";
const OTHER: &str = "0000:00:06.0";

/// Start timeout: the guest is emulated and slow.
const START: Duration = Duration::from_secs(60);

/// The setup command: 320 hugepages of 2 MiB, and the device.
const SETUP: &str = "/opi/run setup --hugepages 320 --limits --bind 0000:00:05.0";

/// Runs a command with the privileges of a container started with `--cap-drop ALL --cap-add SYS_NICE
/// --security-opt no-new-privileges --ulimit memlock=-1`, and with a read-only /sys.
const CONTAINED: &str = "unshare -m sh -c 'mount -o remount,bind,ro /sys && ulimit -l unlimited && exec \
    /opi/setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,+sys_nice \"$@\"' --";

/// Runs a command with the privileges that docs/operations.md has for setup in a container with the machine's PID
/// namespace: these capabilities, and a mount namespace that shares the machine's /dev.
const SETUP_CONTAINED: &str = "/opi/unshare -m --propagation unchanged /opi/setpriv --no-new-privs --inh-caps=-all \
    --bounding-set=-all,+sys_admin,+sys_module,+sys_ptrace";

/// A VM with two NVMe devices, backed by files on the host, and two forwarded ports.
struct Dpu {
    vm: Vm,
    /// Backing file of [`DEVICE`].
    ssd: PathBuf,
    /// Backing file of [`OTHER`].
    other: PathBuf,
    /// Host port forwarded to the API's port.
    grpc: u16,
    /// Host port forwarded to the NVMe/TCP port.
    nvme: u16,
    dir: tempfile::TempDir,
}

impl Dpu {
    async fn boot() -> Self {
        let dir = vm::directory();
        let disk = |name: &str| {
            let path = dir.path().join(name);
            let file = std::fs::File::create(&path).expect("a file");
            file.set_len(64 << 20).expect("64 MiB");
            path
        };
        let [ssd, other] = [disk("ssd"), disk("other")];
        let [grpc, nvme] = [free_port(), free_port()];
        let drives = format!(
            "-drive file={},if=none,id=d0,format=raw -device nvme,drive=d0,serial=SSD-0,addr=5 \
             -drive file={},if=none,id=d1,format=raw -device nvme,drive=d1,serial=SSD-1,addr=6",
            ssd.display(),
            other.display()
        );
        let network = vm::network(&[(grpc, 50051), (nvme, 4420)]);
        let hardware = Hardware {
            qemu: Qemu::Installed,
            mem_mib: 2560,
            cores: "0,1",
            with_program: true,
            kernel: "intel_iommu=on",
            args: vm::words(&format!(
                "-machine q35,kernel-irqchip=split -smp 2 -device intel-iommu,aw-bits=48 {drives} {network}"
            )),
        };
        let vm = Vm::boot(dir.path(), &hardware).await;
        Self {
            vm,
            ssd,
            other,
            grpc,
            nvme,
            dir,
        }
    }

    /// Returns the driver bound to a device.
    async fn driver(&mut self, device: &str) -> String {
        let link = format!("basename $(readlink /sys/bus/pci/devices/{device}/driver)");
        self.vm.ok(&link).await.trim().to_owned()
    }

    /// Asserts that the machine is in its initial state.
    async fn is_as_it_was(&mut self) {
        assert_eq!(self.driver(DEVICE).await, "nvme");
        let pages = self.vm.ok("cat /proc/sys/vm/nr_hugepages").await;
        assert_eq!(pages.trim(), "0");
        let left = "mount | grep hugetlbfs; ls /run/opi-spdk-setup.json";
        let left = self.vm.run(left).await;
        assert!(left.is_err(), "{left:?}");
        self.vm.until(&format!("test -b {}", block(DEVICE))).await;
    }
}

/// Returns the block device of an NVMe device, as an expression of the guest's shell.
fn block(device: &str) -> String {
    format!("/dev/$(ls /sys/bus/pci/devices/{device}/nvme)n1")
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn setup_prepares_and_restores_a_machine() {
    let _machine = Machine::alone();
    let mut dpu = Dpu::boot().await;

    // A dry run shows the steps and does nothing.
    let shown = dpu.vm.ok(&format!("{SETUP} --dry-run")).await;
    assert!(shown.contains("modprobe vfio-pci"), "{shown}");
    dpu.is_as_it_was().await;

    // A device in use as swap is left alone; with it, no other device is changed either.
    let swap = block(OTHER);
    dpu.vm.ok(&format!("mkswap {swap} && swapon {swap}")).await;
    let both = format!("/opi/run setup --hugepages 320 --bind {DEVICE},{OTHER}");
    let refused = dpu.vm.run(&both).await.expect_err("one is in use");
    assert!(
        refused.contains("is left alone") && refused.contains("swap"),
        "{refused}"
    );
    dpu.is_as_it_was().await;
    dpu.vm.ok(&format!("swapoff {swap}")).await;

    // So is a device that a process has open without a claim.
    let raw = format!("(sleep 1000 <{swap} >/dev/null 2>&1 & echo $! >/tmp/user)");
    dpu.vm.ok(&raw).await;
    let refused = dpu.vm.run(&both).await.expect_err("one is open");
    assert!(
        refused.contains("is left alone: process") && refused.contains(") has nvme"),
        "{refused}"
    );
    dpu.is_as_it_was().await;
    dpu.vm.ok("kill $(cat /tmp/user)").await;

    // setup killed before its first step, and while it takes over the device: --undo restores the
    // initial state.
    for step in ["hugepages", "give"] {
        let cut = format!(
            "({SETUP} >/dev/null 2>&1 & pid=$!; until grep -q {step} /run/opi-spdk-setup.json 2>/dev/null; \
             do kill -0 $pid || exit 1; done; kill -9 $pid)"
        );
        dpu.vm.ok(&cut).await;
        dpu.vm.ok("/opi/run setup --undo").await;
        dpu.is_as_it_was().await;
    }

    // setup is idempotent.
    dpu.vm.ok(SETUP).await;
    assert_eq!(dpu.driver(DEVICE).await, "vfio-pci");
    assert_eq!(dpu.driver(OTHER).await, "nvme");
    let again = dpu.vm.ok(SETUP).await;
    assert_eq!(again.trim(), "nothing to do");
    let doctor = dpu
        .vm
        .ok("/opi/run doctor --mem-mib 512 --state-dir /tmp/s --ctrlr-dir /tmp/c")
        .await;
    assert!(doctor.contains("vfio"), "{doctor}");

    dpu.vm.ok("/opi/run setup --undo").await;
    dpu.is_as_it_was().await;
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn setup_in_a_container_takes_a_device_and_spares_one_that_its_surroundings_use() {
    let _machine = Machine::alone();
    let mut dpu = Dpu::boot().await;
    let contained = SETUP.replace("/opi/run", &format!("{SETUP_CONTAINED} /opi/run"));

    dpu.vm.ok("mount --make-rshared /dev").await;

    // The machine mounts the disk, and the container has that mount no more.
    let disk = block(DEVICE);
    let mount = format!("mke2fs -q {disk} && mkdir -p /tmp/data && mount -t ext2 {disk} /tmp/data");
    dpu.vm.ok(&mount).await;
    let inside = |setup: &str| {
        format!(
            "unshare -m sh -c 'mount --make-rprivate / && umount /tmp/data && ! grep /tmp/data /proc/self/mountinfo && {setup}'"
        )
    };
    for setup in [SETUP, &contained] {
        let refused = dpu.vm.run(&inside(setup)).await.expect_err("it is mounted");
        assert!(refused.contains("is left alone: nvme"), "{refused}");
    }
    // As in a PID namespace of its own: process 1 is not the machine's, and only the kernel knows of the mount.
    let alone = inside(&format!(
        "unshare -p -f sh -c \"mount -t proc proc /proc && {SETUP}\""
    ));
    let refused = dpu.vm.run(&alone).await.expect_err("it is mounted");
    assert!(
        refused.contains("is claimed by the kernel or a process"),
        "{refused}"
    );
    dpu.vm.ok("umount /tmp/data").await;
    // Nobody uses the disk, which cannot be told from there.
    let alone = format!("unshare -m -p -f sh -c 'mount -t proc proc /proc && {SETUP}'");
    let refused = dpu
        .vm
        .run(&alone)
        .await
        .expect_err("processes are not seen");
    assert!(refused.contains("--pid host"), "{refused}");
    dpu.is_as_it_was().await;

    // Without one of the capabilities the message names what is missing; with them the device is taken and given back.
    for (capability, word) in [
        ("ptrace", "CAP_SYS_PTRACE"),
        ("admin", "mount"),
        ("module", "modprobe"),
    ] {
        let less = contained.replace(&format!(",+sys_{capability}"), "");
        let refused = dpu.vm.run(&less).await.expect_err(capability);
        assert!(refused.contains(word), "{capability}: {refused}");
        dpu.vm.ok("/opi/run setup --undo").await;
        dpu.is_as_it_was().await;
    }
    dpu.vm.ok(&contained).await;
    assert_eq!(dpu.driver(DEVICE).await, "vfio-pci");
    assert_eq!(dpu.vm.ok(&contained).await.trim(), "nothing to do");
    let undo = format!("{SETUP_CONTAINED} /opi/run setup --undo");
    dpu.vm.ok(&undo).await;
    dpu.is_as_it_was().await;
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn an_nvme_device_is_exported_through_vfio_with_one_capability() {
    let _machine = Machine::alone();
    let mut dpu = Dpu::boot().await;
    // Everything but the device, which is still bound to Linux's driver.
    dpu.vm.ok("/opi/run setup --hugepages 320").await;
    let program = "/opi/run --cores 0 --mem-mib 512 --grpc-addr 0.0.0.0:50051 --state-dir /tmp/s --ctrlr-dir /tmp/c";
    dpu.vm
        .ok(&format!(
            "({CONTAINED} {program} >/tmp/log 2>&1 & echo $! >/tmp/pid)"
        ))
        .await;
    let address = SocketAddr::from(([127, 0, 0, 1], dpu.grpc));
    let client = eventually("the program serves in the guest", START, async || {
        let client = Client::connect(address).await?;
        client.is_serving().await.then_some(client)
    })
    .await;

    let controllers = Resource::new(&client, "NvmeRemoteController");
    let paths = Resource::new(&client, "NvmePath");
    controllers
        .created("", "ssd", json!({ "multipath": "NVME_MULTIPATH_DISABLE" }))
        .await;
    let path = |address: &str| json!({ "trtype": "NVME_TRANSPORT_TYPE_PCIE", "traddr": address });
    let remote = "nvmeRemoteControllers/ssd";

    // The device is bound to Linux's driver: the program does not take it over unasked.
    let status = paths
        .refused(remote, "p", path(DEVICE), Code::FailedPrecondition)
        .await;
    assert!(status.message().contains("vfio-pci"), "{status}");
    dpu.vm.ok(SETUP).await;
    assert_eq!(dpu.driver(DEVICE).await, "vfio-pci");
    paths.created(remote, "p", path(DEVICE)).await;
    let found = client
        .ok("ListNvmeRemoteNamespaces", json!({ "parent": remote }))
        .await;
    let found = found["nvme_remote_namespaces"]
        .as_array()
        .expect("a list")
        .clone();
    assert_eq!(found.len(), 1, "{found:?}");
    let volume = found[0]["name"].as_str().expect("a name");

    let exported = subsystem(&client, "dpu", json!({})).await;
    namespace(&client, &exported, volume, json!({})).await;
    let endpoint =
        json!({ "traddr": "10.0.2.15", "trsvcid": "4420", "adrfam": "NVME_ADDRESS_FAMILY_IPV4" });
    let spec = json!({ "trtype": "NVME_TRANSPORT_TYPE_TCP", "fabrics_id": endpoint });
    let listening = Resource::new(&client, "NvmeController");
    listening
        .created(&exported, "tcp", json!({ "spec": spec }))
        .await;

    // A host outside the VM writes through the export, and the data reaches the device.
    let host = Initiator::tcp(dpu.nvme, &nqn_of("dpu"));
    let (input, output) = (dpu.dir.path().join("in"), dpu.dir.path().join("out"));
    std::fs::write(&input, pattern(1024)).expect("a file");
    host.copy_in(dpu.dir.path(), &input, 1)
        .await
        .expect("the file is copied to the namespace");
    host.copy_out(dpu.dir.path(), 1, 1024, &output)
        .await
        .expect("the namespace is copied to a file");
    assert!(
        std::fs::read(&output).expect("a file") == pattern(1024),
        "the data read differs from the data written"
    );
    let on_device = std::fs::read(&dpu.ssd).expect("a file");
    assert!(
        on_device[..1 << 20] == pattern(1024),
        "the data on the device differs from the data written"
    );
    let stats = paths.stats(&format!("{remote}/nvmePaths/p")).await;
    assert!(
        stats["write_bytes_count"].as_i64() >= Some(1 << 20),
        "{stats}"
    );

    // The other device was not touched and is still bound to Linux's driver.
    assert_eq!(dpu.driver(OTHER).await, "nvme");
    assert!(
        std::fs::read(&dpu.other)
            .expect("a file")
            .iter()
            .all(|byte| *byte == 0)
    );
    dpu.vm.ok("kill $(cat /tmp/pid)").await;
    dpu.vm.until("grep stopped /tmp/log").await;
}
