//! The program as it runs on a DPU: inside a machine that has NVMe devices, of which it takes over one
//! through vfio-pci and exports it.

use std::net::SocketAddr;
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

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn an_nvme_device_is_taken_over_through_vfio_and_exported() {
    let _machine = lock_machine();
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
    let mut vm = Vm::boot(dir.path(), &hardware).await;
    vm.ok("echo 320 >/proc/sys/vm/nr_hugepages; mount -t hugetlbfs nodev /dev/hugepages")
        .await;
    let program = "/opi/run --cores 0 --mem-mib 512 --grpc-addr 0.0.0.0:50051 --state-dir /tmp/s --ctrlr-dir /tmp/c";
    vm.ok("modprobe -a vfio-pci vfio_iommu_type1").await;
    vm.ok(&format!("({program} >/tmp/log 2>&1 & echo $! >/tmp/pid)"))
        .await;
    let address = SocketAddr::from(([127, 0, 0, 1], grpc));
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
    vm.ok(&format!(
        "cd /sys/bus/pci/devices/{DEVICE} && echo {DEVICE} >driver/unbind && echo vfio-pci >driver_override && \
         echo {DEVICE} >/sys/bus/pci/drivers_probe && readlink driver | grep -q vfio-pci"
    ))
    .await;
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
    let host = Initiator::tcp(nvme, &nqn_of("dpu"));
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::write(&input, pattern(1024)).expect("a file");
    host.copy_in(dir.path(), &input, 1)
        .await
        .expect("it is written");
    host.copy_out(dir.path(), 1, 1024, &output)
        .await
        .expect("it is read");
    assert!(
        std::fs::read(&output).expect("a file") == pattern(1024),
        "other bytes came back"
    );
    let on_device = std::fs::read(&ssd).expect("a file");
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
    vm.ok(&format!(
        "readlink /sys/bus/pci/devices/{OTHER}/driver | grep -q nvme"
    ))
    .await;
    assert!(
        std::fs::read(&other)
            .expect("a file")
            .iter()
            .all(|byte| *byte == 0)
    );
    vm.ok("kill $(cat /tmp/pid)").await;
    vm.until("grep stopped /tmp/log").await;
}
