//! One tenant's data reaches nobody else: its volumes, its I/O and its guests' memory are filled with a marker that must
//! occur in nothing that another tenant's host or guest, a peer, an operator of the API or the log gets.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::sync::Arc;

use common::nvme_tcp::{Command, Digests, Host, Identity, Pdu, Sgl};
use common::nvme_tcp_peer::{NQN as PEER_NQN, Peer, Turn};
use common::vfio_user::{self, BASE, DATA, Guest, SIZE};
use common::vhost_user::{Disk, Kind};
use common::{
    Client, Fixture, Options, Resource, Target, blk_spec, get_text, malloc, namespace, nqn_of,
    pcie_export, remote_controller, subsystem, tcp_controller, tcp_path, unique,
};
use parking_lot::Mutex;
use serde_json::json;

/// The marker: 8 bytes, repeated. The word in it would show in text too.
const MARK: [u8; 8] = *b"\xf3TENANT\xf1";
const WORD: &str = "TENANT";

/// Size of each volume.
const MIB: u64 = 4;

/// Length of one transfer in bytes and in blocks.
const LENGTH: usize = 128 << 10;
const BLOCKS: u16 = 256;

fn marks(length: usize) -> Vec<u8> {
    MARK.repeat(length / MARK.len())
}

fn position(bytes: &[u8]) -> Option<usize> {
    let mut parts = bytes.windows(WORD.len());
    parts.position(|part| part == WORD.as_bytes())
}

/// Asserts that the marker is not there, at whatever offset it began.
fn clean(what: &str, bytes: &[u8]) {
    let found = position(bytes);
    assert!(
        found.is_none(),
        "{what} has a tenant's data at byte {found:?}"
    );
}

/// The tenant's host, and its guests over both kinds of devices.
struct Tenant {
    _admin: Host,
    io: Host,
    guest: Guest,
    disk: Disk,
}

impl Tenant {
    /// Fills volumes, guest memory and the buffers that I/O goes through.
    fn fill(&mut self) {
        let data = marks(LENGTH);
        for lba in (0..MIB << 11).step_by(usize::from(BLOCKS)) {
            let written = self.io.write(1, lba, &data).expect("an answer");
            assert_eq!(written.status(), 0);
            let sector = u32::try_from(lba).expect("a small volume");
            self.disk.write(sector, &data).expect("a guest's write");
        }
        // The search finds what is there.
        let own = self.io.read(1, 0, BLOCKS).expect("its own data");
        assert!(position(&own).is_some(), "the volume has the marker");
        let own = self.disk.read(0, LENGTH).expect("its own data");
        assert!(position(&own).is_some(), "the guest's disk has the marker");
        for page in 0..16 {
            let write = vfio_user::Command::rw(vfio_user::io::WRITE, page * 8, 8);
            assert!(self.guest.io(write.prps(DATA, 0)).is_ok());
        }
    }

    /// Sends the marker through the shared buffers once more.
    fn fill_buffers(&mut self) {
        let data = marks(LENGTH);
        for _ in 0..4 {
            let written = self.io.write(1, 0, &data).expect("an answer");
            assert_eq!(written.status(), 0);
        }
        self.disk.write(0, &data).expect("a guest's write");
    }
}

/// Creates a volume with a virtio-blk device; returns the device's socket.
async fn blk(target: &Target, client: &Client) -> PathBuf {
    let id = unique("blk");
    let volume = malloc(client, &id, MIB).await;
    Resource::new(client, "VirtioBlk")
        .created("", &id, blk_spec(&volume))
        .await;
    target.ctrlr_dir().join(id)
}

fn connect(export: &Fixture, name: &str) -> (Host, Host) {
    let identity = Identity::new(export.port, &export.nqn).named(name);
    let admin = identity.admin(Digests::OFF);
    let io = identity.io(&admin, 1);
    (admin, io)
}

/// Sends a command that returns data, and checks all of it, whatever the status.
fn returned(host: &mut Host, command: Command) {
    let cid = host.cid();
    let command = command.put(2, &cid.to_le_bytes());
    host.send(&Pdu::capsule(command, &[])).expect("it goes");
    let (_, data) = host.completion(cid, &[]).expect("a completion");
    clean(&format!("{command:?}"), &data);
}

