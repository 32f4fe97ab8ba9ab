//! Plugging: each command, and the rollback when one fails.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::peer::{Monitor, Peer, chardevs, device, in_time, pci};
use crate::error::Error;
use crate::kvm::Model;

#[test]
fn functions_fill_one_bus_after_the_other() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    let machine = Peer::new().machine();
    let shown = |function| format!("{:?}", machine.place(function).expect("a place"));
    assert_eq!(shown(0), "Place { bus: \"pci.a\", slot: 0 }");
    assert_eq!(shown(31), "Place { bus: \"pci.a\", slot: 31 }");
    assert_eq!(shown(32), "Place { bus: \"pci.b\", slot: 0 }");
    assert_eq!(shown(63), "Place { bus: \"pci.b\", slot: 31 }");
    let error = machine.place(64).expect_err("two buses");
    assert_eq!(
        error,
        "64 has no place in the machine: its buses (pci.a, pci.b) take 0 to 63"
    );
    assert!(machine.place(-1).is_err() && machine.place(i32::MAX).is_err());
}

pub(super) fn add_nvme(id: &str) -> Value {
    let socket = json!({ "type": "unix", "path": "/run/opi/s" });
    json!({ "driver": "vfio-user-pci", "id": id, "bus": "pci.b", "addr": "0x2", "socket": socket })
}

fn add_virtio(driver: &str, id: &str) -> Value {
    json!({ "driver": driver, "id": id, "bus": "pci.b", "addr": "0x2", "chardev": id })
}

/// `reconnect` is the setting of the QEMU version, and its value.
fn add_chardev(id: &str, (reconnect, time): (&str, u32)) -> Value {
    let address = json!({ "type": "unix", "data": { "path": "/run/opi/s" } });
    let data = json!({ "addr": address, "server": false, reconnect: time });
    json!({ "id": id, "backend": { "type": "socket", "data": data } })
}

/// Accepts a vhost-user device `v` whose chardev goes through these states, and which a guest driver takes
/// immediately.
pub(super) async fn takes_vhost(
    qemu: &mut Monitor,
    driver: &str,
    reconnect: (&str, u32),
    states: &[&str],
) {
    qemu.answers("chardev-add", add_chardev("v", reconnect), json!({}))
        .await;
    for filename in states {
        qemu.answers("query-chardev", Value::Null, chardevs(&[("v", filename)]))
            .await;
    }
    qemu.answers("device_add", add_virtio(driver, "v"), json!({}))
        .await;
    qemu.answers("query-pci", Value::Null, pci(&[("v", true)]))
        .await;
}

#[tokio::test]
async fn an_nvme_controller_is_one_command_and_the_guests_driver() {
    let peer = Peer::new();
    let machine = peer.machine();
    let nvme = device(&machine, Model::Nvme, "n1");
    let qemu = async {
        let mut qemu = peer.accept_as(11, 1).await;
        qemu.has_nothing().await;
        qemu.answers("device_add", add_nvme("n1"), json!({})).await;
        for taken in [false, true] {
            qemu.answers(
                "query-pci",
                Value::Null,
                pci(&[("n0", true), ("n1", taken)]),
            )
            .await;
            if !taken {
                qemu.answers(
                    "query-status",
                    Value::Null,
                    json!({ "running": true, "status": "running" }),
                )
                .await;
            }
        }
        qemu.sees_the_end().await;
    };
    let (plugged, ()) = tokio::join!(machine.plug(&nvme, in_time()), qemu);
    assert_eq!(plugged, Ok(()));
}

#[tokio::test]
async fn a_vhost_user_device_is_plugged_when_its_chardev_is_connected() {
    for (model, driver, version, reconnect) in [
        (
            Model::VirtioBlk,
            "vhost-user-blk-pci",
            (7, 2),
            ("reconnect", 1),
        ),
        (
            Model::VirtioScsi,
            "vhost-user-scsi-pci",
            (11, 1),
            ("reconnect-ms", 1000),
        ),
    ] {
        let peer = Peer::new();
        let machine = peer.machine();
        let vhost = device(&machine, model, "v");
        let qemu = async {
            let mut qemu = peer.accept_as(version.0, version.1).await;
            qemu.has_nothing().await;
            let states = ["disconnected:unix:/run/opi/s", "unix:"];
            takes_vhost(&mut qemu, driver, reconnect, &states).await;
            qemu.sees_the_end().await;
        };
        let (plugged, ()) = tokio::join!(machine.plug(&vhost, in_time()), qemu);
        assert_eq!(plugged, Ok(()));
    }
}

#[tokio::test]
async fn what_qemu_refuses_is_undone_and_told_in_its_words() {
    let peer = Peer::new();
    let machine = peer.machine();
    let blk = device(&machine, Model::VirtioBlk, "v");
    let qemu = async {
        let mut qemu = peer.accept().await;
        qemu.has_nothing().await;
        qemu.answers("chardev-add", add_chardev("v", ("reconnect", 1)), json!({}))
            .await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[("v", "unix:")]))
            .await;
        let add = add_virtio("vhost-user-blk-pci", "v");
        qemu.refuses("device_add", add, "GenericError", "Bus 'pci.b' not found")
            .await;
        qemu.refuses(
            "device_del",
            json!({ "id": "v" }),
            "DeviceNotFound",
            "Device 'v' not found",
        )
        .await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[("v", "unix:")]))
            .await;
        qemu.answers("chardev-remove", json!({ "id": "v" }), json!({}))
            .await;
        qemu.sees_the_end().await;
    };
    let (plugged, ()) = tokio::join!(machine.plug(&blk, in_time()), qemu);
    let message = "cannot plug the device v: QEMU refused device_add: Bus 'pci.b' not found";
    assert_eq!(plugged, Err(Error::failed_precondition("v", message)));
}

