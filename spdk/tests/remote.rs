//! Remote controllers, TLS, encryption, rate limits: this process's own target is the remote one, over loopback.
//! SPDK runs once per process, hence a single test.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use spdk::bdev::nvme::{self, Multipath, PathState};
use spdk::bdev::{crypto, malloc, qos};
use spdk::nvmf::{Address, Transport, View, host, listener, namespace, subsystem, transport};
use spdk::{Handle, bdev, keyring};

mod common;

use common::{errno, run};

const NQN: &str = "nqn.2022-09.io.spdk:opi-remote1";
const SECURE: &str = "nqn.2022-09.io.spdk:opi-remote2";
const HOST: &str = "nqn.2022-09.io.spdk:opi-host1";
/// A PSK in interchange format: 32 bytes of key and their CRC-32, in base64.
const PSK: &str = "NVMeTLSkey-1:01:MDAxMTIyMzM0NDU1NjY3Nzg4OTlhYWJiY2NkZGVlZmZwJEiQ:";

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address")
}

fn path(name: &str, at: SocketAddr) -> nvme::Options {
    nvme::Options {
        name: name.to_owned(),
        address: nvme::Address::Tcp {
            ip: at.ip(),
            port: at.port(),
        },
        subsystem: NQN.to_owned(),
        hostnqn: Some(HOST.to_owned()),
        source: None,
        multipath: Multipath::Multipath,
        first: false,
        header_digest: true,
        data_digest: true,
        num_io_queues: 1,
        io_queue_size: 32,
        psk: None,
        deadline: Duration::from_secs(5),
    }
}

async fn export(handle: &Handle, nqn: &'static str, bdev: &'static str) {
    let disk = malloc::Options {
        name: bdev.to_owned(),
        uuid: None,
        num_blocks: 16384,
        block_size: 512,
        metadata_size: 0,
    };
    run!(handle, s => malloc::create(s, &disk).await).expect("a bdev");
    run!(handle, s => subsystem::create(s, &subsystem::Options {
        nqn: nqn.to_owned(),
        serial: "SN1".to_owned(),
        model: String::new(),
        max_namespaces: 8,
        allow_any_host: nqn == NQN,
    }).await)
    .expect("a subsystem");
    run!(handle, s => namespace::add(s, nqn, &namespace::Options {
        bdev: bdev.to_owned(),
        nsid: 2,
        // Different from the bdev's UUID, which exists in this process already.
        uuid: Some(if nqn == NQN { [8; 16] } else { [6; 16] }),
        nguid: Some(if nqn == NQN { [7; 16] } else { [5; 16] }),
        eui64: Some([1, 2, 3, 4, 5, 6, 7, 8]),
        ..namespace::Options::default()
    }).await)
    .expect("a namespace");
}

