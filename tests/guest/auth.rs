//! DH-HMAC-CHAP between Linux's NVMe/TCP host, in a guest, and the target.
//!
//! What both know: SHA-256, SHA-384 and SHA-512; no DH group and those of 2,048 to 6,144 bits. Linux also offers 8,192 bits,
//! which SPDK knows and this target refuses, as the computation would block its reactor.

use std::time::Duration;

use serde_json::{Value, json};

use crate::auth_relay::{Agreed, AuthRelay, Choice, FAILURE1, Recording};
use crate::common::{
    Client, Resource, Target, base64, dhchap_key, eventually, malloc, metrics, namespace, nqn_of,
    subsystem, tcp_controller,
};
use crate::network::HOST;
use crate::target;
use crate::vm::{self, Hardware, Qemu, Vm};

/// NQN of a host that is not admitted.
pub const STRANGER: &str = "nqn.2014-08.org.nvmexpress:uuid:0b5f7c1e-6a3d-4c55-8d0e-5a9f3f3a7e21";

/// Identifiers of the hashes, and Linux's names.
const HASHES: [(u8, &str); 3] = [
    (1, "hmac(sha256)"),
    (2, "hmac(sha384)"),
    (3, "hmac(sha512)"),
];

/// Identifiers of the DH groups that both take, and Linux's names.
const GROUPS: [(u8, &str); 5] = [
    (0, "null"),
    (1, "ffdhe2048"),
    (2, "ffdhe3072"),
    (3, "ffdhe4096"),
    (4, "ffdhe6144"),
];

/// The DH group of 8,192 bits, which the target refuses.
const TOO_LARGE: u8 = 5;

/// The hash and the DH group that are used without a restriction: the strongest that both take.
const STRONGEST: Choice = (3, 4);

/// Keep-alive timeout, in seconds: Linux sends none while it authenticates, which may take an emulated guest over 10 s.
pub const KEEP_ALIVE: u32 = 60;

/// Linux's words for a controller that does not prove its key.
const IMPOSTOR: &str = "controller authentication failed";

/// Timeout of what follows a connection's end.
const SOON: Duration = Duration::from_secs(20);

/// Returns the guest's command to connect to a subsystem with a key of the host and one of the controller; an empty one means
/// none.
pub fn connect(port: u16, nqn: &str, host: &str, [key, ctrlr]: [&str; 2]) -> String {
    let id = host.rsplit(':').next().unwrap_or_default();
    let mut command = format!(
        "nvme connect -t tcp -a 10.0.2.2 -s {port} -n {nqn} -q {host} -I {id} -i 1 -k {KEEP_ALIVE}"
    );
    for (option, key) in [("dhchap-secret", key), ("dhchap-ctrl-secret", ctrlr)] {
        if !key.is_empty() {
            command += &format!(" --{option} {key}");
        }
    }
    command
}

/// Returns an NvmeHost with these keys.
pub fn host(hostnqn: &str, [key, ctrlr]: [&str; 2]) -> Value {
    json!({ "hostnqn": hostnqn, "dhchap_key": base64(key), "dhchap_ctrlr_key": base64(ctrlr) })
}

/// A subsystem that admits the guest's host with keys, and the guest, which reaches it through a relay.
struct Lab {
    target: Target,
    client: Client,
    nqn: String,
    /// The NvmeHost.
    admission: String,
    port: u16,
    relay: AuthRelay,
    vm: Vm,
    keys: [String; 2],
    _dir: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Self {
        let target = target().await;
        let client = target.client().await;
        let subsystem = subsystem(&client, "s", json!({})).await;
        let volume = malloc(&client, "volume", 16).await;
        namespace(&client, &subsystem, &volume, json!({})).await;
        let keys = [dhchap_key(1), dhchap_key(2)];
        let object = host(HOST, keys.each_ref().map(String::as_str));
        let hosts = Resource::new(&client, "NvmeHost");
        hosts.created(&subsystem, "linux", object).await;
        let (_, port) = tcp_controller(&client, &subsystem).await;
        let relay = AuthRelay::to(port).await;
        let dir = vm::directory();
        let vm = Vm::boot(dir.path(), &Hardware::pluggable(Qemu::Installed)).await;
        Self {
            target,
            client,
            nqn: nqn_of("s"),
            admission: format!("{subsystem}/nvmeHosts/linux"),
            port,
            relay,
            vm,
            keys,
            _dir: dir,
        }
    }

    /// Connects and disconnects the guest; returns its kernel's log of that, and the recorded connections.
    async fn visits(&mut self, keys: [&str; 2]) -> (String, Vec<Recording>) {
        self.relay.take();
        self.vm.ok("dmesg -c >/dev/null").await;
        let connect = connect(self.relay.port, &self.nqn, HOST, keys);
        self.vm.ok(&connect).await;
        self.vm.until("test -b /dev/nvme0n1").await;
        let log = self.vm.ok("dmesg -c").await;
        self.vm.ok("nvme disconnect-all").await;
        self.vm.until("test ! -e /dev/nvme0").await;
        (log, self.relay.take())
    }

    /// Lets the guest try to connect, which must fail; returns the tool's output and the kernel's log.
    async fn is_refused(&mut self, who: &str, port: u16, host: &str, keys: [&str; 2]) -> String {
        self.vm.ok("dmesg -c >/dev/null").await;
        let connect = connect(port, &self.nqn, host, keys);
        let said = self.vm.run(&connect).await.expect_err(who);
        self.vm.until("test ! -e /dev/nvme0").await;
        said + &self.vm.ok("dmesg -c").await
    }

