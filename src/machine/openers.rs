//! Processes that have a device's nodes open without a claim (O_EXCL): a database on a raw disk, a virtual machine,
//! another SPDK. They would lose the device in the middle of their I/O.

use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::{major, minor};

use super::Machine;

/// Name of the initial PID namespace (PROC_PID_INIT_INO of the kernel).
const INITIAL: &str = "pid:[4026531836]";

/// A device node: a disk, a partition, or the controller itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name in `/dev`.
    pub name: String,
    /// `major:minor`.
    pub number: String,
    /// Whether it is a block device.
    pub is_block: bool,
}

impl Node {
    fn is(&self, file: &Metadata) -> bool {
        let kind = file.file_type();
        let fits = match self.is_block {
            true => kind.is_block_device(),
            false => kind.is_char_device(),
        };
        let number = file.rdev();
        fits && self.number == format!("{}:{}", major(number), minor(number))
    }
}

/// Returns who has one of the nodes open.
///
/// # Errors
/// Why it cannot be told: processes that this one cannot see, or may not look at.
pub fn opener(machine: &Machine, nodes: &[Node]) -> Result<Option<String>, String> {
    let [first, ..] = nodes else { return Ok(None) };
    let untold = |why: String| format!("whether {} is in use cannot be told: {why}", first.name);
    let space = machine.link_name("/proc/self/ns/pid");
    if space.is_some_and(|space| space != INITIAL) {
        return Err(untold(
            "processes of the machine are not seen from here (a container needs --pid host)".into(),
        ));
    }
    let processes = machine.names("/proc");
    for process in processes
        .iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    {
        match open_node(machine, process, nodes) {
            Ok(None) => {}
            Ok(Some(node)) => {
                let name = machine
                    .text(format!("/proc/{process}/comm"))
                    .unwrap_or_default();
                return Ok(Some(format!(
                    "process {process} ({name}) has {} open",
                    node.name
                )));
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(untold(format!(
                    "/proc/{process}/fd: {error} (CAP_SYS_PTRACE is needed)"
                )));
            }
            // The process has ended.
            Err(_) => {}
        }
    }
    Ok(None)
}

/// The first of the nodes that a process has open.
fn open_node<'a>(
    machine: &Machine,
    process: &str,
    nodes: &'a [Node],
) -> io::Result<Option<&'a Node>> {
    for entry in std::fs::read_dir(machine.path(format!("/proc/{process}/fd")))? {
        let path = entry?.path();
        // Root may list the descriptors of any process, but without CAP_SYS_PTRACE not follow one of a process with more
        // capabilities. (That a file's own file system denies access, such as FUSE, is no error: it is no device node.)
        if let Err(error) = std::fs::read_link(&path)
            && error.kind() == ErrorKind::PermissionDenied
        {
            return Err(error);
        }
        // Follows the link to the open file; one that has been closed since does not matter.
        let Ok(file) = std::fs::metadata(path) else {
            continue;
        };
        if let Some(node) = nodes.iter().find(|node| node.is(&file)) {
            return Ok(Some(node));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tree::Tree;

    #[test]
    fn a_process_that_has_a_node_open_is_found_by_kind_and_number() {
        let tree = Tree::new();
        let machine = tree.machine();
        let node = |is_block| Node {
            name: "nvme0".to_owned(),
            number: "1:3".to_owned(),
            is_block,
        };
        assert_eq!(opener(&machine, &[node(false)]), Ok(None));
        tree.write("/proc/self/ns/of", "");
        tree.write("/proc/7/comm", "qemu\n");
        tree.dir("/proc/7/fd");
        tree.dir("/proc/8/fd");
        tree.write("/proc/swaps", "");
        std::os::unix::fs::symlink("/dev/null", tree.path("/proc/7/fd/3")).expect("a link");
        std::os::unix::fs::symlink("/gone", tree.path("/proc/7/fd/2")).expect("a link");
        let found = "process 7 (qemu) has nvme0 open".to_owned();
        assert_eq!(opener(&machine, &[node(false)]), Ok(Some(found)));
        assert_eq!(opener(&machine, &[node(true)]), Ok(None));
        assert_eq!(opener(&machine, &[]), Ok(None));
    }

    #[test]
    fn in_a_pid_namespace_of_its_own_it_cannot_be_told() {
        let tree = Tree::new();
        let machine = tree.machine();
        tree.dir("/proc/self/ns");
        let set = |name: &str| {
            let _ = std::fs::remove_file(tree.path("/proc/self/ns/pid"));
            std::os::unix::fs::symlink(name, tree.path("/proc/self/ns/pid")).expect("a link");
        };
        let disk = Node {
            name: "nvme0n1".to_owned(),
            number: "259:0".to_owned(),
            is_block: true,
        };
        set(INITIAL);
        assert_eq!(opener(&machine, std::slice::from_ref(&disk)), Ok(None));
        set("pid:[4026532198]");
        let untold = opener(&machine, std::slice::from_ref(&disk)).unwrap_err();
        assert!(untold.contains("--pid host"), "{untold}");
        assert_eq!(opener(&machine, &[]), Ok(None));
    }
}