async fn listen(handle: &Handle, nqn: &'static str, at: SocketAddr, secure: bool) {
    let address = Address::Tcp {
        ip: at.ip(),
        port: at.port(),
    };
    run!(handle, s => listener::add(s, nqn, &address, secure).await).expect("a listener");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_controller_is_attached_used_and_detached_whole() {
    let runtime = common::start(64).await;
    let handle = runtime.handle();
    run!(handle, s => transport::create(s, Transport::Tcp).await).expect("a transport");
    export(&handle, NQN, "disk1").await;
    let (one, two, secure) = (free_port(), free_port(), free_port());
    for at in [one, two] {
        listen(&handle, NQN, at, false).await;
    }

    paths(&handle, one, two).await;
    absent_peers(&handle).await;
    on_top(&handle).await;
    tls(&handle, secure).await;

    run!(handle, s => nvme::detach(s, "r1", None, false).await).expect("detached");
    assert_eq!(
        run!(handle, s => nvme::controllers(s)),
        Vec::<String>::new()
    );
    assert_eq!(
        errno(run!(handle, s => nvme::detach(s, "r1", None, false).await)),
        libc::ENODEV
    );
    assert_eq!(run!(handle, s => bdev::names(s)), ["disk1", "disk2"]);
    assert_eq!(runtime.stop().await, 0);
}

async fn paths(handle: &Handle, one: SocketAddr, two: SocketAddr) {
    let first = path("r1", one);
    run!(handle, s => nvme::attach(s, &first).await).expect("attached");
    let first = path("r1", one);
    assert_eq!(
        errno(run!(handle, s => nvme::attach(s, &first).await)),
        libc::EEXIST
    );
    let alone = nvme::Options {
        multipath: Multipath::Disabled,
        ..path("r1", two)
    };
    assert_eq!(
        errno(run!(handle, s => nvme::attach(s, &alone).await)),
        libc::EEXIST
    );
    let other = nvme::Options {
        subsystem: SECURE.to_owned(),
        ..path("r1", two)
    };
    assert_eq!(
        errno(run!(handle, s => nvme::attach(s, &other).await)),
        libc::EINVAL
    );
    let second = path("r1", two);
    run!(handle, s => nvme::attach(s, &second).await).expect("a second path");

    let namespaces = run!(handle, s => nvme::namespaces(s, "r1")).expect("attached");
    assert_eq!(namespaces.len(), 1);
    assert_eq!(
        (namespaces[0].bdev.as_str(), namespaces[0].nsid),
        ("r1n2", 2)
    );
    assert_eq!(namespaces[0].uuid, Some([8; 16]));
    assert_eq!(namespaces[0].nguid, Some([7; 16]));
    assert_eq!(namespaces[0].eui64, Some([1, 2, 3, 4, 5, 6, 7, 8]));
    let paths = run!(handle, s => nvme::paths(s, "r1")).expect("attached");
    assert_eq!(paths.len(), 2);
    for path in &paths {
        assert_eq!(path.state, PathState::Connected);
        assert_eq!(
            (path.subsystem.as_str(), path.hostnqn.as_str()),
            (NQN, HOST)
        );
    }
    for at in [one, two] {
        let id = path("r1", at).path();
        run!(handle, s => nvme::path_stats(s, "r1", &id).await).expect("counters");
    }
    run!(handle, s => nvme::reset(s, "r1", Duration::from_secs(5)).await).expect("reset");
    assert_eq!(
        errno(run!(handle, s => nvme::reset(s, "absent", Duration::from_secs(5)).await)),
        libc::ENODEV
    );

    let id = path("r1", two).path();
    run!(handle, s => nvme::detach(s, "r1", Some(&id), false).await).expect("one path");
    let paths = run!(handle, s => nvme::paths(s, "r1")).expect("attached");
    assert_eq!(paths.len(), 1);
    let id = path("r1", two).path();
    let gone = run!(handle, s => nvme::detach(s, "r1", Some(&id), false).await);
    assert_eq!(errno(gone), libc::ENXIO);
}

async fn absent_peers(handle: &Handle) {
    let refusing = path("r2", free_port());
    assert_eq!(
        errno(run!(handle, s => nvme::attach(s, &refusing).await)),
        libc::EHOSTUNREACH
    );

    // A peer that accepts the connection and never answers must not delay others.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = nvme::Options {
        deadline: Duration::from_millis(500),
        ..path("r2", silent.local_addr().expect("an address"))
    };
    let begun = Instant::now();
    let attach = tokio::spawn({
        let handle = handle.clone();
        async move { run!(handle, s => nvme::attach(s, &silent).await) }
    });
    let mut meanwhile = 0;
    while !attach.is_finished() {
        run!(handle, s => bdev::lookup(s, "disk1"))
            .expect("no NUL")
            .expect("it is there");
        meanwhile += 1;
    }
    assert_eq!(errno(attach.await.expect("no panic")), libc::ETIMEDOUT);
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert!(meanwhile > 100, "{meanwhile} other calls");
    assert_eq!(run!(handle, s => nvme::controllers(s)), ["r1"]);

    for wrong in [
        nvme::Options {
            name: "x".repeat(50),
            ..path("", free_port())
        },
        path("", free_port()),
        nvme::Options {
            psk: Some("k".to_owned()),
            address: nvme::Address::Pcie {
                address: "0000:00:00.0".to_owned(),
            },
            ..path("r3", free_port())
        },
        nvme::Options {
            num_io_queues: u32::MAX,
            ..path("r3", free_port())
        },
    ] {
        assert_eq!(
            errno(run!(handle, s => nvme::attach(s, &wrong).await)),
            libc::EINVAL
        );
    }
}

