//! Identity of hosts: the NQNs in Connect, the TLS key, and the ownership of I/O queues.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use super::refused;
use super::tls::Tunnel;
use crate::common::nvme_tcp::{Bystander, Command, Digests, Host, Identity, Pdu, Sgl};
use crate::common::{
    PSK, Psk, Target, base64, malloc, namespace, nqn_of, poll_blocking, subsystem, tcp_controller,
};

/// A key of another host.
const OTHER_PSK: &str = "NVMeTLSkey-1:01:QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkK9MX0g:";

/// Length of data that is not a TLS record.
const NOT_TLS: usize = 145;

/// Sends a Connect of the admin queue with this data.
fn connect(host: &mut Host, data: &[u8], sgl: Sgl) {
    let cid = host.cid();
    let command = Command::connect(cid, 0, 31, sgl);
    let inside = match sgl {
        Sgl::InCapsule(_) => data,
        _ => &[],
    };
    host.send(&Pdu::capsule(command, inside)).expect("it goes");
}

#[tokio::test]
async fn connect_with_other_data_than_its_1024_bytes_is_refused() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let identity = Identity::new(bystander.fixture.port, &bystander.fixture.nqn);
    let data = identity.connect_data(0xffff);
    for sgl in [Sgl::None, Sgl::Transport(0), Sgl::InCapsule(0)] {
        let mut host = identity.negotiated(Digests::OFF);
        connect(&mut host, &[], sgl);
        assert!(refused(&mut host), "{sgl:?}");
    }
    for length in [1_u32, 512, 1023, 1025, 4096] {
        let mut host = identity.negotiated(Digests::OFF);
        let mut data = data.clone();
        data.resize(length as usize, 0);
        connect(&mut host, &data, Sgl::InCapsule(length));
        assert!(refused(&mut host), "{length} bytes");
    }
    bystander
        .unharmed(&mut target, "Connect without data")
        .await;

    for (what, at, bytes) in [
        (
            "a subsystem NQN without its end",
            256,
            [b'n'; 256].as_slice(),
        ),
        ("a host NQN without its end", 512, &[b'n'; 256]),
        ("a host NQN that is none", 512, b"someone\0"),
        ("a host NQN of two lines", 516, b"a\nERROR all is lost"),
        ("no subsystem NQN", 256, &[0; 256]),
        ("no host ID", 0, &[0; 16]),
    ] {
        let mut host = identity.negotiated(Digests::OFF);
        let mut data = data.clone();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        connect(&mut host, &data, Sgl::InCapsule(1024));
        assert!(refused(&mut host), "{what}");
    }
    assert!(!target.log().contains("all is lost"), "{}", target.log());
    bystander
        .unharmed(&mut target, "Connect with names that are none")
        .await;
}

#[tokio::test]
async fn an_io_queue_of_another_host_is_refused() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let owner = Identity::new(bystander.fixture.port, &bystander.fixture.nqn);
    let admin = owner.admin(Digests::OFF);
    let same_name = Identity {
        hostid: [9; 16],
        ..owner.clone()
    };
    let same_id = Identity {
        hostnqn: "nqn.2022-09.io.spdk:thief".into(),
        ..owner.clone()
    };
    for thief in [owner.clone().named("thief"), same_name, same_id] {
        let mut host = thief.negotiated(Digests::OFF);
        let taken = host.connect(&thief, 1, admin.cntlid);
        taken.expect_err("it is not its controller");
    }
    let mut own = owner.io(&admin, 1);
    own.read(1, 0, 1).expect("the owner reads");
    drop((own, admin));
    bystander
        .unharmed(&mut target, "a foreign controller")
        .await;
}

/// Creates a subsystem that admits this host with this key; returns the host's identity.
pub async fn secure(target: &Target, id: &str, hostnqn: &str, psk: &str) -> Identity {
    let client = target.client().await;
    let volume = malloc(&client, &format!("{id}-volume"), 4).await;
    let spec = json!({ "hostnqn": hostnqn, "psk": base64(psk) });
    let subsystem = subsystem(&client, id, spec).await;
    namespace(&client, &subsystem, &volume, json!({})).await;
    let (_, port) = tcp_controller(&client, &subsystem).await;
    Identity {
        hostnqn: hostnqn.into(),
        ..Identity::new(port, &nqn_of(id))
    }
}

