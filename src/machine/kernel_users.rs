//! Users of a disk within the kernel that neither claim it nor hold it through a process: the NVMe target (nvmet) opens
//! its devices without a claim, and a loop device keeps only a reference to its backing file.

use std::path::Path;

use super::Machine;

/// Subsystems of the NVMe target, in configfs.
const NVMET: &str = "/sys/kernel/config/nvmet/subsystems";

/// The user within the kernel of one of these nodes, which are names in `/dev` of block devices and NVMe controllers.
pub fn user(machine: &Machine, nodes: &[String]) -> Option<String> {
    if nodes.is_empty() {
        return None;
    }
    loop_device(machine, nodes).or_else(|| nvme_target(machine, nodes))
}

fn loop_device(machine: &Machine, nodes: &[String]) -> Option<String> {
    let devices = machine.names("/sys/block").into_iter();
    let mut loops = devices.filter(|name| name.starts_with("loop"));
    loops.find_map(|name| {
        let backing = machine.text(format!("/sys/block/{name}/loop/backing_file"))?;
        let node = node(machine, &backing).or_else(|| last(&backing))?;
        let found = nodes.contains(&node);
        found.then(|| {
            format!("{node} is the backing device of {name} (losetup --detach /dev/{name})")
        })
    })
}

fn nvme_target(machine: &Machine, nodes: &[String]) -> Option<String> {
    if machine.has("/sys/module/nvmet") && !machine.has(NVMET) {
        return Some(format!(
            "whether the kernel's NVMe target (nvmet) exports it cannot be told: {NVMET} is missing: \
             mount -t configfs none /sys/kernel/config"
        ));
    }
    machine.names(NVMET).into_iter().find_map(|subsystem| {
        let dir = format!("{NVMET}/{subsystem}");
        let namespaces = machine.names(format!("{dir}/namespaces")).into_iter();
        let mut exports = namespaces
            .map(|namespace| format!("{dir}/namespaces/{namespace}"))
            .chain([format!("{dir}/passthru")]);
        exports.find_map(|export| {
            let path = machine.text(format!("{export}/device_path"))?;
            if !path.starts_with("/dev/") {
                return None;
            }
            match node(machine, &path) {
                // A disabled one too: it may be enabled at any time.
                Some(node) => nodes.contains(&node).then(|| {
                    format!("{node} is exported by the kernel's NVMe target (nvmet) as {subsystem}")
                }),
                // A device stays open under a path that has gone, or that this container does not have.
                None if machine.number(format!("{export}/enable")) == Some(1) => Some(format!(
                    "whether it is the device {path} of the kernel's NVMe target (nvmet) cannot be told, as there is \
                     no such path"
                )),
                None => None,
            }
        })
    })
}

/// The name in `/dev` of the node at a path.
fn node(machine: &Machine, path: &str) -> Option<String> {
    let real = machine.path(path).canonicalize().ok()?;
    Some(real.file_name()?.to_str()?.to_owned())
}

fn last(path: &str) -> Option<String> {
    Some(Path::new(path).file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tree::Tree;

    fn found(tree: &Tree) -> Option<String> {
        user(
            &tree.machine(),
            &[
                "nvme0n1".to_owned(),
                "nvme0n1p1".to_owned(),
                "nvme0".to_owned(),
            ],
        )
    }

    #[test]
    fn a_disk_under_a_loop_device_is_in_use() {
        let tree = Tree::new();
        tree.write("/dev/nvme0n1p1", "");
        let file = |number: u32| format!("/sys/block/loop{number}/loop/backing_file");
        tree.write(&file(0), "/srv/image\n");
        tree.dir("/sys/block/loop1");
        assert_eq!(found(&tree), None);
        tree.write(&file(2), "/dev/nvme0n1p1\n");
        let expected = "nvme0n1p1 is the backing device of loop2 (losetup --detach /dev/loop2)";
        assert_eq!(found(&tree).as_deref(), Some(expected));
        // The node is not in this container.
        tree.write(&file(2), "/dev/nvme0n1\n");
        assert!(
            found(&tree)
                .unwrap()
                .starts_with("nvme0n1 is the backing device")
        );
        assert_eq!(user(&tree.machine(), &[]), None);
    }

    #[test]
    fn a_disk_or_controller_that_the_kernels_nvme_target_exports_is_in_use() {
        let tree = Tree::new();
        tree.write("/dev/nvme0n1", "");
        tree.write("/dev/nvme0", "");
        tree.write("/dev/sda", "");
        tree.link("/dev/disk/by-id/nvme-eui.1", "/dev/nvme0n1");
        let export = |what: &str, path: &str, enable: &str| {
            let dir = format!("{NVMET}/nqn.one/{what}");
            tree.write(&format!("{dir}/device_path"), path);
            tree.write(&format!("{dir}/enable"), enable);
        };
        let is_told = |part: &str| {
            let found = found(&tree);
            assert!(
                found.as_ref().is_some_and(|found| found.contains(part)),
                "{found:?}"
            );
        };
        for path in ["(null)\n", "/srv/image\n", "/dev/sda\n"] {
            export("namespaces/1", path, "1");
            assert_eq!(found(&tree), None, "{path}");
        }
        for path in ["/dev/nvme0n1\n", "/dev/disk/by-id/nvme-eui.1\n"] {
            export("namespaces/2", path, "0");
            is_told("nvme0n1 is exported by the kernel's NVMe target (nvmet) as nqn.one");
        }
        export("namespaces/2", "/dev/gone\n", "0");
        assert_eq!(found(&tree), None);
        export("namespaces/2", "/dev/gone\n", "1");
        is_told("cannot be told");
        export("namespaces/2", "/dev/sda\n", "1");
        export("passthru", "/dev/nvme0\n", "1");
        is_told("nvme0 is exported");
    }

    #[test]
    fn without_configfs_what_the_kernels_nvme_target_exports_cannot_be_told() {
        let tree = Tree::new();
        tree.dir("/sys/module/nvmet");
        assert!(found(&tree).unwrap().contains("mount -t configfs"));
        tree.dir(NVMET);
        assert_eq!(found(&tree), None);
    }
}
