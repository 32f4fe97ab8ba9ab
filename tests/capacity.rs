//! Memory per object, of SPDK and of the process, and the number of objects that 512 MiB suffice for:
//! the figures in docs/operations.md, Capacity. `scripts/test.sh --test capacity -- --ignored
//! --nocapture` prints them as a table.

mod common;

use std::path::PathBuf;
use std::time::Instant;

use common::nvme_tcp::{Digests, Host, Identity};
use common::vfio_user::Guest;
use common::vhost_user::{Disk, Kind};
use common::{
    Client, Options, Resource, Target, blk_spec, malloc, namespace, nqn_of, pcie_spec, subsystem,
    tcp_controller,
};
use serde_json::json;

/// Objects of each kind; few enough for the memory of a test.
const MANY: usize = 200;

/// Number of concurrent VMs.
const MACHINES: usize = 64;

/// Upper bound of hosts: more connections than the memory suffices for.
const HOSTS: usize = 1_000;

/// Number of timed reads.
const READS: usize = 5_000;

/// Memory usage, bytes.
#[derive(Clone, Copy)]
struct Used {
    spdk: f64,
    resident: f64,
}

impl Used {
    fn by(target: &Target) -> Self {
        let address = target.http;
        let scrape = tokio::task::block_in_place(|| common::metrics(address));
        let value = |name: &str| -> f64 {
            let mut lines = scrape.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let value = value.unwrap_or_else(|| panic!("no metric {name}: {scrape}"));
            value.parse().expect("a number")
        };
        Self {
            spdk: value("opi_spdk_memory_bytes") - value("opi_spdk_memory_free_bytes"),
            resident: value("process_resident_memory_bytes"),
        }
    }
}

/// Prints a table row: memory per object since `before`.
fn tell(target: &Target, what: &str, number: usize, before: Used) {
    let after = Used::by(target);
    let kib = |bytes: f64| bytes / 1024.0 / number as f64;
    println!(
        "| {what} | {number} | {:.1} | {:.1} |",
        kib(after.spdk - before.spdk),
        kib(after.resident - before.resident)
    );
    assert!(
        after.spdk >= before.spdk,
        "{what}: SPDK's memory usage has fallen"
    );
}

fn head() {
    println!(
        "| What | Made | KiB of SPDK's memory each | KiB of resident memory each |\n|---|---|---|---|"
    );
}

