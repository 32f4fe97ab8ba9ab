//! The kinds of objects that the clients of the crash test change: how to build them, and their models.

use std::fs::File;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::common::{free_port, nqn_of, tcp_spec};
use super::{CLIENTS, number};

/// Parent of all namespaces and controllers.
pub const SHARED: &str = "nvmeSubsystems/shared";

/// A subsystem that admits only the hosts it lists.
pub const GUARDED: &str = "nvmeSubsystems/guarded";

/// ID of a host that updates admit to subsystems.
pub const GUEST: &str = "guest";

/// One kind of object that clients change.
pub struct Kind {
    /// First letter of the IDs.
    pub letter: char,
    pub message: &'static str,
    /// Prefix of the names.
    pub collection: &'static str,
    pub parent: &'static str,
    /// Number of objects of each client.
    pub each: u64,
    /// Number of different values for a create and for an update; 0 if there is no update.
    pub values: (u64, u64),
    /// Path of the field that the model tracks.
    pub path: &'static str,
    /// Each object needs a volume of its own.
    pub over_volume: bool,
}

const FLAT: Kind = Kind {
    letter: ' ',
    message: "",
    collection: "volumes/",
    parent: "",
    each: 2,
    values: (1, 0),
    path: "",
    over_volume: false,
};

/// All kinds that clients change.
pub static KINDS: [Kind; 9] = [
    Kind {
        letter: 'v',
        message: "NullVolume",
        each: 6,
        values: (64, 64),
        path: "blocks_count",
        ..FLAT
    },
    Kind {
        letter: 'm',
        message: "MallocVolume",
        values: (64, 64),
        path: "blocks_count",
        ..FLAT
    },
    Kind {
        letter: 'a',
        message: "AioVolume",
        path: "blocks_count",
        ..FLAT
    },
    Kind {
        letter: 's',
        message: "NvmeSubsystem",
        collection: "nvmeSubsystems/",
        each: 4,
        values: (2, 2),
        path: "spec.hostnqn",
        ..FLAT
    },
    Kind {
        letter: 'n',
        message: "NvmeNamespace",
        collection: "nvmeSubsystems/shared/nvmeNamespaces/",
        parent: SHARED,
        over_volume: true,
        ..FLAT
    },
    Kind {
        letter: 'c',
        message: "NvmeController",
        collection: "nvmeSubsystems/shared/nvmeControllers/",
        parent: SHARED,
        each: 1,
        ..FLAT
    },
    Kind {
        letter: 'h',
        message: "NvmeHost",
        collection: "nvmeSubsystems/guarded/nvmeHosts/",
        parent: GUARDED,
        ..FLAT
    },
    Kind {
        letter: 'q',
        message: "QosVolume",
        values: (50, 50),
        path: "limits.max.rw_bandwidth_mbs",
        over_volume: true,
        ..FLAT
    },
    Kind {
        letter: 'b',
        message: "VirtioBlk",
        each: 1,
        over_volume: true,
        ..FLAT
    },
];

impl Kind {
    /// Returns the kind of the object with this ID.
    pub fn of(id: &str) -> &'static Self {
        let found = KINDS.iter().find(|kind| id.starts_with(kind.letter));
        found.expect("IDs begin with their kind")
    }

    /// Returns whether this is an ID of a client, such as `v7-0`, and not one that the server generated.
    pub fn has(&self, id: &str) -> bool {
        let numbers = id
            .strip_prefix(self.letter)
            .and_then(|rest| rest.split_once('-'));
        let is_number = |text: &str| text.parse::<u64>().is_ok();
        numbers.is_some_and(|(client, at)| is_number(client) && is_number(at))
    }

    /// Returns the smallest value that a create requests.
    fn base(&self) -> i64 {
        match self.message {
            "NullVolume" | "MallocVolume" => 64,
            "AioVolume" => AIO_BLOCKS,
            "QosVolume" => 1,
            _ => 0,
        }
    }

    /// Returns the value with this number for a create, or for an update if the object exists.
    pub fn value(&self, is_there: bool, number: u64) -> i64 {
        let (creates, _) = self.values;
        // A volume can only grow; other fields may return to an earlier value.
        let first = match self.path {
            "blocks_count" if is_there => self.base() + i64::try_from(creates).expect("small"),
            _ => self.base(),
        };
        first + i64::try_from(number).expect("small")
    }

    /// Returns the tracked field's value in an answered object.
    pub fn value_of(&self, object: &Value) -> i64 {
        match self.path {
            "" => 0,
            "spec.hostnqn" => {
                let host = object["spec"]["hostnqn"].as_str().expect("a text");
                i64::from(!host.is_empty())
            }
            path => number(path.split('.').fold(object, |inner, part| &inner[part])),
        }
    }
}

/// Blocks of each AIO volume's file.
const AIO_BLOCKS: i64 = 256;

/// Outside resources of the objects: files, sockets and ports.
pub struct Place {
    dir: PathBuf,
    /// Port of each client's controller.
    pub ports: Vec<u16>,
}

impl Place {
    pub fn new(dir: PathBuf) -> Self {
        for number in 0..CLIENTS {
            for at in 0..2 {
                let file = File::create(dir.join(format!("file-a{number}-{at}")));
                let file = file.expect("the directory is writable");
                let size = u64::try_from(AIO_BLOCKS * 512).expect("small");
                file.set_len(size).expect("there is room");
            }
        }
        let ports = (0..CLIENTS).map(|_| free_port());
        Self {
            dir,
            ports: ports.collect(),
        }
    }

    /// Returns the path of a device's socket.
    pub fn socket(&self, id: &str) -> PathBuf {
        self.dir.join("ctrlr").join(id)
    }

    /// Builds the request object for this ID with this value.
    pub fn object(&self, id: &str, value: i64) -> Value {
        let over = format!("volumes/base-{id}");
        let client = || -> usize {
            let number = id[1..].split('-').next().expect("a number");
            number.parse().expect("a number")
        };
        match Kind::of(id).message {
            "AioVolume" => {
                json!({ "filename": self.dir.join(format!("file-{id}")), "block_size": 512 })
            }
            "NvmeSubsystem" => {
                let host = if value == 0 {
                    String::new()
                } else {
                    nqn_of(GUEST)
                };
                json!({ "spec": { "nqn": nqn_of(id), "hostnqn": host } })
            }
            "NvmeNamespace" => json!({ "spec": { "volume_name_ref": over } }),
            "NvmeController" => tcp_spec(self.ports[client()]),
            "NvmeHost" => json!({ "hostnqn": nqn_of(id) }),
            "QosVolume" => json!({
                "volume_name_ref": over, "limits": { "max": { "rw_bandwidth_mbs": value } }
            }),
            "VirtioBlk" => json!({
                "volume_name_ref": over,
                "pcie_id": { "port_id": 0, "physical_function": client(), "virtual_function": 0 },
            }),
            _ => json!({ "block_size": 512, "blocks_count": value }),
        }
    }
}
