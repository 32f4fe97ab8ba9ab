//! A Linux host that discovers and connects as it is configured, with DH-HMAC-CHAP, and whose key is rotated while it is
//! connected.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::auth::{KEEP_ALIVE, STRANGER, host};
use crate::common::{
    Client, Options, Resource, Target, base64, dhchap_key, free_port, malloc, namespace, nqn_of,
    subsystem, tcp_controller,
};
use crate::network::{HOST, reach_loopback};
use crate::vm::{self, Hardware, Qemu, Vm};

/// Key rotations under I/O.
const ROTATIONS: u8 = 3;

/// Returns the time this many seconds from now.
fn later(seconds: u64) -> String {
    let time = SystemTime::now() + Duration::from_secs(seconds);
    prost_types::Timestamp::from(time).to_string()
}

/// Exports a volume to one host, which has to authenticate; returns the subsystem's name, its NQN and its port.
async fn export(client: &Client, id: &str, hostnqn: &str, key: &str) -> (String, String, u16) {
    let subsystem = subsystem(client, id, json!({})).await;
    let volume = malloc(client, id, 16).await;
    namespace(client, &subsystem, &volume, json!({})).await;
    let hosts = Resource::new(client, "NvmeHost");
    let admitted = host(hostnqn, [key, ""]);
    hosts.created(&subsystem, "linux", admitted).await;
    let (_, port) = tcp_controller(client, &subsystem).await;
    (subsystem, nqn_of(id), port)
}

/// Writes the guest's host NQN, host ID, address of the discovery service, and key.
async fn configure(vm: &mut Vm, discovery: u16, key: &str) {
    let id = HOST.rsplit(':').next().expect("a UUID");
    let keys = json!([{ "hostnqn": HOST, "hostid": id, "dhchap_key": key }]);
    for (file, text) in [
        ("hostnqn", HOST.to_owned()),
        ("hostid", id.to_owned()),
        (
            "discovery.conf",
            format!("-t tcp -a 127.0.0.1 -s {discovery} -k {KEEP_ALIVE}"),
        ),
        ("config.json", keys.to_string()),
    ] {
        vm.ok(&format!("echo '{text}' >/etc/nvme/{file}")).await;
    }
}

/// A guest's controller, with I/O that is verified until it is stopped.
struct Connected {
    vm: Vm,
    client: Client,
    subsystem: String,
    nqn: String,
    port: u16,
    /// The controller, such as `nvme1`.
    device: String,
}

impl Connected {
    /// Returns the IDs of the guest's controllers.
    async fn controllers(&self) -> Vec<Value> {
        let listed = json!({ "parent": self.subsystem });
        let listed = self.client.ok("ListHosts", listed).await;
        let hosts = listed["hosts"].as_array().expect("hosts").iter();
        hosts.map(|host| host["controller_id"].clone()).collect()
    }

    /// Starts passes of fio, each of which writes 4 MiB and verifies them.
    async fn begin_io(&mut self) {
        let block = self.vm.until("ls /dev/nvme[0-9]n1").await;
        let fio = format!(
            "fio --name=v --filename={} --direct=1 --rw=randwrite --bs=4k --size=4M --ioengine=libaio --iodepth=4 \
             --verify=crc32c --verify_fatal=1 --do_verify=1",
            block.trim()
        );
        let passes = format!(
            "(while test ! -e /tmp/stop; do {fio} >/tmp/fio 2>&1 || cp /tmp/fio /tmp/failed; \
             echo pass >>/tmp/passes; done; touch /tmp/stopped) >/dev/null 2>&1 &"
        );
        self.vm.ok(&passes).await;
        self.passes().await;
    }

    /// Waits until one more pass has begun and ended.
    async fn passes(&mut self) {
        self.vm.ok("rm -f /tmp/passes").await;
        self.vm.until("test $(wc -l </tmp/passes) -ge 2").await;
        self.vm
            .ok("test ! -e /tmp/failed || ! cat /tmp/failed")
            .await;
    }

