//! The peer's properties, Identify data, lists and log pages.

use std::collections::BTreeMap;

use super::{BLOCKS, NQN};

/// Length of Identify data.
const LEN: usize = 4096;

/// Everything that the peer reports. Tests change what they want malformed.
#[derive(Debug, Clone)]
pub struct Data {
    /// Property VS.
    pub version: u32,
    /// Property CAP.
    pub capabilities: u64,
    /// Identify Controller data.
    pub controller: Vec<u8>,
    /// Identify Namespace data by namespace ID.
    pub namespaces: BTreeMap<u32, Vec<u8>>,
    /// Overrides the Active Namespace ID list: returns the IDs after the given one.
    pub list: Option<fn(u32) -> Vec<u32>>,
    /// The ANA log page.
    pub ana: Vec<u8>,
}

impl Data {
    /// Valid data of a controller with these namespaces, 4 MiB each.
    pub fn new(namespaces: &[u32]) -> Self {
        let namespaces = namespaces.iter().map(|nsid| (*nsid, namespace(*nsid)));
        Self {
            version: 0x0001_0400,
            // CAP: MQES 128 entries, CQR, TO 5 s, CSS with the NVM command set.
            capabilities: 127 | 1 << 16 | 10 << 24 | 1 << 37,
            controller: controller(),
            namespaces: namespaces.collect(),
            list: None,
            ana: Vec::new(),
        }
    }

    /// Overwrites bytes of the Identify Controller data.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.controller[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Adds a namespace.
    pub fn add(&mut self, nsid: u32) {
        self.namespaces.insert(nsid, namespace(nsid));
    }

    /// Overwrites bytes of a namespace's Identify data.
    pub fn put_in(&mut self, nsid: u32, at: usize, bytes: &[u8]) {
        let data = self.namespaces.get_mut(&nsid).expect("a namespace");
        data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Returns the block size of a namespace, bytes.
    pub(super) fn block(&self, nsid: u32) -> u32 {
        let shift = self.namespaces.get(&nsid).map_or(9, |data| data[130]);
        1 << (shift & 15)
    }

    /// Returns the Identify data of this CNS.
    pub(super) fn identify(&self, cns: u8, nsid: u32) -> Option<Vec<u8>> {
        let mut page = match cns {
            0 => self.namespaces.get(&nsid).cloned().unwrap_or_default(),
            1 => self.controller.clone(),
            2 => {
                let ids: Vec<u32> = match self.list {
                    Some(list) => list(nsid),
                    None => self
                        .namespaces
                        .keys()
                        .copied()
                        .filter(|id| *id > nsid)
                        .collect(),
                };
                ids.into_iter()
                    .take(1024)
                    .flat_map(u32::to_le_bytes)
                    .collect()
            }
            3 => {
                let mut uuid = vec![3, 16, 0, 0];
                uuid.extend(identity(nsid));
                uuid
            }
            _ => return None,
        };
        page.resize(LEN, 0);
        Some(page)
    }
}

fn identity(nsid: u32) -> [u8; 16] {
    let mut id = *b"opi-spdk-a-peer\0";
    id[15] = nsid.to_le_bytes()[0];
    id
}

fn controller() -> Vec<u8> {
    let mut data = vec![0; LEN];
    let mut put = |at: usize, bytes: &[u8]| data[at..at + bytes.len()].copy_from_slice(bytes);
    put(4, &[b' '; 68]);
    put(4, b"peer");
    put(24, b"a raw peer");
    // CMIC: multiple controllers per subsystem; MDTS 128 KiB; controller ID 1.
    put(76, &[1 << 1, 5, 1, 0]);
    put(80, &0x0001_0400_u32.to_le_bytes());
    // OAES: Namespace Attribute Changed events.
    put(92, &(1_u32 << 8).to_le_bytes());
    put(111, &[1]);
    // AERL: four Asynchronous Event Requests; KAS: Keep Alive granularity of 1 s.
    put(259, &[3]);
    put(320, &10_u16.to_le_bytes());
    put(512, &[0x66, 0x44, 128, 0]);
    put(516, &1024_u32.to_le_bytes());
    put(536, &1_u32.to_le_bytes());
    put(768, NQN.as_bytes());
    // IOCCSZ: capsules without data.
    put(1792, &4_u32.to_le_bytes());
    put(1796, &1_u32.to_le_bytes());
    put(1803, &[1]);
    data
}

fn namespace(nsid: u32) -> Vec<u8> {
    let mut data = vec![0; LEN];
    let blocks = (BLOCKS as u64).to_le_bytes();
    for at in [0, 8, 16] {
        data[at..at + 8].copy_from_slice(&blocks);
    }
    // NMIC: shared; LBA format: 512-byte blocks.
    data[30] = 1;
    data[104..120].copy_from_slice(&identity(nsid));
    data[130] = 9;
    data
}
