//! The ways in: where the blocks of a volume come from.

use std::pin::Pin;

use serde_json::json;

use crate::common::{Fixture, Options, Target, base64, encrypted_spec, tcp_controller, tcp_path};
use crate::lab::{Lab, Made};
use crate::{BLOCK, MIB};

/// What a block reads as once it was unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// As zeroes.
    Zeroes,
    /// As anything: neither the device nor what is between says.
    Anything,
    /// It cannot be unmapped.
    Never,
}

/// One way in.
pub struct WayIn {
    /// What its volume is.
    pub name: &'static str,
    /// What becomes of its blocks.
    pub unmapped: Unmapped,
    /// What it lets through, MiB a second.
    pub limit: Option<u32>,
    /// Makes a volume with this ID.
    pub make: for<'a> fn(&'a Lab, &'a str) -> Making<'a>,
}

/// A volume in the making.
pub type Making<'a> = Pin<Box<dyn Future<Output = Volume> + 'a>>;

/// A volume of `MIB` in blocks of `BLOCK`.
pub struct Volume {
    /// What refers to it.
    pub reference: String,
    /// It, after what it is made of.
    pub made: Made,
    /// The volume beneath it, which must not show what is written.
    pub beneath: Option<String>,
    /// The target that it is on.
    pub remote: Option<Remote>,
}

/// All of them.
pub const WAYS_IN: &[WayIn] = &[
    WayIn {
        name: "a malloc volume",
        unmapped: Unmapped::Zeroes,
        limit: None,
        make: |lab, id| Box::pin(malloc(lab, id)),
    },
    WayIn {
        name: "an aio volume",
        // SPDK would have to call into the file system on a reactor.
        unmapped: Unmapped::Never,
        limit: None,
        make: |lab, id| Box::pin(aio(lab, id)),
    },
    WayIn {
        name: "a remote namespace with two paths",
        // NVMe leaves it open, and SPDK's target does not tell (DLFEAT).
        unmapped: Unmapped::Anything,
        limit: None,
        make: |lab, id| Box::pin(remote(lab, id)),
    },
    WayIn {
        name: "an encrypted volume",
        // Whatever is beneath is deciphered.
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

/// Of the limited volume, MiB a second.
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
    sized.expect("there is room");
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

/// A target beside the one under test, which exports a volume at two addresses.
pub struct Remote {
    peer: Target,
    export: Fixture,
}

impl Remote {
    /// The path that is in use goes away on the other side.
    pub async fn lose_a_path(&self) {
        let listening = self.export.resource("NvmeController");
        listening.deleted(&self.export.controller).await;
    }

    /// Ends the other side.
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