/// All that a host can ask for: whole volume, each Identify, log page and feature, at the length of a buffer and below.
fn host_gets(admin: &mut Host, io: &mut Host, tenant: &mut Tenant) {
    for lba in (0..MIB << 11).step_by(usize::from(BLOCKS)) {
        clean("another volume", &io.read(1, lba, BLOCKS).expect("data"));
    }
    for length in [16, 512, 4096, LENGTH as u32] {
        tenant.fill_buffers();
        let sgl = Sgl::Transport(length);
        for number in 0..=0x20 {
            let identify = Command::new(0x06, 0).nsid(1).cdw(10, number);
            returned(admin, identify.sgl(sgl));
            let log = number | (length / 4 - 1) << 16;
            returned(admin, Command::new(0x02, 0).cdw(10, log).sgl(sgl));
            returned(
                admin,
                Command::new(0x0a, 0).nsid(1).cdw(10, number).sgl(sgl),
            );
        }
        let report = Command::new(0x0e, 0).nsid(1).cdw(10, length / 4 - 1);
        returned(io, report.cdw(11, 1).sgl(sgl));
        returned(io, Command::io(2, 0, 1, 0, 1).sgl(sgl));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_tenant_writes_reaches_nobody_else() {
    let mut target = Target::start_with(Options::hugepages()).await;
    let client = target.client().await;

    let (own, others) = (
        Fixture::tcp(&target, MIB).await,
        Fixture::tcp(&target, MIB).await,
    );
    let (admin, io) = connect(&own, "tenant");
    let mut tenant = Tenant {
        _admin: admin,
        io,
        guest: Guest::start(&pcie_export(&target, &client, "own-pcie", MIB, 1).await),
        disk: Disk::open(Kind::Blk, &blk(&target, &client).await).expect("a guest"),
    };
    tenant.guest.memory.write(DATA, &marks(4096));
    tenant.fill();

    let (mut admin, mut io) = connect(&others, "other");
    host_gets(&mut admin, &mut io, &mut tenant);

    // Another tenant's guests: their disks, and their memory afterwards.
    let mut guest = Guest::start(&pcie_export(&target, &client, "other-pcie", MIB, 2).await);
    for block in 0..MIB << 8 {
        let read = vfio_user::Command::rw(vfio_user::io::READ, block * 8, 8);
        assert!(guest.io(read.prps(DATA, 0)).is_ok());
        clean("a guest's disk", &guest.memory.read(DATA, 4096));
    }
    guest.identify();
    clean("a guest's memory", &guest.memory.read(BASE, SIZE as usize));
    let mut disk = Disk::open(Kind::Blk, &blk(&target, &client).await).expect("a guest");
    for sector in (0..MIB << 11).step_by(usize::from(BLOCKS)) {
        let sector = u32::try_from(sector).expect("a small volume");
        clean("a guest's disk", &disk.read(sector, LENGTH).expect("data"));
    }
    let memory = &disk.session.guest;
    for region in &memory.regions {
        let length = usize::try_from(region.size).expect("64 bits");
        clean("a guest's memory", &memory.read(region.guest, length));
    }

    // A peer gets what is written to its disk, and commands.
    let peer = Peer::start();
    let commands = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&commands);
    peer.script(move |ask| {
        heard.lock().extend(ask.sqe);
        Turn::Right
    });
    let controller = remote_controller(&client, "peer", "DISABLE").await;
    let path = tcp_path(peer.port, PEER_NQN);
    Resource::new(&client, "NvmePath")
        .created(&controller, "path", path)
        .await;
    let over = subsystem(&client, "over-peer", json!({})).await;
    namespace(&client, &over, "volumes/peern1", json!({})).await;
    let (_, port) = tcp_controller(&client, &over).await;
    let identity = Identity::new(port, &nqn_of("over-peer")).named("other");
    let writer = identity.admin(Digests::OFF);
    let mut writer = identity.io(&writer, 1);
    for lba in [0, 64, 1000] {
        tenant.fill_buffers();
        let written = writer.write(1, lba, &vec![7; 64 << 9]).expect("an answer");
        assert_eq!(written.status(), 0);
        // Write Zeroes, which the peer may have to get as writes.
        let zeroes = Command::io(8, writer.cid(), 1, lba, 64);
        let zeroed = writer.call(zeroes, &[]).expect("an answer");
        assert_eq!(zeroed.status(), 0);
    }
    clean("a peer's disk", &peer.disk(0, 4096 << 9));
    assert!(peer.taken() > 0, "the peer got data");
    clean("a peer's commands", &commands.lock());

    // What a deleted volume left in memory.
    let first = own.volume.clone();
    drop(tenant);
    own.remove().await;
    let again = Fixture::tcp(&target, MIB).await;
    assert_ne!(again.volume, first);
    let (_admin, mut io) = connect(&again, "next");
    for lba in (0..MIB << 11).step_by(usize::from(BLOCKS)) {
        clean("a new volume", &io.read(1, lba, BLOCKS).expect("data"));
    }

    // Operators: metrics, the page, events, the bundle; and the log.
    for route in ["/metrics", "/", "/v1/objects", "/v1/mallocVolumes"] {
        let (status, text) = get_text(&target, route, "*/*").await;
        assert_eq!(status, 200, "{route}: {text}");
        clean(route, text.as_bytes());
    }
    let file = target.scratch().join("report.tar.zst");
    clean("a bundle", &bundle(&target, &file));
    clean("the log", target.log().as_bytes());
    assert!(target.exited().is_none(), "the program runs");
}

/// Takes a bundle; returns it unpacked.
fn bundle(target: &Target, file: &Path) -> Vec<u8> {
    let (grpc, http) = (target.grpc.to_string(), target.http.to_string());
    let mut program = Process::new(env!("CARGO_BIN_EXE_opi-spdk"));
    program
        .args(["bundle", "--addr", &grpc, "--http-addr", &http])
        .arg(file);
    let out = program.output().expect("the program starts");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let compressed = std::fs::File::open(file).expect("the archive exists");
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(compressed).expect("zstd");
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut all).expect("whole");
    all
}
