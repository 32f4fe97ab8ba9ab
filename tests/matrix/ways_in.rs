//! The ways in: the kinds of volumes, by the origin of their blocks.

use std::pin::Pin;

use serde_json::json;

use crate::common::{Fixture, Options, Target, base64, encrypted_spec, tcp_controller, tcp_path};
use crate::lab::{Lab, Made};
use crate::{BLOCK, MIB};

/// The content of a block after an unmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// Zeroes.
    Zeroes,
    /// Undefined: neither the device nor the layers above specify it.
    Anything,
    /// The volume does not support unmap.
    Never,
}

/// A way in.
pub struct WayIn {
    /// A description of the volume.
    pub name: &'static str,
    /// The content of unmapped blocks.
    pub unmapped: Unmapped,
    /// Rate limit, MiB/s.
    pub limit: Option<u32>,
    /// Creates a volume with this ID.
    pub make: for<'a> fn(&'a Lab, &'a str) -> Making<'a>,
}

/// The future of a way in's `make`.
pub type Making<'a> = Pin<Box<dyn Future<Output = Volume> + 'a>>;

/// A volume of `MIB` MiB in blocks of `BLOCK` bytes.
pub struct Volume {
    /// The name by which exports refer to the volume.
    pub reference: String,
    /// The volume, preceded by the objects that it is built on.
    pub made: Made,
    /// The base volume of an encrypted volume, which must contain no plaintext.
    pub beneath: Option<String>,
    /// The target that exports the volume.
    pub remote: Option<Remote>,
}

/// All ways in.
pub const WAYS_IN: &[WayIn] = &[
    WayIn {
        name: "a malloc volume",
        unmapped: Unmapped::Zeroes,
        limit: None,
        make: |lab, id| Box::pin(malloc(lab, id)),
    },
    WayIn {
        name: "an aio volume",
        // SPDK would have to make a file system call on a reactor.
        unmapped: Unmapped::Never,
        limit: None,
        make: |lab, id| Box::pin(aio(lab, id)),
    },
    WayIn {
        name: "a remote namespace with two paths",
        // The NVMe specification leaves the value open, and SPDK's target does not report it (DLFEAT).
        unmapped: Unmapped::Anything,
        limit: None,
        make: |lab, id| Box::pin(remote(lab, id)),
    },
    WayIn {
        name: "an encrypted volume",
        // The base volume's content gets decrypted, whatever it is.
        unmapped: Unmapped::Anything,
        limit: None,
        make: |lab, id| Box::pin(encrypted(lab, id)),
    },
    WayIn {
        name: "a limited volume",
        unmapped: Unmapped::Zeroes,
        limit: Some(LIMIT),
        make: |lab, id| Box::pin(limited(lab, id)),
    },
];

/// Rate limit of the limited volume, MiB/s.
const LIMIT: u32 = 8;

async fn add_malloc(made: &mut Made, lab: &Lab, id: &str) -> String {
    let object = json!({ "block_size": BLOCK, "blocks_count": (MIB << 20) / BLOCK });
    made.add(&lab.client, "MallocVolume", "", id, object).await
}

fn volume(reference: String, made: Made) -> Volume {
    Volume {
        reference,
        made,
        beneath: None,
        remote: None,
    }
}

async fn malloc(lab: &Lab, id: &str) -> Volume {
    let mut made = Made::default();
    volume(add_malloc(&mut made, lab, id).await, made)
}

async fn aio(lab: &Lab, id: &str) -> Volume {
    let file = lab.dir().join(id);
    let sized = std::fs::File::create(&file).and_then(|file| file.set_len(u64::from(MIB) << 20));
    sized.expect("the file can be created");
    let mut made = Made::default();
    let object = json!({ "block_size": BLOCK, "filename": file });
    let name = made.add(&lab.client, "AioVolume", "", id, object).await;
    volume(name, made)
}

async fn encrypted(lab: &Lab, id: &str) -> Volume {
    let mut made = Made::default();
    let base = add_malloc(&mut made, lab, &format!("{id}-base")).await;
    let object = encrypted_spec(
        &base,
        "AES_XTS_128",
        &base64("a key of 32 bytes: 2 of AES-128!"),
    );
    let name = made
        .add(&lab.client, "EncryptedVolume", "", id, object)
        .await;
    Volume {
        beneath: Some(base),
        ..volume(name, made)
    }
}

async fn limited(lab: &Lab, id: &str) -> Volume {
    let mut made = Made::default();
    let base = add_malloc(&mut made, lab, &format!("{id}-base")).await;
    let limits = json!({ "max": { "rw_bandwidth_mbs": LIMIT } });
    let object = json!({ "volume_name_ref": base, "limits": limits });
    let name = made.add(&lab.client, "QosVolume", "", id, object).await;
    volume(name, made)
}

/// A second target that exports a volume at two addresses.
pub struct Remote {
    peer: Target,
    export: Fixture,
}

impl Remote {
    /// Deletes the listener of the path in use.
    pub async fn lose_a_path(&self) {
        let listening = self.export.resource("NvmeController");
        listening.deleted(&self.export.controller).await;
    }

    /// Stops the second target.
    pub fn stop(self) {
        self.peer.stop();
    }
}

async fn remote(lab: &Lab, id: &str) -> Volume {
    let peer = Target::start_with(Options::default().beside(&lab.target)).await;
    let export = Fixture::tcp(&peer, MIB.into()).await;
    let (_, second) = tcp_controller(&export.client, &export.subsystem).await;
    let mut made = Made::default();
    let object = json!({ "multipath": "NVME_MULTIPATH_MULTIPATH" });
    let controller = made
        .add(&lab.client, "NvmeRemoteController", "", id, object)
        .await;
    for (path, port) in [("first", export.port), ("second", second)] {
        let object = tcp_path(port, &export.nqn);
        made.add(&lab.client, "NvmePath", &controller, path, object)
            .await;
    }
    Volume {
        remote: Some(Remote { peer, export }),
        ..volume(format!("{id}n1"), made)
    }
}
