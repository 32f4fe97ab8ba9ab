//! API calls on a device with a client, and the permissions of the sockets.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;
use tonic::Code;

use crate::common::vfio_user::{Guest, Link};
use crate::common::{Resource, blk_spec, malloc, name_of, pcie_spec, subsystem};
use crate::lab::{GROUP, Lab, MODE, PATIENCE};
use crate::{Test, api, tests};

pub const TESTS: [Test; 2] = tests! { api:
    a_controller_with_a_client_is_not_deleted
    sockets_have_the_configured_group_and_mode
};

fn a_controller_with_a_client_is_not_deleted(lab: &mut Lab) {
    let socket = lab.device("kept", 20);
    let controllers = Resource::new(&lab.client, "NvmeController");
    let parent = "nvmeSubsystems/kept";
    let names = lab.block_on(controllers.names(parent));
    let [name] = &names[..] else {
        panic!("{names:?}")
    };
    // An idle guest counts as a client, and so does a connection that has sent nothing yet.
    let mut guest = Guest::start(&socket);
    let refused = lab
        .block_on(controllers.delete(name))
        .expect_err("the device has a client");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(
        refused.message().contains("a virtual machine is connected"),
        "{refused}"
    );
    guest.verify(1);
    drop(guest);
    let silent = Link::open(&socket).expect("the device listens");
    let refused = lab
        .block_on(controllers.delete(name))
        .expect_err("the device has a client");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    drop(silent);
    // Without a client, the controller can be deleted and created again.
    drop(Link::attach_within(&socket, PATIENCE));
    lab.block_on(controllers.deleted(name));
    assert!(!socket.exists(), "the socket goes with the controller");
    lab.block_on(controllers.created(parent, "", pcie_spec(20)));
    Guest::start(&socket).verify(2);
}

fn sockets_have_the_configured_group_and_mode(lab: &mut Lab) {
    let is_right = |path: &Path| {
        let about = std::fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(
            (about.gid(), about.mode() & 0o777),
            (GROUP, MODE),
            "{}",
            path.display()
        );
    };
    let may_pass = |path: &Path| {
        let about = std::fs::metadata(path).expect("a directory");
        assert_eq!(
            (about.gid(), about.mode() & 0o010),
            (GROUP, 0o010),
            "{}",
            path.display()
        );
    };
    is_right(&lab.socket);
    may_pass(&lab.target.ctrlr_dir());
    may_pass(lab.socket.parent().expect("a directory"));
    lab.block_on(async {
        let disks = Resource::new(&lab.client, "VirtioBlk");
        let volume = malloc(&lab.client, "of-group", 4).await;
        let disk = name_of(&disks.created("", "of-group-disk", blk_spec(&volume)).await);
        is_right(&lab.target.ctrlr_dir().join("of-group-disk"));
        disks.deleted(&disk).await;
        Resource::new(&lab.client, "MallocVolume")
            .deleted(&volume)
            .await;
        // A subsystem without a controller has no socket.
        let empty = subsystem(&lab.client, "of-group-empty", json!({})).await;
        Resource::new(&lab.client, "NvmeSubsystem")
            .deleted(&empty)
            .await;
    });
}
