//! Unplugging: all answers of a guest, and a QEMU that ends before the answer.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::peer::{Monitor, Peer, chardevs, in_time, pci};
use crate::error::Error;
use crate::kvm::Model;

/// Accepts the unplug request; the guest's answer follows later.
async fn agrees(qemu: &mut Monitor) {
    qemu.answers("device_del", json!({ "id": "d" }), json!({}))
        .await;
}

#[tokio::test]
async fn the_chardev_goes_after_the_guest_has_given_up_the_very_device() {
    let peer = Peer::new();
    let machine = peer.machine();
    let qemu = async {
        let mut qemu = peer.accept().await;
        agrees(&mut qemu).await;
        qemu.tells("RESUME", Value::Null).await;
        qemu.tells("DEVICE_DELETED", json!({ "device": "other" }))
            .await;
        qemu.tells(
            "DEVICE_UNPLUG_GUEST_ERROR",
            json!({ "device": "other", "path": "/x" }),
        )
        .await;
        qemu.tells(
            "DEVICE_DELETED",
            json!({ "path": "/machine/peripheral/d/virtio-backend" }),
        )
        .await;
        qemu.tells(
            "DEVICE_DELETED",
            json!({ "device": "d", "path": "/machine/peripheral/d" }),
        )
        .await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[("d", "unix:")]))
            .await;
        qemu.answers("chardev-remove", json!({ "id": "d" }), json!({}))
            .await;
        qemu.sees_the_end().await;
    };
    let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::VirtioBlk, in_time()), qemu);
    assert_eq!(unplugged, Ok(()));
}

#[tokio::test]
async fn an_event_that_overtakes_the_answer_counts() {
    let peer = Peer::new();
    let machine = peer.machine();
    let qemu = async {
        let mut qemu = peer.accept().await;
        qemu.expects("device_del", json!({ "id": "d" })).await;
        qemu.tells("DEVICE_DELETED", json!({ "device": "d" })).await;
        qemu.answers_last(json!({})).await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[]))
            .await;
        qemu.sees_the_end().await;
    };
    let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::VirtioBlk, in_time()), qemu);
    assert_eq!(unplugged, Ok(()));
}

#[tokio::test]
async fn a_guest_that_refuses_keeps_the_device_and_its_chardev() {
    let peer = Peer::new();
    let machine = peer.machine();
    let qemu = async {
        let mut qemu = peer.accept().await;
        agrees(&mut qemu).await;
        qemu.tells(
            "DEVICE_UNPLUG_GUEST_ERROR",
            json!({ "device": "d", "path": "/p" }),
        )
        .await;
        qemu.sees_the_end().await;
    };
    let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::VirtioBlk, in_time()), qemu);
    let Err(Error::FailedPrecondition { subject, message }) = unplugged else {
        panic!("{unplugged:?}")
    };
    assert_eq!(subject, "d");
    assert!(message.contains("the guest refuses"), "{message}");
}

#[tokio::test]
async fn a_guest_that_is_silent_is_waited_for_again_by_the_next_call() {
    let peer = Peer::new();
    let machine = peer.machine();
    let qemu = async {
        let mut qemu = peer.accept().await;
        agrees(&mut qemu).await;
        qemu.sees_the_end().await;
    };
    let deadline = Instant::now() + Duration::from_millis(200);
    let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::VirtioBlk, deadline), qemu);
    let Err(Error::DeadlineExceeded(message)) = unplugged else {
        panic!("{unplugged:?}")
    };
    assert_eq!(
        message,
        "cannot unplug the device d: the guest did not give the device up in time"
    );

    let qemu = async {
        let mut qemu = peer.accept().await;
        let under_way = "Device d is already in the process of unplug";
        qemu.refuses(
            "device_del",
            json!({ "id": "d" }),
            "GenericError",
            under_way,
        )
        .await;
        qemu.tells("DEVICE_DELETED", json!({ "device": "d" })).await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[]))
            .await;
        qemu.sees_the_end().await;
    };
    let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::VirtioBlk, in_time()), qemu);
    assert_eq!(unplugged, Ok(()));
}

#[tokio::test]
async fn a_device_that_is_not_there_leaves_its_chardev_to_remove() {
    let peer = Peer::new();
    let machine = peer.machine();
    let qemu = async {
        let mut qemu = peer.accept().await;
        qemu.refuses(
            "device_del",
            json!({ "id": "d" }),
            "DeviceNotFound",
            "Device 'd' not found",
        )
        .await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[("d", "unix:")]))
            .await;
        qemu.answers("chardev-remove", json!({ "id": "d" }), json!({}))
            .await;
        qemu.sees_the_end().await;
    };
    let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::VirtioBlk, in_time()), qemu);
    assert_eq!(unplugged, Ok(()));
}