    /// Returns how many hosts were refused for this reason.
    fn refused(&self, reason: &str) -> u64 {
        let text = metrics(self.target.http);
        let name = format!("opi_spdk_hosts_refused_total{{reason=\"{reason}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.expect("the metric exists").parse().expect("a number")
    }

    /// Waits until so many hosts were refused for this reason.
    async fn counts(&self, reason: &str, number: u64) {
        let counted = async || (self.refused(reason) == number).then_some(());
        eventually("the refusal is counted", SOON, counted).await;
    }

    /// One way and mutual, with each hash and DH group, on the admin queue and the I/O queue.
    async fn each_hash_and_group(&mut self) {
        let [key, ctrlr] = self.keys.clone();
        let (_, recordings) = self.visits([&key, ""]).await;
        assert_eq!(recordings.len(), 2, "an admin queue and an I/O queue");
        for recording in &recordings {
            let (hashes, groups) = recording.offered().expect("an offer");
            assert_eq!(hashes, [1, 2, 3]);
            assert_eq!(groups, [0, 1, 2, 3, 4, TOO_LARGE]);
            let agreed = recording.agreed().expect("it has authenticated");
            assert_eq!(agreed.choice, STRONGEST);
        }
        for (hash, hash_name) in HASHES {
            for (group, group_name) in GROUPS {
                self.relay.restrict(Some((hash, group)));
                for mutual in [false, true] {
                    let ctrlr = if mutual { ctrlr.as_str() } else { "" };
                    let (log, recordings) = self.visits([&key, ctrlr]).await;
                    let told = format!("authenticated with hash {hash_name} dhgroup {group_name}");
                    assert!(log.contains(&told), "{told}: {log}");
                    let agreed: Vec<_> = recordings.iter().map(Recording::agreed).collect();
                    let choice = (hash, group);
                    assert_eq!(agreed, [Some(Agreed { choice, mutual }); 2], "{told}");
                }
            }
            self.relay.restrict(Some((hash, TOO_LARGE)));
            let port = self.relay.port;
            self.is_refused("8,192 bits", port, HOST, [&key, ""]).await;
        }
        self.relay.restrict(None);
    }

    /// Keys made by nvme-cli: bytes as they are, and for a transformation by each hash.
    async fn keys_of_nvme_cli(&mut self) {
        let hosts = Resource::new(&self.client, "NvmeHost");
        for hash in 0..=3 {
            let mut keys = Vec::new();
            for nqn in [HOST, self.nqn.clone().as_str()] {
                let made = format!("nvme gen-dhchap-key --hmac={hash} --nqn={nqn}");
                keys.push(self.vm.ok(&made).await.trim().to_owned());
            }
            let keys = [keys[0].as_str(), keys[1].as_str()];
            assert!(keys[0].starts_with(&format!("DHHC-1:0{hash}:")), "{keys:?}");
            hosts.updated(&self.admission, host(HOST, keys), None).await;
            let (_, recordings) = self.visits(keys).await;
            let mutual = recordings.iter().filter_map(Recording::agreed);
            assert_eq!(mutual.filter(|agreed| agreed.mutual).count(), 2, "{hash}");
        }
        let object = host(HOST, self.keys.each_ref().map(String::as_str));
        hosts.updated(&self.admission, object, None).await;
    }

    async fn wrong_keys_and_hosts(&mut self) {
        let [key, ctrlr] = self.keys.clone();
        let other = dhchap_key(3);
        for (who, host, keys, reason) in [
            ("another key", HOST, [other.as_str(), ""], "dhchap"),
            ("no key", HOST, ["", ""], "dhchap"),
            ("a stranger", STRANGER, [&key, &ctrlr], "not_admitted"),
            // The guest refuses the target, and tells it so.
            ("another controller", HOST, [&key, &other], "controller"),
        ] {
            let before = self.refused(reason);
            let said = self.is_refused(who, self.port, host, keys).await;
            self.counts(reason, before + 1).await;
            assert_eq!(
                said.contains(IMPOSTOR),
                reason == "controller",
                "{who}: {said}"
            );
        }
        self.visits([&key, &ctrlr]).await;
    }

    /// The recorded proof of the host is worth nothing to the target, nor is that of the target to the host.
    async fn replays(&mut self) {
        let [key, ctrlr] = self.keys.clone();
        // Without a DH group nothing but the challenges differs from one exchange to the next.
        self.relay.restrict(Some((1, 0)));
        let (_, recordings) = self.visits([&key, &ctrlr]).await;
        self.relay.restrict(None);
        let admin = recordings.into_iter().next().expect("the admin queue");
        assert!(admin.agreed().is_some_and(|agreed| agreed.mutual));

        let before = self.refused("dhchap");
        let answer = admin.replay(self.port).expect("an answer");
        assert_eq!(answer[..2], FAILURE1, "{answer:?}");
        self.counts("dhchap", before + 1).await;

        let (port, impostor) = admin.impersonate().await;
        let said = self
            .is_refused("an impostor", port, HOST, [&key, &ctrlr])
            .await;
        assert!(said.contains(IMPOSTOR), "{said}");
        impostor.abort();
    }
}

#[tokio::test]
#[ignore = "needs QEMU: scripts/test.sh --guest"]
async fn linux_authenticates_with_each_hash_and_group_and_no_wrong_key_or_replay_is_accepted() {
    let mut lab = Lab::new().await;
    lab.each_hash_and_group().await;
    lab.keys_of_nvme_cli().await;
    lab.wrong_keys_and_hosts().await;
    lab.replays().await;
    drop(lab.vm);
    lab.target.stop();
}
