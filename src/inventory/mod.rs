//! The inventory of the machine: firmware, boards, processors, memory and PCI devices, read from sysfs and procfs on
//! each call.
//!
//! A missing, unreadable or malformed file leaves its field empty and is never an error: virtual machines often have
//! no firmware tables.

mod dmi;
mod host;
mod pci;
mod pci_ids;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::timeout_at;
use tonic::{Request, Response, Status};

use crate::api::inventory::inventory_service_server;
use crate::api::inventory::{GetInventoryRequest, Inventory};
use crate::error::Error;
use crate::resource::CallContext;
use pci_ids::Names;

/// The locations to read from.
#[derive(Debug, Clone)]
pub struct Roots {
    /// Mount point of sysfs.
    pub sys: PathBuf,
    /// Mount point of procfs.
    pub proc: PathBuf,
    /// Possible paths of `pci.ids`; the first that exists is used. Without one, numbers take the place of names.
    pub pci_ids: Vec<PathBuf>,
}

impl Default for Roots {
    fn default() -> Self {
        Roots {
            sys: "/sys".into(),
            proc: "/proc".into(),
            pci_ids: ["hwdata", "misc"]
                .map(|place| format!("/usr/share/{place}/pci.ids").into())
                .into(),
        }
    }
}

/// Reads the inventory. Blocking.
fn read(roots: &Roots, names: &mut Names) -> Inventory {
    let id = roots.sys.join("class/dmi/id");
    Inventory {
        bios: Some(dmi::bios(&id)),
        system: Some(dmi::system(&id)),
        baseboard: Some(dmi::baseboard(&id)),
        chassis: Some(dmi::chassis(&id)),
        processor: Some(host::processor(roots)),
        memory: Some(host::memory(roots)),
        pci: pci::devices(roots, names),
    }
}

/// The service `InventoryService`. The name in a request is ignored: there is one machine, and clients omit it.
#[derive(Debug, Clone, Default)]
pub struct InventoryService {
    roots: Roots,
    /// Locked while reading: one call reads at a time, so that slow files cannot occupy all blocking threads.
    names: Arc<Mutex<Names>>,
}

impl InventoryService {
    /// Creates a service that reads from `roots`.
    pub fn new(roots: Roots) -> Self {
        InventoryService {
            roots,
            names: Arc::default(),
        }
    }
}

#[tonic::async_trait]
impl inventory_service_server::InventoryService for InventoryService {
    async fn get_inventory(
        &self,
        request: Request<GetInventoryRequest>,
    ) -> Result<Response<Inventory>, Status> {
        let roots = self.roots.clone();
        let by = CallContext::of(request.metadata()).answer_by();
        // A call abandoned while it waits reads nothing; a read that has started keeps the lock until it ends.
        let turn = timeout_at(by.into(), Arc::clone(&self.names).lock_owned()).await;
        let mut names = turn.map_err(|_| {
            Error::Unavailable("another call reads the inventory, and has not ended in time".into())
        })?;
        let inventory = tokio::task::spawn_blocking(move || read(&roots, &mut names))
            .await
            .map_err(|error| Status::internal(format!("reading the inventory failed: {error}")))?;
        Ok(Response::new(inventory))
    }
}

/// The trimmed content of a single-line file; empty if it cannot be read.
fn text(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(_) => String::new(),
    }
}

