//! vhost-user controllers on a running SPDK, without a virtual machine. SPDK runs once per process, hence a single
//! test.

use spdk::bdev::crypto;
use spdk::{bdev, vhost};

mod common;

use common::{errno, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_and_targets_come_and_go_whole() {
    let runtime = common::start(64).await;
    let handle = runtime.handle();
    for name in ["n0", "n1", "m0"] {
        let options = bdev::null::Options {
            name: name.to_owned(),
            uuid: None,
            num_blocks: 64,
            block_size: 512,
        };
        run!(handle, s => bdev::null::create(s, &options).await).expect("a bdev");
    }
    // A bdev that another bdev claims.
    let key = crypto::Key::new((0..32).collect()).expect("a valid key");
    let options = crypto::Options {
        name: "e0".to_owned(),
        base: "m0".to_owned(),
        key,
    };
    run!(handle, s => crypto::create(s, &options).await).expect("an encrypted bdev");

    let dir = std::env::temp_dir().join(format!("opi-spdk-vhost-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let directory = dir.to_string_lossy().into_owned();
    run!(handle, s => vhost::set_directory(s, &directory)).expect("a directory");

    run!(handle, s => vhost::blk::create(s, "b0", "n0").await).expect("a controller");
    assert!(dir.join("b0").exists());
    for (name, bdev, expected) in [
        ("b0", "n0", libc::EEXIST),
        ("b1", "absent", libc::ENODEV),
        ("b1", "m0", libc::EBUSY),
        ("a/b", "n0", libc::EINVAL),
        ("", "n0", libc::EINVAL),
        ("x".repeat(108).as_str(), "n0", libc::EPERM),
    ] {
        let name = name.to_owned();
        let result = run!(handle, s => vhost::blk::create(s, &name, bdev).await);
        assert_eq!(errno(result), expected, "on {bdev}");
    }

    run!(handle, s => vhost::scsi::create(s, "s0").await).expect("a controller");
    assert_eq!(
        errno(run!(handle, s => vhost::scsi::create(s, "b0").await)),
        libc::EEXIST
    );
    assert_eq!(
        run!(handle, s => vhost::scsi::add_target(s, "s0", Some(3), "n0").await),
        Ok(3)
    );
    assert_eq!(
        run!(handle, s => vhost::scsi::add_target(s, "s0", None, "n0").await),
        Ok(0)
    );
    for (name, number, bdev, expected) in [
        ("s0", Some(3), "n0", libc::EEXIST),
        ("s0", Some(8), "n0", libc::EINVAL),
        ("s0", None, "absent", libc::ENODEV),
        ("s0", None, "m0", libc::EBUSY),
        ("s1", None, "n0", libc::ENODEV),
        ("b0", None, "n0", libc::ENODEV),
    ] {
        let result = run!(handle, s => vhost::scsi::add_target(s, name, number, bdev).await);
        assert_eq!(errno(result), expected, "{number:?} of {name} on {bdev}");
    }
    run!(handle, s => vhost::scsi::remove_target(s, "s0", 3).await).expect("removed");
    for number in [3, 8, 255] {
        let result = run!(handle, s => vhost::scsi::remove_target(s, "s0", number).await);
        assert_eq!(errno(result), libc::ENOENT, "{number}");
    }
    // A controller of the other kind has no targets.
    let result = run!(handle, s => vhost::scsi::remove_target(s, "b0", 0).await);
    assert_eq!(errno(result), libc::ENODEV);
    let mut names = run!(handle, s => vhost::names(s));
    names.sort();
    assert_eq!(names, ["b0", "s0"]);
    let volume_of = async |name| run!(handle, s => vhost::blk::volume_of(s, name));
    assert_eq!(volume_of("b0").await.as_deref(), Some("n0"));
    assert_eq!(volume_of("s0").await, None);
    run!(handle, s => bdev::alias::add(s, "n1", "alias")).expect("an alias");
    run!(handle, s => vhost::blk::create(s, "b1", "alias").await).expect("a controller");
    assert_eq!(volume_of("b1").await.as_deref(), Some("n1"), "its own name");
    run!(handle, s => bdev::delete(s, "n1").await).expect("deleted");
    assert_eq!(volume_of("b1").await, None, "its bdev is gone");
    run!(handle, s => vhost::blk::delete(s, "b1").await).expect("deleted");
    run!(handle, s => vhost::blk::delete(s, "b0").await).expect("deleted");
    assert_eq!(volume_of("b0").await, None);
    run!(handle, s => vhost::scsi::delete(s, "s0").await).expect("deleted, with its target");
    assert_eq!(
        errno(run!(handle, s => vhost::scsi::delete(s, "s0").await)),
        libc::ENODEV
    );
    assert_eq!(run!(handle, s => vhost::names(s)), Vec::<String>::new());
    assert!(!dir.join("b0").exists() && !dir.join("s0").exists());
    std::fs::remove_dir_all(&dir).expect("removed");
    assert_eq!(runtime.stop().await, 0);
}
