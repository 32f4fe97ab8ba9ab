//! bdevs and the NVMe-oF target on a running SPDK. SPDK runs once per process, hence a single test in each file
//! here.

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use spdk::nvmf::{Address, Transport, View, host, listener, namespace, subsystem, transport};
use spdk::{Handle, Options, bdev};

mod common;

use common::{errno, run};

const NQN: &str = "nqn.2022-09.io.spdk:opi-test1";
const OTHER: &str = "nqn.2022-09.io.spdk:opi-test2";
const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_is_there_and_what_is_wrong_is_refused_whole() {
    let huge = spdk::hugepages_free_mib() >= 600;
    let runtime = common::start_with(Options {
        no_huge: !huge,
        ..common::options()
    })
    .await;
    let handle = runtime.handle();

    bdevs(&handle).await;
    aio(&handle).await;
    run!(handle, s => transport::create(s, Transport::Tcp).await).expect("a TCP transport");
    assert_eq!(
        errno(run!(handle, s => transport::create(s, Transport::Tcp).await)),
        libc::EEXIST
    );
    subsystems(&handle).await;
    listeners(&handle).await;
    namespaces(&handle).await;
    hosts(&handle).await;
    if huge {
        vfio_user(&handle).await;
    } else {
        eprintln!("no 600 MiB of hugepages are free: vfio-user is not tested");
    }

    for nqn in [NQN, OTHER] {
        run!(handle, s => subsystem::destroy(s, nqn).await).expect("destroyed");
    }
    assert_eq!(
        errno(run!(handle, s => subsystem::destroy(s, NQN).await)),
        libc::ENODEV
    );
    assert_eq!(run!(handle, s => subsystem::nqns(s)), Ok(vec![]));
    for name in run!(handle, s => bdev::names(s)) {
        run!(handle, s => bdev::delete(s, &name).await).expect("deleted");
    }
    assert_eq!(run!(handle, s => bdev::names(s)), Vec::<String>::new());
    assert_eq!(runtime.stop().await, 0);
}

fn malloc(name: &str, num_blocks: u64, block_size: u32) -> bdev::malloc::Options {
    bdev::malloc::Options {
        name: name.to_owned(),
        uuid: None,
        num_blocks,
        block_size,
        metadata_size: 0,
    }
}

async fn bdevs(handle: &Handle) {
    let uuid = Some([7; 16]);
    let options = bdev::malloc::Options {
        uuid,
        ..malloc("m0", 2048, 512)
    };
    let again = options.clone();
    run!(handle, s => bdev::malloc::create(s, &options).await).expect("a malloc bdev");
    let info = run!(handle, s => bdev::lookup(s, "m0"))
        .expect("no NUL")
        .expect("it is there");
    assert_eq!(
        (info.block_size, info.num_blocks, info.uuid),
        (512, 2048, [7; 16])
    );
    assert_eq!(
        (info.product.as_str(), info.claimed_by),
        ("Malloc disk", None)
    );
    assert!(info.io.write && info.io.unmap && !info.io.compare);
    assert_eq!(
        errno(run!(handle, s => bdev::malloc::create(s, &again).await)),
        libc::EEXIST
    );
    let same_uuid = bdev::malloc::Options {
        uuid,
        ..malloc("m1", 8, 512)
    };
    assert_eq!(
        errno(run!(handle, s => bdev::malloc::create(s, &same_uuid).await)),
        libc::EEXIST
    );

    for (num_blocks, block_size, expected) in [
        (0, 512, libc::EINVAL),
        (8, 500, libc::EINVAL),
        (8, 1536, libc::EINVAL),
        (1 << 63, 512, libc::EINVAL),
        (u64::MAX / 512, 512, libc::EINVAL),
        (1 << 40, 512, libc::ENOMEM),
    ] {
        let options = malloc("bad", num_blocks, block_size);
        let result = run!(handle, s => bdev::malloc::create(s, &options).await);
        assert_eq!(errno(result), expected, "{num_blocks} x {block_size}");
    }
    assert_eq!(run!(handle, s => bdev::lookup(s, "bad")), Ok(None));
    assert_eq!(
        errno(run!(handle, s => bdev::lookup(s, "a\0b"))),
        libc::EINVAL
    );

    let options = bdev::null::Options {
        name: "n0".to_owned(),
        uuid: None,
        num_blocks: 64,
        block_size: 512,
    };
    run!(handle, s => bdev::null::create(s, &options).await).expect("a null bdev");
    for num_blocks in [128, 64] {
        run!(handle, s => bdev::null::resize(s, "n0", num_blocks).await).expect("resized");
        let info = run!(handle, s => bdev::lookup(s, "n0"))
            .expect("no NUL")
            .expect("there");
        assert_eq!(info.num_blocks, num_blocks);
    }
    for (name, num_blocks, expected) in [
        ("m0", 4096, libc::EINVAL),
        ("n0", 0, libc::EINVAL),
        ("n0", 1 << 63, libc::EINVAL),
        ("absent", 64, libc::ENODEV),
    ] {
        let result = run!(handle, s => bdev::null::resize(s, name, num_blocks).await);
        assert_eq!(errno(result), expected, "{name} to {num_blocks}");
    }

    let stats = run!(handle, s => bdev::stats(s, "m0").await).expect("statistics");
    assert_eq!((stats.read_ops, stats.write_bytes), (0, 0));
    assert!(stats.ticks_per_second > 0);
    assert_eq!(
        errno(run!(handle, s => bdev::stats(s, "absent").await)),
        libc::ENODEV
    );
    assert_eq!(
        errno(run!(handle, s => bdev::delete(s, "absent").await)),
        libc::ENODEV
    );
}