#[tokio::test]
async fn a_chardev_that_does_not_connect_is_removed_at_the_deadline() {
    let peer = Peer::new();
    let machine = peer.machine();
    let blk = device(&machine, Model::VirtioBlk, "v");
    let late = async {
        let deadline = Instant::now() + Duration::from_millis(200);
        machine.plug(&blk, deadline).await
    };
    let qemu = async {
        let mut qemu = peer.accept().await;
        qemu.has_nothing().await;
        qemu.answers("chardev-add", add_chardev("v", ("reconnect", 1)), json!({}))
            .await;
        let trying = chardevs(&[("v", "disconnected:unix:/run/opi/s,reconnect=1")]);
        while qemu.reads_next().await.as_deref() == Some("query-chardev") {
            qemu.answers_last(trying.clone()).await;
        }
        // The command was device_del.
        qemu.refuses_last("DeviceNotFound", "Device 'v' not found")
            .await;
        qemu.answers("query-chardev", Value::Null, trying).await;
        qemu.answers("chardev-remove", json!({ "id": "v" }), json!({}))
            .await;
        qemu.sees_the_end().await;
    };
    let (plugged, ()) = tokio::join!(late, qemu);
    let Err(Error::DeadlineExceeded(message)) = plugged else {
        panic!("{plugged:?}")
    };
    assert!(
        message.contains("did not connect to the controller's socket"),
        "{message}"
    );
}

#[tokio::test]
async fn a_guest_that_takes_its_time_keeps_the_device_and_the_caller_gets_an_answer() {
    let peer = Peer::new();
    let machine = peer.machine();
    let nvme = device(&machine, Model::Nvme, "n");
    let plug = async {
        let begin = Instant::now();
        let plugged = machine
            .plug(&nvme, begin + Duration::from_millis(400))
            .await;
        (plugged, begin.elapsed())
    };
    let qemu = async {
        let mut qemu = peer.accept().await;
        qemu.has_nothing().await;
        qemu.answers("device_add", add_nvme("n"), json!({})).await;
        while qemu.reads_next().await.as_deref() == Some("query-pci") {
            qemu.answers_last(pci(&[("n", false)])).await;
            qemu.answers("query-status", Value::Null, json!({ "running": true }))
                .await;
        }
    };
    let ((plugged, took), ()) = tokio::join!(plug, qemu);
    assert_eq!(plugged, Ok(()));
    assert!(took < Duration::from_millis(400), "{took:?}");
}

#[tokio::test]
async fn a_machine_that_does_not_run_is_not_waited_for() {
    let peer = Peer::new();
    let machine = peer.machine();
    let nvme = device(&machine, Model::Nvme, "n");
    let qemu = async {
        let mut qemu = peer.accept().await;
        qemu.has_nothing().await;
        qemu.answers("device_add", add_nvme("n"), json!({})).await;
        qemu.answers("query-pci", Value::Null, pci(&[("n", false)]))
            .await;
        qemu.answers(
            "query-status",
            Value::Null,
            json!({ "running": false, "status": "prelaunch" }),
        )
        .await;
        qemu.sees_the_end().await;
    };
    let (plugged, ()) = tokio::join!(machine.plug(&nvme, in_time()), qemu);
    assert_eq!(plugged, Ok(()));
}

#[tokio::test]
async fn a_lost_answer_is_undone_over_a_new_connection() {
    let peer = Peer::new();
    let machine = peer.machine();
    let nvme = device(&machine, Model::Nvme, "n");
    let qemu = async {
        let mut qemu = peer.accept().await;
        qemu.has_nothing().await;
        qemu.expects("device_add", add_nvme("n")).await;
        drop(qemu);
        let mut qemu = peer.accept().await;
        qemu.answers("device_del", json!({ "id": "n" }), json!({}))
            .await;
        qemu.tells(
            "DEVICE_DELETED",
            json!({ "device": "n", "path": "/machine/peripheral/n" }),
        )
        .await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[]))
            .await;
        qemu.sees_the_end().await;
    };
    let (plugged, ()) = tokio::join!(machine.plug(&nvme, in_time()), qemu);
    let Err(Error::Unavailable(message)) = plugged else {
        panic!("{plugged:?}")
    };
    assert!(message.contains("closed the connection"), "{message}");
}

#[tokio::test]
async fn a_qemu_that_dies_of_a_plug_leaves_nothing_to_undo() {
    let mut peer = Peer::new();
    let machine = peer.machine();
    let nvme = device(&machine, Model::Nvme, "n");
    let qemu = async {
        let mut qemu = peer.accept().await;
        qemu.has_nothing().await;
        qemu.expects("device_add", add_nvme("n")).await;
        peer.end();
    };
    let (plugged, ()) = tokio::join!(machine.plug(&nvme, in_time()), qemu);
    assert!(matches!(plugged, Err(Error::Unavailable(_))), "{plugged:?}");
    let again = machine.plug(&nvme, in_time()).await;
    let Err(Error::Unavailable(message)) = again else {
        panic!("{again:?}")
    };
    assert!(message.contains("QEMU does not run"), "{message}");
}