#[tokio::test]
async fn a_key_is_good_for_its_own_host_and_subsystem_alone() {
    let target = Target::start().await;
    let alice = secure(&target, "alice", "nqn.2022-09.io.spdk:alice", PSK).await;
    let bob = secure(&target, "bob", "nqn.2022-09.io.spdk:bob", OTHER_PSK).await;
    let key = Psk::new(PSK, &alice.hostnqn, &alice.subnqn);

    let tunnel = Tunnel::open(alice.address, &key).expect("its own key");
    let mut admin = tunnel.carries(&alice).admin(Digests::OFF);
    let io = Tunnel::open(alice.address, &key).expect("its own key");
    let mut io = io.carries(&alice).io(&admin, 1);
    let marks = vec![0xa5; 4096];
    assert_eq!(io.write(1, 0, &marks).expect("an answer").status(), 0);
    assert!(io.read(1, 0, 8).expect("its data") == marks);

    // The host uses its own key at the other's subsystem, under the other's NQN or its own.
    let itself = Identity {
        hostnqn: alice.hostnqn.clone(),
        ..bob.clone()
    };
    for (who, claimed) in [("bob", &bob), ("alice", &itself)] {
        for address in [bob.address, alice.address] {
            let tunnel = Tunnel::open(address, &key).expect("a good key");
            let claimed = tunnel.carries(claimed);
            let mut host = claimed.negotiated(Digests::OFF);
            let admitted = host.connect(&claimed, 0, 0xffff);
            admitted.expect_err(&format!("as {who} to bob's subsystem"));
        }
    }
    // Without TLS, or with the wrong key under the other's identity.
    for address in [bob.address, alice.address] {
        let Ok(mut host) = Host::dial(address) else {
            continue;
        };
        assert!(
            host.negotiate(Digests::OFF).is_err(),
            "{address} in the clear"
        );
    }
    let stolen = Psk::new(PSK, &bob.hostnqn, &bob.subnqn);
    assert!(Tunnel::open(bob.address, &stolen).is_err(), "a wrong key");
    for identity in ["", "x", "NVMe0R01 a b\n", &"x".repeat(250)] {
        let key = Psk::new(PSK, &alice.hostnqn, &alice.subnqn).called(identity);
        assert!(Tunnel::open(alice.address, &key).is_err(), "{identity:?}");
    }
    let keep_alive = admin.cid();
    let alive = admin.call(Command::new(0x18, keep_alive), &[]);
    assert_eq!(alive.expect("an answer").status(), 0);
    target.stop();
}

#[tokio::test]
async fn bytes_that_are_not_tls_do_not_end_another_hosts_connection() {
    let target = Target::start().await;
    let alice = secure(&target, "alice", "nqn.2022-09.io.spdk:alice", PSK).await;
    let key = Psk::new(PSK, &alice.hostnqn, &alice.subnqn);
    let tunnel = Tunnel::open_in_parts(alice.address, &key).expect("its own key");
    let mut admin = tunnel.carries(&alice).admin(Digests::OFF);
    for round in 0..3 {
        let mut stranger = TcpStream::connect(alice.address).expect("the port takes connections");
        stranger.write_all(&[b'x'; NOT_TLS]).expect("it goes");
        let gone = poll_blocking(crate::common::nvme_tcp::ANSWER, || {
            let read = stranger.read(&mut [0; 64]);
            read.map_or(Some(()), |read| (read == 0).then_some(()))
        });
        gone.expect("the stranger is closed");
        let cid = admin.cid();
        let alive = admin.call(Command::new(0x18, cid), &[]);
        let alive = alive.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(alive.status(), 0);
    }
    drop(admin);
    target.stop();
}