    /// Gives the guest's controller a key, with which it authenticates again.
    async fn takes(&mut self, key: &str) {
        let device = &self.device;
        self.vm.ok("dmesg -c >/dev/null").await;
        let set = format!("echo {key} >/sys/class/nvme/{device}/dhchap_secret");
        self.vm.ok(&set).await;
        let proved = format!("dmesg | grep '{device}: qid 0: authenticated with hash'");
        self.vm.until(&proved).await;
    }

    /// Makes another connection of the guest with this key, and ends it.
    async fn connects_with(&mut self, key: &str) -> Result<(), String> {
        let connect = crate::auth::connect(self.port, &self.nqn, HOST, [key, ""]);
        let said = self
            .vm
            .run(&format!("{connect} --duplicate-connect"))
            .await?;
        let device = said
            .split_whitespace()
            .last()
            .expect("the device")
            .to_owned();
        assert_ne!(device, self.device, "{said}");
        self.vm
            .ok(&format!("nvme disconnect --device={device}"))
            .await;
        self.vm.until(&format!("test ! -e /dev/{device}")).await;
        Ok(())
    }
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn linux_connects_without_arguments_and_stays_while_its_key_is_rotated_under_verified_io() {
    let discovery = free_port();
    let address = format!("127.0.0.1:{discovery}");
    let options = Options::hugepages().args(["--discovery-addr", &address]);
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let keys: Vec<_> = (1..=ROTATIONS + 2).map(dhchap_key).collect();
    let (subsystem, nqn, port) = export(&client, "own", HOST, &keys[0]).await;
    let (_, others, _) = export(&client, "others", STRANGER, &keys[0]).await;
    let dir = vm::directory();
    let hardware = Hardware {
        kernel: "loglevel=6",
        ..Hardware::pluggable(Qemu::Installed)
    };
    let mut vm = Vm::boot(dir.path(), &hardware).await;
    reach_loopback(&mut vm).await;

    // The discovery log is for any host; it lists what this one may connect to.
    configure(&mut vm, discovery, &keys[1]).await;
    let found = vm.ok("nvme discover").await;
    assert!(found.contains(&nqn) && !found.contains(&others), "{found}");
    let said = vm.run("nvme connect-all").await;
    let connected = vm.run("ls /dev/nvme[0-9]n1").await;
    connected.expect_err(&format!("with another key: {said:?}"));
    configure(&mut vm, discovery, &keys[0]).await;
    vm.ok("nvme connect-all").await;
    let found = format!("dirname $(grep -l '^{nqn}$' /sys/class/nvme/*/subsysnqn)");
    let device = vm.ok(&format!("basename $({found})")).await;

    let mut host = Connected {
        vm,
        client: client.clone(),
        subsystem: subsystem.clone(),
        nqn,
        port,
        device: device.trim().to_owned(),
    };
    let controllers = host.controllers().await;
    assert_eq!(controllers.len(), 1, "{controllers:?}");
    host.begin_io().await;
    let hosts = Resource::new(&client, "NvmeHost");
    let admission = format!("{subsystem}/nvmeHosts/linux");
    for pair in keys.windows(2).take(ROTATIONS.into()) {
        let [old, new] = pair else {
            unreachable!("windows of two")
        };
        let object = json!({ "dhchap_key": base64(new), "old_keys_until": later(3600) });
        hosts.updated(&admission, object, None).await;
        host.connects_with(old).await.expect("the old key");
        host.connects_with(new).await.expect("the new key");
        host.takes(old).await;
        host.takes(new).await;
        let over = json!({ "old_keys_until": later(0) });
        hosts
            .updated(&admission, over, Some(&["old_keys_until"]))
            .await;
        host.connects_with(old)
            .await
            .expect_err("the old key has ended");
        host.passes().await;
    }
    assert_eq!(host.controllers().await, controllers, "never disconnected");

    // The guest reconnects with the last key that it was given, and the I/O goes on.
    let reset = format!("nvme reset /dev/{}", host.device);
    host.vm.ok(&reset).await;
    host.passes().await;
    assert_eq!(host.controllers().await.len(), 1);
    host.vm.ok("touch /tmp/stop").await;
    host.vm.until("test -e /tmp/stopped").await;
    host.vm
        .ok("test ! -e /tmp/failed && nvme disconnect-all")
        .await;
    drop(host.vm);
    target.stop();
}
