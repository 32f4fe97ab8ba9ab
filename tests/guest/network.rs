//! Linux's NVMe/TCP host, in a guest, with the target on the host's loopback.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::{
    Client, Fixture, Options, Resource, Target, free_port, malloc, namespace, subsystem,
    tcp_controller, unique,
};
use crate::target;
use crate::vm::{self, Hardware, Qemu, Vm};

/// NQN of the guest's host.
pub const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:feb98abe-d51f-40c8-b348-2753f3571d3c";

/// A pre-shared key in interchange format, and its bytes in base64.
const PSK: &str = "NVMeTLSkey-1:01:MDAxMTIyMzM0NDU1NjY3Nzg4OTlhYWJiY2NkZGVlZmZwJEiQ:";
const PSK_BYTES: &str =
    "TlZNZVRMU2tleS0xOjAxOk1EQXhNVEl5TXpNME5EVTFOalkzTnpnNE9UbGhZV0ppWTJOa1pHVmxabVp3SkVpUTo=";
/// Another pre-shared key.
const OTHER_PSK: &str = "NVMeTLSkey-1:01:QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkK9MX0g:";

/// Returns the guest's command to connect to a subsystem.
fn connect(port: u16, nqn: &str) -> String {
    format!("nvme connect -t tcp -a 10.0.2.2 -s {port} -n {nqn} -q {HOST} -i 2")
}

async fn guest() -> (Target, Client, tempfile::TempDir, Vm) {
    let target = target().await;
    let client = target.client().await;
    let dir = vm::directory();
    let vm = Vm::boot(dir.path(), &Hardware::pluggable(Qemu::Installed)).await;
    (target, client, dir, vm)
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn linux_discovers_connects_and_does_verified_io_over_tcp() {
    let (target, client, _dir, mut vm) = guest().await;
    let export = Fixture::tcp(&target, 16).await;
    let found = vm
        .ok(&format!(
            "nvme discover -t tcp -a 10.0.2.2 -s {}",
            export.port
        ))
        .await;
    assert!(found.contains(&export.nqn), "{found}");

    for digests in ["", "--hdr-digest --data-digest"] {
        vm.ok(&format!("{} {digests}", connect(export.port, &export.nqn)))
            .await;
        vm.verify("/dev/nvme0n1").await;
        // A namespace added while the host is connected is announced to it. Linux numbers its devices
        // independently of the NSID.
        let volume = malloc(&client, &unique("second"), 16).await;
        let spec = json!({ "host_nsid": 7, "uuid": "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
            "nguid": "41a2ac9b71d84bca8b47a7b3b0ed5ab1" });
        let second = namespace(&client, &export.subsystem, &volume, spec).await;
        vm.verify("/dev/nvme0n2").await;
        let ids = vm
            .ok("cat /sys/block/nvme0n2/nsid /sys/block/nvme0n2/uuid /sys/block/nvme0n2/nguid")
            .await;
        assert_eq!(
            ids.split_whitespace().collect::<Vec<_>>(),
            [
                "7",
                "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
                "41a2ac9b-71d8-4bca-8b47-a7b3b0ed5ab1"
            ]
        );
        export.resource("NvmeNamespace").deleted(&second).await;
        vm.until("test ! -e /dev/nvme0n2").await;
        vm.ok("nvme disconnect-all").await;
        vm.until("test ! -e /dev/nvme0").await;
    }
    drop(vm);
    export.remove().await;
    target.stop();
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn linux_connects_to_all_discovered_subsystems() {
    let port = free_port();
    let discovery = Options::hugepages().args(["--discovery-addr", &format!("127.0.0.1:{port}")]);
    let target = Target::start_with(discovery).await;
    let exports = [
        Fixture::tcp(&target, 16).await,
        Fixture::tcp(&target, 16).await,
    ];
    let dir = vm::directory();
    let mut vm = Vm::boot(dir.path(), &Hardware::pluggable(Qemu::Installed)).await;
    reach_loopback(&mut vm).await;
    let found = vm
        .ok(&format!("nvme discover -t tcp -a 127.0.0.1 -s {port}"))
        .await;
    for told in [
        &exports[0].nqn,
        &exports[1].nqn,
        "current discovery subsystem",
    ] {
        assert!(found.contains(told), "{told}: {found}");
    }
    vm.ok(&format!(
        "nvme connect-all -t tcp -a 127.0.0.1 -s {port} -q {HOST} -i 2"
    ))
    .await;
    // The discovery controller has used up a device number.
    let devices = vm.until("ls /dev/nvme[0-9]n1 && test $(ls /dev/nvme[0-9]n1 | wc -l) = 2");
    let devices = devices.await;
    for device in devices.split_whitespace() {
        vm.verify(device).await;
    }
    vm.ok("nvme disconnect-all").await;
    drop(vm);
    for export in exports {
        export.remove().await;
    }
    target.stop();
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn linux_does_verified_io_over_tls_only_with_the_right_key() {
    let (target, client, _dir, mut vm) = guest().await;
    let id = unique("tls");
    let subsystem = subsystem(&client, &id, json!({ "hostnqn": HOST, "psk": PSK_BYTES })).await;
    let nqn = crate::common::nqn_of(&id);
    let volume = malloc(&client, &id, 16).await;
    namespace(&client, &subsystem, &volume, json!({})).await;
    let (controller, port) = tcp_controller(&client, &subsystem).await;
    vm.ok("(tlshd -s >/tmp/tlshd 2>&1 &)").await;

    vm.run(&connect(port, &nqn))
        .await
        .expect_err("the target accepts no host without TLS");
    insert_key(&mut vm, OTHER_PSK, &nqn).await;
    vm.run(&format!("{} --tls", connect(port, &nqn)))
        .await
        .expect_err("the target rejects another key");

    insert_key(&mut vm, PSK, &nqn).await;
    vm.ok(&format!("{} --tls", connect(port, &nqn))).await;
    vm.verify("/dev/nvme0n1").await;
    // If each record waited for a delayed ACK, this would take over 20 s. The limit allows for AES in an
    // emulated guest.
    for way in ["read", "write"] {
        let begun = Instant::now();
        let report = vm
            .ok(&format!(
                "fio --name=t --filename=/dev/nvme0n1 --direct=1 --rw={way} --bs=64k --size=8M --loops=4"
            ))
            .await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(15), "{took:?}: {report}");
    }
    let encrypted = vm.ok("grep -E 'TlsCurr[TR]xSw' /proc/net/tls_stat").await;
    assert!(
        !encrypted
            .lines()
            .any(|line| line.trim_end().ends_with("\t0")),
        "{encrypted}"
    );
    vm.ok("nvme disconnect-all").await;
    drop(vm);
    Resource::new(&client, "NvmeController")
        .deleted(&controller)
        .await;
    target.stop();
}

/// Routes 127.0.0.1 to the host, where the target listens, in place of the guest's own loopback.
pub async fn reach_loopback(vm: &mut Vm) {
    vm.ok("ip address del 127.0.0.1/8 dev lo").await;
    vm.ok("echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet")
        .await;
    vm.ok("ip route add 127.0.0.1/32 via 10.0.2.2").await;
}

/// Inserts this host's key for the subsystem into the guest's keyring; replaces an existing one.
async fn insert_key(vm: &mut Vm, key: &str, nqn: &str) {
    let insert = format!(
        "nvme check-tls-key --insert --keyring .nvme --keydata {key} --hostnqn {HOST} --subsysnqn {nqn}"
    );
    let inserted = vm.ok(&insert);
    let inserted = inserted.await;
    assert!(inserted.contains("Inserted TLS key"), "{inserted}");
}
