//! Plugging again: devices that a previous run of this process has left in QEMU, and devices that QEMU has lost.

use serde_json::{Value, json};

use super::peer::{Monitor, Peer, chardevs, device, in_time, pci};
use super::plug::{add_nvme, takes_vhost};
use crate::error::Error;
use crate::kvm::Model;

/// A plug finds the device `v` in QEMU, with these character devices.
async fn has_it(qemu: &mut Monitor, of_devices: &[(&str, &str)]) {
    qemu.answers("query-pci", Value::Null, pci(&[("v", true)]))
        .await;
    qemu.answers("query-chardev", Value::Null, chardevs(of_devices))
        .await;
}

/// Answers the queries for the location of the device `v`.
async fn is_at(qemu: &mut Monitor, bus: &str, slot: u32) {
    for (property, value) in [
        (
            "parent_bus",
            json!(format!("/machine/peripheral/{bus}/{bus}")),
        ),
        ("addr", json!(slot * 8)),
    ] {
        let arguments = json!({ "path": "/machine/peripheral/v", "property": property });
        qemu.answers("qom-get", arguments, value).await;
    }
}

#[tokio::test]
async fn a_vhost_user_device_of_an_earlier_life_is_kept_since_qemu_connects_it_again() {
    let peer = Peer::new();
    let machine = peer.machine();
    let blk = device(&machine, Model::VirtioBlk, "v");
    let qemu = async {
        let mut qemu = peer.accept().await;
        let trying = "disconnected:unix:/run/opi/s,reconnect=1";
        has_it(&mut qemu, &[("v", trying)]).await;
        is_at(&mut qemu, "pci.b", 2).await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[("v", "unix:")]))
            .await;
        qemu.sees_the_end().await;
    };
    let (plugged, ()) = tokio::join!(machine.plug(&blk, in_time()), qemu);
    assert_eq!(plugged, Ok(()));
}

/// Plays a QEMU that has the device `v` of a previous run, until it is unplugged.
async fn gives_up_the_old(qemu: &mut Monitor, chardev: &[(&str, &str)]) {
    qemu.answers("device_del", json!({ "id": "v" }), json!({}))
        .await;
    qemu.tells("DEVICE_DELETED", json!({ "device": "v" })).await;
    qemu.answers("query-chardev", Value::Null, chardevs(chardev))
        .await;
    if !chardev.is_empty() {
        qemu.answers("chardev-remove", json!({ "id": "v" }), json!({}))
            .await;
    }
}

#[tokio::test]
async fn a_vhost_user_device_of_an_earlier_life_that_was_elsewhere_is_moved() {
    for (bus, slot) in [("pci.a", 2), ("pci.b", 3)] {
        let peer = Peer::new();
        let machine = peer.machine();
        let blk = device(&machine, Model::VirtioBlk, "v");
        let qemu = async {
            let mut qemu = peer.accept().await;
            has_it(&mut qemu, &[("v", "unix:")]).await;
            is_at(&mut qemu, bus, slot).await;
            gives_up_the_old(&mut qemu, &[("v", "unix:")]).await;
            let driver = "vhost-user-blk-pci";
            takes_vhost(&mut qemu, driver, ("reconnect", 1), &["unix:"]).await;
            qemu.sees_the_end().await;
        };
        let (plugged, ()) = tokio::join!(machine.plug(&blk, in_time()), qemu);
        assert_eq!(plugged, Ok(()));
    }
}

#[tokio::test]
async fn an_nvme_controller_of_an_earlier_life_is_replaced_since_qemu_does_not_connect_it_again() {
    let peer = Peer::new();
    let machine = peer.machine();
    let nvme = device(&machine, Model::Nvme, "v");
    let qemu = async {
        let mut qemu = peer.accept().await;
        has_it(&mut qemu, &[]).await;
        gives_up_the_old(&mut qemu, &[]).await;
        qemu.answers("device_add", add_nvme("v"), json!({})).await;
        qemu.answers("query-pci", Value::Null, pci(&[("v", true)]))
            .await;
        qemu.sees_the_end().await;
    };
    let (plugged, ()) = tokio::join!(machine.plug(&nvme, in_time()), qemu);
    assert_eq!(plugged, Ok(()));
}

#[tokio::test]
async fn what_the_machine_has_lost_is_plugged_again_and_what_it_has_is_left_alone() {
    let mut peer = Peer::new();
    let machine = peer.machine();
    let nvme = device(&machine, Model::Nvme, "n");
    let has_it = async {
        let mut qemu = peer.accept().await;
        qemu.answers("query-pci", Value::Null, pci(&[("n", false)]))
            .await;
        qemu.sees_the_end().await;
    };
    let (renewed, ()) = tokio::join!(machine.renew(&nvme, in_time()), has_it);
    assert_eq!(renewed, Ok(()));

    peer.restart();
    let has_lost_it = async {
        let mut qemu = peer.accept().await;
        qemu.answers("query-pci", Value::Null, pci(&[])).await;
        qemu.has_nothing().await;
        qemu.answers("device_add", add_nvme("n"), json!({})).await;
        qemu.answers("query-pci", Value::Null, pci(&[("n", true)]))
            .await;
        qemu.sees_the_end().await;
    };
    let (renewed, ()) = tokio::join!(machine.renew(&nvme, in_time()), has_lost_it);
    assert_eq!(renewed, Ok(()));

    peer.end();
    let renewed = machine.renew(&nvme, in_time()).await;
    assert!(matches!(renewed, Err(Error::Unavailable(_))), "{renewed:?}");
}

#[tokio::test]
async fn an_nvme_controller_that_is_connected_and_in_its_place_is_left_alone() {
    for (major, minor) in [(10, 1), (11, 1)] {
        let peer = Peer::new();
        let machine = peer.machine();
        let dir = tempfile::tempdir().expect("a directory");
        let mut nvme = device(&machine, Model::Nvme, "v");
        nvme.socket = dir.path().join("cntrl");
        let listener = std::os::unix::net::UnixListener::bind(&nvme.socket).expect("a socket");
        let client = std::os::unix::net::UnixStream::connect(&nvme.socket).expect("a client");
        let qemu = async {
            let mut qemu = peer.accept_as(major, minor).await;
            has_it(&mut qemu, &[]).await;
            is_at(&mut qemu, "pci.b", 2).await;
            qemu.sees_the_end().await;
        };
        let (plugged, ()) = tokio::join!(machine.plug(&nvme, in_time()), qemu);
        assert_eq!(plugged, Ok(()));
        drop((client, listener));
    }
}

#[tokio::test]
async fn an_nvme_controller_of_an_earlier_life_stays_in_a_qemu_that_would_end_of_its_removal() {
    let peer = Peer::new();
    let machine = peer.machine();
    let nvme = device(&machine, Model::Nvme, "v");
    let qemu = async {
        let mut qemu = peer.accept_as(11, 1).await;
        has_it(&mut qemu, &[]).await;
        qemu.answers("query-pci", Value::Null, pci(&[("v", true)]))
            .await;
        qemu.sees_the_end().await;
    };
    let (plugged, ()) = tokio::join!(machine.plug(&nvme, in_time()), qemu);
    let Err(Error::FailedPrecondition { message, .. }) = plugged else {
        panic!("{plugged:?}")
    };
    assert!(message.contains("QEMU 11.1 aborts"), "{message}");
}
