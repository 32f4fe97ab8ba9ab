//! The program as it runs on a DPU: inside a machine that has NVMe devices, of which it takes over one
//! through vfio-pci and exports it. `opi-spdk setup` makes the machine ready, and as it was.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tonic::Code;

use crate::common::{
    Client, Initiator, Resource, eventually, free_port, lock_machine, namespace, nqn_of, pattern,
    subsystem,
};
use crate::vm::{self, Hardware, Qemu, Vm};

/// The device that is taken over; another one stays with Linux.
const DEVICE: &str = "0000:00:05.0";
const OTHER: &str = "0000:00:06.0";

/// The program starts in less, but here it is emulated.
const START: Duration = Duration::from_secs(60);

/// What is asked of setup: 320 hugepages of 2 MiB, and the device.
const SETUP: &str = "/opi/run setup --hugepages 320 --limits --bind 0000:00:05.0";

/// What a container has with `--cap-drop ALL --cap-add SYS_NICE --security-opt no-new-privileges --ulimit
/// memlock=-1`: all else of root is gone, and /sys is read-only.
const CONTAINED: &str = "unshare -m sh -c 'mount -o remount,bind,ro /sys && ulimit -l unlimited && exec \
    /opi/setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,+sys_nice \"$@\"' --";

/// A machine with two NVMe devices, whose data are in files out here, and two ports that lead into it.
struct Dpu {
    vm: Vm,
    /// What is in [`DEVICE`].
    ssd: PathBuf,
    /// What is in [`OTHER`].
    other: PathBuf,
    /// Leads to the API's port.
    grpc: u16,
    /// Leads to the port of NVMe/TCP.
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

    /// The driver that has a device.
    async fn driver(&mut self, device: &str) -> String {
        let link = format!("basename $(readlink /sys/bus/pci/devices/{device}/driver)");
        self.vm.ok(&link).await.trim().to_owned()
    }

    /// The machine is as it was when it started.
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

/// The block device of an NVMe device, in words of the guest's shell.
fn block(device: &str) -> String {
    format!("/dev/$(ls /sys/bus/pci/devices/{device}/nvme)n1")
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn setup_makes_a_machine_ready_and_as_it_was() {
    let _machine = lock_machine();
    let mut dpu = Dpu::boot().await;

    // Shown, and not done.
    let shown = dpu.vm.ok(&format!("{SETUP} --dry-run")).await;
    assert!(shown.contains("modprobe vfio-pci"), "{shown}");
    dpu.is_as_it_was().await;

    // A device that Linux swaps to, alone or with one that is free, is left alone, and nothing is done.
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

    // Cut off before its first step, and while it takes the device: --undo brings back how it was.
    for step in ["hugepages", "give"] {
        let cut = format!(
            "({SETUP} >/dev/null 2>&1 & pid=$!; until grep -q {step} /run/opi-spdk-setup.json 2>/dev/null; \
             do kill -0 $pid || exit 1; done; kill -9 $pid)"
        );
        dpu.vm.ok(&cut).await;
        dpu.vm.ok("/opi/run setup --undo").await;
        dpu.is_as_it_was().await;
    }

    // Done, once.
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
async fn an_nvme_device_is_taken_over_through_vfio_with_one_capability_and_exported() {
    let _machine = lock_machine();
    let mut dpu = Dpu::boot().await;
    // All but the device, which Linux still has.
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

    // Linux has it: nothing is taken from a driver without being told to.
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

    // A host out here writes through it, and what it wrote is on the device.
    let host = Initiator::tcp(dpu.nvme, &nqn_of("dpu"));
    let (input, output) = (dpu.dir.path().join("in"), dpu.dir.path().join("out"));
    std::fs::write(&input, pattern(1024)).expect("a file");
    host.copy_in(dpu.dir.path(), &input, 1)
        .await
        .expect("it is written");
    host.copy_out(dpu.dir.path(), 1, 1024, &output)
        .await
        .expect("it is read");
    assert!(
        std::fs::read(&output).expect("a file") == pattern(1024),
        "other bytes came back"
    );
    let on_device = std::fs::read(&dpu.ssd).expect("a file");
    assert!(
        on_device[..1 << 20] == pattern(1024),
        "other bytes are on the device"
    );
    let stats = paths.stats(&format!("{remote}/nvmePaths/p")).await;
    assert!(
        stats["write_bytes_count"].as_i64() >= Some(1 << 20),
        "{stats}"
    );

    // The other device was never touched, and Linux has it still.
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