async fn on_top(handle: &Handle) {
    let key = || crypto::Key::new((0..64).collect()).expect("a valid key");
    let options = crypto::Options {
        name: "e1".to_owned(),
        base: "r1n2".to_owned(),
        key: key(),
    };
    let again = crypto::Options {
        name: "e2".to_owned(),
        ..options.clone()
    };
    let absent = crypto::Options {
        base: "absent".to_owned(),
        ..again.clone()
    };
    run!(handle, s => crypto::create(s, &options).await).expect("encrypted");
    assert_eq!(
        errno(run!(handle, s => crypto::create(s, &again).await)),
        libc::EBUSY
    );
    assert_eq!(
        errno(run!(handle, s => crypto::create(s, &absent).await)),
        libc::ENODEV
    );
    assert_eq!(
        errno(run!(handle, s => crypto::delete(s, "absent").await)),
        libc::ENODEV
    );
    let info = run!(handle, s => bdev::lookup(s, "e1"))
        .expect("no NUL")
        .expect("it is there");
    assert_eq!((info.num_blocks, info.product.as_str()), (16384, "crypto"));

    for limits in [
        qos::Limits {
            rw_iops: 2000,
            rw_mib: 10,
            ..qos::Limits::default()
        },
        qos::Limits {
            read_mib: 1,
            write_mib: 2,
            ..qos::Limits::default()
        },
        qos::Limits::default(),
    ] {
        run!(handle, s => qos::set(s, "e1", limits).await).expect("limited");
    }
    let uneven = qos::Limits {
        rw_iops: 1,
        ..qos::Limits::default()
    };
    assert_eq!(
        errno(run!(handle, s => qos::set(s, "e1", uneven).await)),
        libc::EINVAL
    );
    let none = qos::Limits::default();
    assert_eq!(
        errno(run!(handle, s => qos::set(s, "absent", none).await)),
        libc::ENODEV
    );

    run!(handle, s => crypto::delete(s, "e1").await).expect("deleted");
    // The same key, then another one, on the same base: nothing of the first bdev may remain.
    for key in [
        key(),
        crypto::Key::new((1..33).collect()).expect("a valid key"),
    ] {
        let options = crypto::Options {
            name: "e1".to_owned(),
            base: "r1n2".to_owned(),
            key,
        };
        run!(handle, s => crypto::create(s, &options).await).expect("encrypted anew");
        run!(handle, s => crypto::delete(s, "e1").await).expect("deleted");
    }
}

async fn tls(handle: &Handle, at: SocketAddr) {
    export(handle, SECURE, "disk2").await;
    run!(handle, s => keyring::add(s, "psk1", PSK.as_bytes())).expect("a key");
    assert_eq!(
        errno(run!(handle, s => keyring::add(s, "psk1", b"x"))),
        libc::EEXIST
    );
    assert_eq!(
        errno(run!(handle, s => keyring::add(s, "a:b", b"x"))),
        libc::EINVAL
    );
    let keys = host::Keys {
        psk: PSK.as_bytes().to_vec(),
        ..host::Keys::default()
    };
    run!(handle, s => host::allow(s, SECURE, HOST, &keys, &View::All).await).expect("allowed");
    listen(handle, SECURE, at, true).await;
    let address = Address::Tcp {
        ip: at.ip(),
        port: at.port(),
    };
    assert_eq!(
        errno(run!(handle, s => listener::add(s, NQN, &address, false).await)),
        libc::EADDRINUSE
    );

    let plain = nvme::Options {
        subsystem: SECURE.to_owned(),
        ..path("t1", at)
    };
    let with_key = nvme::Options {
        psk: Some("psk1".to_owned()),
        ..plain.clone()
    };
    let unknown = nvme::Options {
        psk: Some("psk2".to_owned()),
        ..plain.clone()
    };
    assert_eq!(
        errno(run!(handle, s => nvme::attach(s, &unknown).await)),
        libc::ENOKEY
    );
    assert!(run!(handle, s => nvme::attach(s, &plain).await).is_err());
    run!(handle, s => nvme::attach(s, &with_key).await).expect("attached over TLS");
    let namespaces = run!(handle, s => nvme::namespaces(s, "t1")).expect("attached");
    assert_eq!(namespaces[0].bdev, "t1n2");
    run!(handle, s => nvme::detach(s, "t1", None, false).await).expect("detached");
    run!(handle, s => host::disallow(s, SECURE, HOST).await).expect("disallowed");
    run!(handle, s => keyring::remove(s, "psk1")).expect("removed");
    assert_eq!(
        errno(run!(handle, s => keyring::remove(s, "psk1"))),
        libc::ENOKEY
    );
}