/// The hexadecimal number in a file, with or without `0x`.
fn hex(path: &Path) -> Option<u64> {
    let text = text(path);
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// Sorted names of a directory's entries; empty if it cannot be read.
fn entries(path: &Path) -> Vec<String> {
    let Ok(found) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut names: Vec<String> = found
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::inventory as api;

    /// A machine of files in a temporary directory, removed on drop.
    pub(super) struct Machine {
        pub roots: Roots,
        dir: tempfile::TempDir,
    }

    impl Machine {
        pub fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let roots = Roots {
                sys: dir.path().join("sys"),
                proc: dir.path().join("proc"),
                pci_ids: vec![dir.path().join("pci.ids")],
            };
            Machine { roots, dir }
        }

        pub fn path(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        pub fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
            let path = self.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
            self
        }

        pub fn link(&self, path: &str, to: &str) -> &Self {
            let path = self.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(to, path).unwrap();
            self
        }
    }

    fn read(roots: &Roots) -> Inventory {
        super::read(roots, &mut Names::default())
    }

    #[test]
    fn a_machine_that_tells_nothing_is_no_error() {
        let machine = Machine::new();
        let inventory = read(&machine.roots);
        assert_eq!(
            inventory,
            Inventory {
                bios: Some(api::BiosInfo::default()),
                system: Some(api::SystemInfo::default()),
                baseboard: Some(api::BaseboardInfo::default()),
                chassis: Some(api::ChassisInfo::default()),
                processor: Some(api::CpuInfo::default()),
                memory: Some(api::MemoryInfo::default()),
                pci: Vec::new(),
            }
        );
    }

    #[test]
    fn firmware_strings_come_from_sysfs() {
        let machine = Machine::new();
        for (name, value) in [
            ("bios_vendor", "Maker\n"),
            ("bios_date", "01/31/2026\n"),
            ("product_uuid", "4c4c4544-0042-3510-8052-b4c04f4a3132\n"),
            ("product_name", "  Server 1 \n"),
            ("board_asset_tag", "A7\n"),
            ("chassis_type", "23\n"),
        ] {
            machine.file(&format!("sys/class/dmi/id/{name}"), value);
        }
        let inventory = read(&machine.roots);
        let bios = inventory.bios.unwrap();
        assert_eq!((bios.vendor.as_str(), bios.version.as_str()), ("Maker", ""));
        assert_eq!(bios.date, "01/31/2026");
        let system = inventory.system.unwrap();
        assert_eq!(system.uuid, "4c4c4544-0042-3510-8052-b4c04f4a3132");
        assert_eq!(system.name, "Server 1");
        assert_eq!(inventory.baseboard.unwrap().asset_tag, "A7");
        let chassis = inventory.chassis.unwrap();
        assert_eq!(chassis.r#type, "23");
        assert_eq!(chassis.type_description, "Rack Mount Chassis");
    }

    #[test]
    fn every_string_of_the_firmware_has_its_field() {
        let machine = Machine::new();
        let file = |name: &str, value: &str| {
            machine.file(&format!("sys/class/dmi/id/{name}"), format!("{value}\n"));
        };
        for name in ["vendor", "version", "date"] {
            file(&format!("bios_{name}"), name);
        }
        for name in ["family", "name", "serial", "uuid", "sku", "version"] {
            file(&format!("product_{name}"), name);
        }
        file("sys_vendor", "vendor");
        for place in ["board", "chassis"] {
            for name in ["asset_tag", "serial", "vendor", "version"] {
                file(&format!("{place}_{name}"), name);
            }
        }
        file("board_name", "product");
        file("chassis_type", "17");

        let found = read(&machine.roots);
        let bios = api::BiosInfo {
            vendor: "vendor".into(),
            version: "version".into(),
            date: "date".into(),
        };
        assert_eq!(found.bios, Some(bios));
        let system = api::SystemInfo {
            family: "family".into(),
            name: "name".into(),
            vendor: "vendor".into(),
            serial_number: "serial".into(),
            uuid: "uuid".into(),
            sku: "sku".into(),
            version: "version".into(),
        };
        assert_eq!(found.system, Some(system));
        let baseboard = api::BaseboardInfo {
            asset_tag: "asset_tag".into(),
            serial_number: "serial".into(),
            vendor: "vendor".into(),
            version: "version".into(),
            product: "product".into(),
        };
        assert_eq!(found.baseboard, Some(baseboard));
        let chassis = api::ChassisInfo {
            asset_tag: "asset_tag".into(),
            serial_number: "serial".into(),
            r#type: "17".into(),
            type_description: "Main Server Chassis".into(),
            vendor: "vendor".into(),
            version: "version".into(),
        };
        assert_eq!(found.chassis, Some(chassis));
    }

    #[tokio::test]
    async fn the_service_needs_no_name() {
        use inventory_service_server::InventoryService as _;
        let machine = Machine::new();
        machine.file("proc/meminfo", "MemTotal:       2048 kB\n");
        let service = InventoryService::new(machine.roots.clone());
        let answer = service
            .get_inventory(Request::new(GetInventoryRequest::default()))
            .await
            .unwrap();
        let memory = answer.into_inner().memory.unwrap();
        assert_eq!(memory.total_usable_bytes, 2 << 20);
    }
}
