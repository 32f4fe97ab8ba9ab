//! The group of controllers' sockets.

use super::*;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// The only finding with these flags, on the machine of an unprivileged user in group 7 and 9.
fn found(tree: &Tree, flags: &[&str]) -> Option<Finding> {
    tree.write(
        "/proc/self/status",
        "Gid:\t7\t7\t7\t7\nGroups:\t9 \nCapEff:\t00000000fffffffe\n",
    );
    let flags: Vec<_> = REACTORS.iter().chain(flags).copied().collect();
    let mut found = bad(tree, &flags);
    assert!(found.len() < 2, "{found:#?}");
    found.pop()
}

#[test]
fn a_group_that_the_process_may_not_give_is_told_before_the_start_fails() {
    let tree = good();
    for group in ["7", "9"] {
        assert_eq!(found(&tree, &["--socket-group", group]), None);
    }
    let finding = found(&tree, &["--socket-group", "8"]).expect("a finding");
    assert_eq!(finding.check, "socket-group");
    assert!(finding.what.ends_with("group 8"), "{finding:?}");
    assert!(
        finding
            .fix
            .is_some_and(|fix| fix.contains("--cap-add CHOWN"))
    );
}

#[test]
fn a_directory_that_the_group_cannot_pass_is_told() {
    let tree = good();
    let (above, dir) = ("/run/vms", "/run/vms/sockets");
    let flags = ["--ctrlr-dir", dir, "--socket-mode", "0660"];
    let missing = found(&tree, &flags).expect("a finding");
    assert_eq!(
        missing.what,
        "/run/vms will be made for its owner alone, above ctrlr-dir"
    );
    assert_eq!(
        missing.fix.as_deref(),
        Some("install -d -m 0755 /run/vms, or another --ctrlr-dir")
    );

    tree.dir(above);
    let mode = |mode| {
        let path = tree.path(above);
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is ours");
        path.metadata().expect("it is there").gid().to_string()
    };
    let group = mode(0o710);
    let closed = found(&tree, &flags).expect("a finding");
    assert!(
        closed.what.starts_with("/run/vms cannot be passed"),
        "{closed:?}"
    );
    tree.write("/proc/self/status", "CapEff:\tffffffffff\n");
    let flags = [
        "--ctrlr-dir",
        dir,
        "--socket-group",
        &group,
        "--cores",
        "1-2",
    ];
    assert_eq!(bad(&tree, &flags), []);
    mode(0o755);
    assert_eq!(bad(&tree, &flags), []);
    mode(0o700);
    assert_eq!(bad(&tree, &flags).len(), 1);
    // Nobody else is admitted to the sockets.
    let flags = ["--ctrlr-dir", dir, "--socket-mode", "0600"];
    assert_eq!(found(&tree, &flags), None);
}
