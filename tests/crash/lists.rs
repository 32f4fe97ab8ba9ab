//! Compares SPDK's own lists with what the target lists.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::common::{Client, JsonRpc, Resource, nqn_of};
use super::kinds::{GUEST, KINDS, Place};
use super::{CLIENTS, Known, number};

/// UUID and size in bytes of each volume that is a bdev, by ID.
type Volumes = BTreeMap<String, (String, i64)>;

/// A snapshot of what the target lists.
pub struct Listed {
    /// The model's value of each object of the clients.
    pub found: Known,
    volumes: Volumes,
}

impl Listed {
    pub async fn of(client: &Client) -> Self {
        let mut listed = Self {
            found: Known::new(),
            volumes: Volumes::new(),
        };
        for kind in &KINDS {
            let resource = Resource::new(client, kind.message);
            let (items, rest) = resource.page(kind.parent, 1000, "").await;
            assert_eq!(rest, "", "all on one page");
            for item in items {
                let name = item["name"].as_str().expect("a name");
                let id = name.strip_prefix(kind.collection).expect("its collection");
                if kind.has(id) {
                    listed.found.insert(id.to_owned(), kind.value_of(&item));
                }
                if kind.path == "blocks_count" {
                    let uuid = item["uuid"].as_str().expect("a UUID").to_owned();
                    let bytes = number(&item["block_size"]) * number(&item["blocks_count"]);
                    listed.volumes.insert(id.to_owned(), (uuid, bytes));
                }
            }
        }
        listed
    }

    fn of_kind(&self, letter: char) -> impl Iterator<Item = (&String, i64)> {
        let found = self.found.iter();
        let found = found.filter(move |(id, _)| id.starts_with(letter));
        found.map(|(id, value)| (id, *value))
    }

    /// Asserts that SPDK's own lists agree with this snapshot.
    pub async fn check_spdk(&self, socket: &Path, place: &Place, port: u16) {
        let mut rpc = JsonRpc::connect(socket).await.expect("SPDK listens");
        let mut list = async |method: &str| -> Vec<Value> {
            let answer = rpc.call(method, Value::Null).await;
            let answer = answer.unwrap_or_else(|error| panic!("{error:#}"));
            answer.as_array().expect("a list").clone()
        };
        self.check_bdevs(&list("bdev_get_bdevs").await);
        self.check_subsystems(&list("nvmf_get_subsystems").await, place, port);
        self.check_devices(place);
    }

    /// Asserts that SPDK serves the sockets of existing devices, and no others.
    fn check_devices(&self, place: &Place) {
        let devices = (0..CLIENTS).map(|number| format!("b{number}-0"));
        let is_served = |id: &String| UnixStream::connect(place.socket(id)).is_ok();
        let served = devices.filter(is_served);
        let wanted = self.of_kind('b').map(|(id, _)| id.clone());
        assert_eq!(sorted(served), sorted(wanted), "virtio-blk");
    }

    /// Compares volumes by UUID, size and limits.
    fn check_bdevs(&self, bdevs: &[Value]) {
        let text = |bdev: &Value, field: &str| bdev[field].as_str().expect("a text").to_owned();
        let bdev = |bdev: &Value| {
            let bytes = number(&bdev["block_size"]) * number(&bdev["num_blocks"]);
            (text(bdev, "name"), (text(bdev, "uuid"), bytes))
        };
        let found: Volumes = bdevs.iter().map(bdev).collect();
        assert_eq!(found, self.volumes);
        let limits = bdevs.iter().map(|bdev| {
            let limit = &bdev["assigned_rate_limits"]["rw_mbytes_per_sec"];
            (text(bdev, "name"), number(limit))
        });
        let limits: Known = limits.filter(|(_, limit)| *limit != 0).collect();
        let wanted = self.of_kind('q');
        let wanted: Known = wanted
            .map(|(id, limit)| (format!("base-{id}"), limit))
            .collect();
        assert_eq!(limits, wanted, "limits");
    }

    /// Compares subsystems by hosts, namespaces and listeners.
    fn check_subsystems(&self, subsystems: &[Value], place: &Place, port: u16) {
        let of = |nqn: &str, field: &str, text: &str| {
            let found = subsystems.iter().find(|one| one["nqn"] == nqn);
            let found = found.unwrap_or_else(|| panic!("{nqn} is not there"));
            texts(found[field].as_array().expect("a list"), text)
        };
        let mut nqns = texts(subsystems, "nqn");
        nqns.retain(|nqn| !nqn.ends_with("discovery"));
        let own = self.of_kind('s').map(|(id, _)| nqn_of(id));
        let lasting = ["shared", "guarded", "steady"].map(nqn_of);
        assert_eq!(nqns, sorted(own.chain(lasting)));
        for (id, has_guest) in self.of_kind('s') {
            let guest = (has_guest == 1).then(|| nqn_of(GUEST));
            assert_eq!(
                of(&nqn_of(id), "hosts", "nqn"),
                sorted(guest.into_iter()),
                "{id}"
            );
        }
        let hosts = self.of_kind('h').map(|(id, _)| nqn_of(id));
        assert_eq!(
            of(&nqn_of("guarded"), "hosts", "nqn"),
            sorted(hosts),
            "hosts"
        );
        let shared = nqn_of("shared");
        let volumes = self.of_kind('n').map(|(id, _)| format!("base-{id}"));
        let volumes = sorted(volumes.chain(["data".to_owned()]));
        assert_eq!(of(&shared, "namespaces", "bdev_name"), volumes);
        let ports = self.of_kind('c').map(|(id, _)| {
            let client = id[1..].split('-').next().expect("a number");
            place.ports[client.parse::<usize>().expect("a number")]
        });
        let ports = ports.chain([port]).map(|port| port.to_string());
        assert_eq!(of(&shared, "listen_addresses", "trsvcid"), sorted(ports));
    }
}

fn texts<'a>(list: impl IntoIterator<Item = &'a Value>, field: &str) -> Vec<String> {
    let text = |item: &Value| item[field].as_str().expect("a text").to_owned();
    sorted(list.into_iter().map(text))
}

fn sorted(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut texts: Vec<_> = texts.collect();
    texts.sort();
    texts
}