async fn aio(handle: &Handle) {
    let dir = std::env::temp_dir().join(format!("opi-spdk-target-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let path = dir.join("disk");
    let aio = |name: &str, filename: &std::path::Path, block_size| bdev::aio::Options {
        name: name.to_owned(),
        uuid: None,
        filename: filename.to_string_lossy().into_owned(),
        block_size,
        readonly: false,
    };
    std::fs::write(&path, vec![0; 64 * 512]).expect("a file");
    let empty = dir.join("empty");
    std::fs::write(&empty, []).expect("a file");

    let options = aio("a0", &path, 512);
    run!(handle, s => bdev::aio::create(s, &options).await).expect("an aio bdev");
    let blocks = |info: Option<bdev::Info>| info.expect("it is there").num_blocks;
    assert_eq!(
        blocks(run!(handle, s => bdev::lookup(s, "a0")).expect("no NUL")),
        64
    );
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .expect("the file");
    file.write_all(&[1; 64 * 512]).expect("it grows");
    run!(handle, s => bdev::aio::rescan(s, "a0").await).expect("rescanned");
    assert_eq!(
        blocks(run!(handle, s => bdev::lookup(s, "a0")).expect("no NUL")),
        128
    );

    for (path, block_size, expected) in [
        (&dir, 512, libc::EISDIR),
        (&dir.join("absent"), 512, libc::ENOENT),
        (&empty, 512, libc::EINVAL),
        (&path, 100, libc::EINVAL),
        (&path, 1 << 20, libc::EINVAL),
    ] {
        let options = aio("bad", path, block_size);
        let result = run!(handle, s => bdev::aio::create(s, &options).await);
        assert_eq!(
            errno(result),
            expected,
            "{} in {block_size}",
            path.display()
        );
    }
    assert_eq!(run!(handle, s => bdev::lookup(s, "bad")), Ok(None));
    std::fs::remove_dir_all(&dir).expect("removed");
}

fn options(nqn: &str) -> subsystem::Options {
    subsystem::Options {
        nqn: nqn.to_owned(),
        serial: "SN1".to_owned(),
        model: "a model".to_owned(),
        max_namespaces: 8,
        allow_any_host: true,
    }
}

async fn subsystems(handle: &Handle) {
    for nqn in [NQN, OTHER] {
        run!(handle, s => subsystem::create(s, &options(nqn)).await).expect("a subsystem");
    }
    let info = run!(handle, s => subsystem::info(s, NQN))
        .expect("a target")
        .expect("there");
    assert_eq!(
        (info.serial.as_str(), info.model.as_str()),
        ("SN1", "a model")
    );
    assert_eq!((info.max_namespaces, info.allow_any_host), (8, true));
    assert_eq!(
        errno(run!(handle, s => subsystem::create(s, &options(NQN)).await)),
        libc::EEXIST
    );
    for wrong in [
        options("nqn.2022-09.io.spdk"),
        options(spdk::nvmf::nqn::DISCOVERY),
        subsystem::Options {
            serial: "x".repeat(21),
            ..options("nqn.2022-09.io.spdk:x")
        },
        subsystem::Options {
            model: "ü".to_owned(),
            ..options("nqn.2022-09.io.spdk:x")
        },
        subsystem::Options {
            max_namespaces: u32::MAX,
            ..options("nqn.2022-09.io.spdk:x")
        },
    ] {
        let result = run!(handle, s => subsystem::create(s, &wrong).await);
        assert!([libc::EINVAL, libc::EEXIST].contains(&errno(result)));
    }
    run!(handle, s => subsystem::set_identity(s, NQN, "SN2", "").await).expect("changed");
    let info = run!(handle, s => subsystem::info(s, NQN))
        .expect("a target")
        .expect("there");
    assert_eq!(
        (info.serial.as_str(), info.model.as_str()),
        ("SN2", "a model")
    );
    assert_eq!(
        run!(handle, s => subsystem::nqns(s)).map(|nqns| nqns.len()),
        Ok(2)
    );
}

async fn listeners(handle: &Handle) {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken_at = taken.local_addr().expect("an address");
    let free_at = {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        free.local_addr().expect("an address")
    };
    let tcp = |at: std::net::SocketAddr| Address::Tcp {
        ip: at.ip(),
        port: at.port(),
    };
    let (here, there) = (tcp(free_at), tcp(taken_at));
    let far = Address::Tcp {
        ip: "192.0.2.1".parse().expect("an address"),
        port: 4420,
    };

    let at = here.clone();
    run!(handle, s => listener::add(s, NQN, &at, false).await).expect("a listener");
    TcpStream::connect(free_at).expect("someone listens");
    let at = here.clone();
    assert_eq!(
        errno(run!(handle, s => listener::add(s, NQN, &at, false).await)),
        libc::EEXIST
    );
    assert_eq!(
        errno(run!(handle, s => listener::add(s, NQN, &there, false).await)),
        libc::EADDRINUSE
    );
    assert_eq!(
        errno(run!(handle, s => listener::add(s, NQN, &far, false).await)),
        libc::EADDRNOTAVAIL
    );
    let at = here.clone();
    assert_eq!(
        errno(run!(handle, s => listener::add(s, "nqn.2022-09.io.spdk:no", &at, false).await)),
        libc::ENODEV
    );
    assert_eq!(
        run!(handle, s => listener::list(s, NQN)),
        Ok(vec![here.clone()])
    );

    // A second subsystem at the same address keeps the address listening.
    let at = here.clone();
    run!(handle, s => listener::add(s, OTHER, &at, false).await).expect("shared");
    let at = here.clone();
    run!(handle, s => listener::remove(s, NQN, &at).await).expect("removed");
    TcpStream::connect(free_at).expect("someone still listens");
    let at = here.clone();
    assert_eq!(
        errno(run!(handle, s => listener::remove(s, NQN, &at).await)),
        libc::ENOENT
    );
    let at = here.clone();
    run!(handle, s => listener::remove(s, OTHER, &at).await).expect("removed");
    TcpStream::connect(free_at).expect_err("nobody listens any more");
    run!(handle, s => listener::add(s, NQN, &here, false).await).expect("back");
}

async fn namespaces(handle: &Handle) {
    let on = |bdev: &str, nsid| namespace::Options {
        bdev: bdev.to_owned(),
        nsid,
        ..namespace::Options::default()
    };
    let added = run!(handle, s => namespace::add(s, NQN, &on("m0", 3)).await).expect("added");
    assert_eq!((added.nsid, added.bdev.is_there()), (3, true));
    for (nqn, bdev, nsid, expected) in [
        (NQN, "m0", 0, libc::EBUSY),
        (OTHER, "m0", 0, libc::EBUSY),
        (NQN, "n0", 3, libc::EEXIST),
        (NQN, "n0", 9, libc::ERANGE),
        (NQN, "n0", u32::MAX, libc::ERANGE),
        (NQN, "absent", 0, libc::ENODEV),
        ("nqn.2022-09.io.spdk:no", "n0", 0, libc::ENODEV),
    ] {
        let result = run!(handle, s => namespace::add(s, nqn, &on(bdev, nsid)).await);
        assert_eq!(errno(result), expected, "{bdev} as {nsid} of {nqn}");
    }
    let info = run!(handle, s => bdev::lookup(s, "m0"))
        .expect("no NUL")
        .expect("there");
    assert_eq!(info.claimed_by.as_deref(), Some("NVMe-oF Target"));
    assert_eq!(
        errno(run!(handle, s => bdev::delete(s, "m0").await)),
        libc::EBUSY
    );

    // Concurrent changes of one subsystem: each free ID is assigned once.
    let mut tasks = Vec::new();
    for index in 0..10 {
        let handle = handle.clone();
        tasks.push(tokio::spawn(async move {
            let name = format!("c{index}");
            let options = malloc(&name, MIB / 512, 512);
            run!(handle, s => bdev::malloc::create(s, &options).await).expect("a bdev");
            run!(handle, s => namespace::add(s, NQN, &namespace::Options {
                bdev: name,
                ..namespace::Options::default()
            }).await)
        }));
    }
    let mut given = Vec::new();
    for task in tasks {
        match task.await.expect("no panic") {
            Ok(added) => given.push(added.nsid),
            Err(error) => assert_eq!(error.errno.0, libc::ENOSPC, "{error}"),
        }
    }
    given.sort_unstable();
    assert_eq!(given, [1, 2, 4, 5, 6, 7, 8]);
    let listed = run!(handle, s => namespace::list(s, NQN)).expect("a subsystem");
    assert_eq!(
        listed.iter().map(|n| n.nsid).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6, 7, 8]
    );
    assert_eq!(listed[2].bdev, "m0");

    for nsid in [0, 9, u32::MAX] {
        let result = run!(handle, s => namespace::remove(s, NQN, nsid).await);
        assert_eq!(errno(result), libc::ENOENT);
    }
    run!(handle, s => namespace::remove(s, NQN, 3).await).expect("removed");
    assert_eq!(
        errno(run!(handle, s => namespace::remove(s, NQN, 3).await)),
        libc::ENOENT
    );
    let added = run!(handle, s => namespace::add(s, OTHER, &on("m0", 0)).await).expect("added");
    assert_eq!(added.nsid, 1);
}

async fn hosts(handle: &Handle) {
    const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:feb98abe-d51f-40c8-b348-2753f3571d3c";
    run!(handle, s => host::allow(s, NQN, HOST, &host::Keys::default(), &View::All).await)
        .expect("allowed");
    assert_eq!(
        errno(
            run!(handle, s => host::allow(s, NQN, HOST, &host::Keys::default(), &View::All).await)
        ),
        libc::EEXIST
    );
    assert_eq!(
        errno(
            run!(handle, s => host::allow(s, NQN, "me", &host::Keys::default(), &View::All).await)
        ),
        libc::EINVAL
    );
    assert_eq!(
        run!(handle, s => host::list(s, NQN)),
        Ok(vec![HOST.to_owned()])
    );
    run!(handle, s => host::disallow(s, NQN, HOST).await).expect("disallowed");
    assert_eq!(
        errno(run!(handle, s => host::disallow(s, NQN, HOST).await)),
        libc::ENOENT
    );
    run!(handle, s => host::allow_any(s, NQN, false).await).expect("changed");
    let info = run!(handle, s => subsystem::info(s, NQN))
        .expect("a target")
        .expect("there");
    assert!(!info.allow_any_host);
}

async fn vfio_user(handle: &Handle) {
    run!(handle, s => transport::create(s, Transport::VfioUser).await).expect("a transport");
    let dir = std::env::temp_dir().join(format!("opi-spdk-vfio-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let here = Address::VfioUser {
        dir: dir.to_string_lossy().into_owned(),
    };
    let absent = Address::VfioUser {
        dir: dir.join("absent").to_string_lossy().into_owned(),
    };

    let at = here.clone();
    run!(handle, s => listener::add(s, NQN, &at, false).await).expect("a controller");
    assert!(dir.join("cntrl").exists());
    let at = here.clone();
    assert_eq!(
        errno(run!(handle, s => listener::add(s, OTHER, &at, false).await)),
        libc::EADDRINUSE
    );
    assert_eq!(
        errno(run!(handle, s => listener::add(s, OTHER, &absent, false).await)),
        libc::EIO
    );
    let at = here.clone();
    run!(handle, s => listener::remove(s, NQN, &at).await).expect("removed");
    assert!(!dir.join("cntrl").exists());
    run!(handle, s => listener::add(s, OTHER, &here, false).await).expect("free again");
}