#[tokio::test]
async fn a_bus_that_cannot_be_unplugged_from_is_told_in_qemus_words() {
    let peer = Peer::new();
    let machine = peer.machine();
    let words = "Bus 'pcie.0' does not support hotplugging";
    let qemu = async {
        let mut qemu = peer.accept().await;
        qemu.refuses("device_del", json!({ "id": "d" }), "GenericError", words)
            .await;
        qemu.sees_the_end().await;
    };
    let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::VirtioBlk, in_time()), qemu);
    let Err(Error::FailedPrecondition { message, .. }) = unplugged else {
        panic!("{unplugged:?}")
    };
    assert!(message.ends_with(words), "{message}");
}

#[tokio::test]
async fn a_qemu_that_dies_of_an_unplug_has_the_device_no_more() {
    let mut peer = Peer::new();
    let machine = peer.machine();
    let qemu = async {
        let qemu = &mut peer.accept().await;
        agrees(qemu).await;
        peer.end();
    };
    let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::VirtioBlk, in_time()), qemu);
    assert_eq!(unplugged, Ok(()));
}

#[tokio::test]
async fn a_qemu_that_is_started_anew_meanwhile_is_asked_again() {
    let mut peer = Peer::new();
    let machine = peer.machine();
    let qemu = async {
        let mut qemu = peer.accept().await;
        agrees(&mut qemu).await;
        drop(qemu);
        // The crashing QEMU still accepts connections for a moment.
        drop(peer.accept_silently().await);
        peer.restart();
        let mut qemu = peer.accept().await;
        qemu.refuses(
            "device_del",
            json!({ "id": "d" }),
            "DeviceNotFound",
            "Device 'd' not found",
        )
        .await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[]))
            .await;
        qemu.sees_the_end().await;
    };
    let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::VirtioBlk, in_time()), qemu);
    assert_eq!(unplugged, Ok(()));
}

#[tokio::test]
async fn without_qemu_nothing_is_plugged() {
    let mut peer = Peer::new();
    let machine = peer.machine();
    peer.end();
    assert_eq!(
        machine.unplug("d", Model::VirtioBlk, in_time()).await,
        Ok(())
    );
    peer.remove_socket();
    assert_eq!(
        machine.unplug("d", Model::VirtioBlk, in_time()).await,
        Ok(())
    );
}

#[tokio::test]
async fn a_monitor_that_always_hangs_up_is_given_up() {
    let peer = Peer::new();
    let machine = peer.machine();
    let qemu = async {
        loop {
            drop(peer.accept_silently().await);
        }
    };
    let unplugged = tokio::select! {
        unplugged = machine.unplug("d", Model::VirtioBlk, in_time()) => unplugged,
        () = qemu => unreachable!(),
    };
    assert!(
        matches!(unplugged, Err(Error::Unavailable(_))),
        "{unplugged:?}"
    );
}

#[tokio::test]
async fn a_vfio_user_device_stays_in_a_qemu_that_would_end_of_its_removal() {
    let peer = Peer::new();
    let machine = peer.machine();
    let qemu = async {
        let mut qemu = peer.accept_as(11, 1).await;
        qemu.answers("query-pci", Value::Null, pci(&[("d", true)]))
            .await;
        // No device_del is sent.
        qemu.sees_the_end().await;
    };
    let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::Nvme, in_time()), qemu);
    let Err(Error::FailedPrecondition { subject, message }) = unplugged else {
        panic!("{unplugged:?}")
    };
    assert_eq!(subject, "d");
    assert!(message.contains("QEMU 11.1 aborts"), "{message}");
    assert!(message.contains("kvm-force-unplug"), "{message}");
}

#[tokio::test]
async fn a_vfio_user_device_is_unplugged_from_other_qemus_and_where_that_is_forced() {
    for (major, minor, force) in [(10, 1, false), (12, 0, false), (11, 1, true)] {
        let peer = Peer::new();
        let machine = peer.machine_that(force);
        let qemu = async {
            let mut qemu = peer.accept_as(major, minor).await;
            agrees(&mut qemu).await;
            qemu.tells("DEVICE_DELETED", json!({ "device": "d" })).await;
            qemu.answers("query-chardev", Value::Null, chardevs(&[]))
                .await;
            qemu.sees_the_end().await;
        };
        let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::Nvme, in_time()), qemu);
        assert_eq!(unplugged, Ok(()));
    }
}

#[tokio::test]
async fn a_vfio_user_device_that_is_not_there_ends_no_qemu() {
    let peer = Peer::new();
    let machine = peer.machine();
    let qemu = async {
        let mut qemu = peer.accept_as(11, 1).await;
        qemu.answers("query-pci", Value::Null, pci(&[])).await;
        qemu.refuses("device_del", json!({ "id": "d" }), "DeviceNotFound", "no")
            .await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[]))
            .await;
        qemu.sees_the_end().await;
    };
    let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::Nvme, in_time()), qemu);
    assert_eq!(unplugged, Ok(()));
}