/// Returns the median latency of 4 KiB reads at queue depth 1, microseconds.
fn read_time(queue: &mut Host) -> f64 {
    let mut times: Vec<_> = (0..READS)
        .map(|_| {
            let begun = Instant::now();
            let data = queue.read(1, 0, 8).expect("the read succeeds");
            assert_eq!(data.len(), 4096);
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[READS / 2].as_secs_f64() * 1e6
}

/// Creates a subsystem with a namespace and a listener.
async fn export(client: &Client, id: &str, volume: &str) -> Identity {
    let of = subsystem(client, id, json!({})).await;
    namespace(client, &of, volume, json!({})).await;
    let (_, port) = tcp_controller(client, &of).await;
    Identity::new(port, &nqn_of(id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: scripts/test.sh --test capacity -- --ignored --nocapture"]
async fn memory_per_volume_and_export() {
    let target = Target::start_with(Options::hugepages().memory(1024)).await;
    let client = target.client().await;
    head();
    let empty = Used::by(&target);
    println!(
        "| after the start | | {:.0} | {:.0} |",
        empty.spdk / 1024.0,
        empty.resident / 1024.0
    );

    let before = Used::by(&target);
    let nulls = Resource::new(&client, "NullVolume");
    for n in 0..MANY {
        let object = json!({ "block_size": 512, "blocks_count": 2048 });
        nulls.created("", &format!("null-{n}"), object).await;
    }
    tell(&target, "null volume", MANY, before);

    let before = Used::by(&target);
    for n in 0..MANY {
        malloc(&client, &format!("malloc-{n}"), 1).await;
    }
    tell(&target, "malloc volume of 1 MiB", MANY, before);

    let files: Vec<_> = (0..MANY)
        .map(|n| {
            let path = target.scratch().join(format!("file-{n}"));
            let file = std::fs::File::create(&path).expect("a file");
            file.set_len(1 << 20).expect("1 MiB");
            path
        })
        .collect();
    let before = Used::by(&target);
    let aios = Resource::new(&client, "AioVolume");
    for (n, file) in files.iter().enumerate() {
        let object = json!({ "block_size": 512, "filename": file });
        aios.created("", &format!("aio-{n}"), object).await;
    }
    tell(&target, "aio volume", MANY, before);

    let before = Used::by(&target);
    for n in 0..MANY {
        export(
            &client,
            &format!("export-{n}"),
            &format!("volumes/null-{n}"),
        )
        .await;
    }
    tell(
        &target,
        "subsystem with a namespace and a port",
        MANY,
        before,
    );

    let before = Used::by(&target);
    let disks = Resource::new(&client, "VirtioBlk");
    for n in 0..MANY {
        let object = blk_spec(&format!("volumes/malloc-{n}"));
        disks.created("", &format!("disk-{n}"), object).await;
    }
    tell(&target, "VirtioBlk that nobody has opened", MANY, before);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: scripts/test.sh --test capacity -- --ignored --nocapture"]
async fn memory_and_latency_cost_of_connected_machines() {
    let target = Target::start_with(Options::hugepages().memory(1024)).await;
    let client = target.client().await;
    let volume = malloc(&client, "memory", 1).await;
    let identity = export(&client, "host", &volume).await;
    let admin = identity.admin(Digests::default());
    let mut queue = identity.io(&admin, 1);
    head();
    let alone = tokio::task::block_in_place(|| read_time(&mut queue));
    println!("| one host alone: {alone:.1} us a 4 KiB read | | | |");

    let disks = Resource::new(&client, "VirtioBlk");
    let mut sockets = Vec::new();
    for n in 0..MACHINES {
        let id = format!("disk-{n}");
        let volume = malloc(&client, &format!("volume-{n}"), 1).await;
        disks.created("", &id, blk_spec(&volume)).await;
        sockets.push(target.ctrlr_dir().join(id));
    }
    let before = Used::by(&target);
    let open: Vec<Disk> = tokio::task::block_in_place(|| {
        let open = |socket: &PathBuf| Disk::open(Kind::Blk, socket).expect("its driver connects");
        sockets.iter().map(open).collect()
    });
    tell(&target, "machine on a VirtioBlk", MACHINES, before);
    let beside = tokio::task::block_in_place(|| read_time(&mut queue));
    println!("| beside {MACHINES} idle machines on VirtioBlk: {beside:.1} us | | | |");
    drop(open);
    let again = tokio::task::block_in_place(|| read_time(&mut queue));
    println!("| alone again: {again:.1} us | | | |");

    let mut sockets = Vec::new();
    for n in 0..MACHINES {
        let id = format!("vfio-{n}");
        let of = subsystem(&client, &id, json!({})).await;
        let object = pcie_spec(0);
        Resource::new(&client, "NvmeController")
            .created(&of, "pcie", object)
            .await;
        sockets.push(target.ctrlr_dir().join(id).join("cntrl"));
    }
    let before = Used::by(&target);
    let guests: Vec<Guest> =
        tokio::task::block_in_place(|| sockets.iter().map(|socket| Guest::boot(socket)).collect());
    tell(
        &target,
        "machine on an NVMe controller (vfio-user)",
        MACHINES,
        before,
    );
    let beside = tokio::task::block_in_place(|| read_time(&mut queue));
    println!("| beside {MACHINES} idle machines on NVMe controllers: {beside:.1} us | | | |");
    drop(guests);
    drop((queue, admin));
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: scripts/test.sh --test capacity -- --ignored --nocapture"]
async fn hosts_connect_until_memory_is_exhausted() {
    // Without hugepages: with them, SPDK would allocate further ones of the machine.
    for mib in [512, 1024] {
        let target = Target::start_with(Options::default().memory(mib)).await;
        let client = target.client().await;
        let volume = malloc(&client, "memory", 1).await;
        let identity = export(&client, "host", &volume).await;
        let before = Used::by(&target);
        let (mut hosts, mut refused) = (Vec::new(), None);
        tokio::task::block_in_place(|| {
            while hosts.len() < HOSTS && refused.is_none() {
                match connect(&identity, hosts.len()) {
                    Ok(host) => hosts.push(host),
                    Err(error) => refused = Some(error),
                }
            }
        });
        let queues = hosts.len() * 2;
        head();
        tell(
            &target,
            &format!("queue of a host, with {mib} MiB"),
            queues,
            before,
        );
        println!("{} hosts of two queues; the next: {refused:?}", hosts.len());

        // The connected hosts are still served, and a disconnect makes room for another host.
        tokio::task::block_in_place(|| {
            for (_, queue) in &mut hosts {
                assert_eq!(queue.read(1, 0, 8).expect("the read succeeds").len(), 4096);
            }
        });
        hosts.truncate(hosts.len() - 1);
        common::eventually(
            "another host can connect",
            std::time::Duration::from_secs(5),
            async || tokio::task::block_in_place(|| connect(&identity, HOSTS)).ok(),
        )
        .await;
        drop(hosts);
        target.stop();
    }
}

/// Connects an admin queue and an I/O queue of a host with its own name.
fn connect(identity: &Identity, number: usize) -> std::io::Result<(Host, Host)> {
    let identity = identity.clone().named(&format!("host-{number}"));
    let mut admin = identity.dial()?;
    admin.negotiate(Digests::default())?;
    admin.connect(&identity, 0, 0xffff)?;
    admin.enable()?;
    let mut queue = identity.dial()?;
    queue.negotiate(Digests::default())?;
    queue.connect(&identity, 1, admin.cntlid)?;
    Ok((admin, queue))
}
