//! The connection: how it is shared, and what ends it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::peer::{Peer, bounded, chardevs, device, in_time, pci};
use crate::error::Error;
use crate::kvm::{Machine, Model};

#[tokio::test]
async fn operations_side_by_side_share_a_connection_and_each_gets_its_own_answer() {
    let peer = Peer::new();
    let machine = peer.machine();
    let qemu = async {
        let mut qemu = peer.accept().await;
        let commands =
            [qemu.next().await, qemu.next().await].map(|command| command.expect("two commands"));
        // Answers in reverse order.
        for command in commands.iter().rev() {
            let id = command["id"].as_u64();
            match &command["arguments"]["id"] {
                device if device == "a" => {
                    qemu.refuses_id(id, "DeviceNotFound", "Device 'a' not found")
                        .await
                }
                _ => qemu.refuses_id(id, "GenericError", "no hotplug").await,
            }
        }
        qemu.answers("query-chardev", Value::Null, chardevs(&[]))
            .await;
        qemu.sees_the_end().await;
    };
    let (a, b, ()) = tokio::join!(
        machine.unplug("a", Model::VirtioBlk, in_time()),
        machine.unplug("b", Model::VirtioBlk, in_time()),
        qemu
    );
    assert_eq!(a, Ok(()));
    assert!(matches!(b, Err(Error::FailedPrecondition { .. })), "{b:?}");
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_not_taken_for_another() {
    let peer = Peer::new();
    let machine = peer.machine();
    let (both_sent, go) = tokio::sync::oneshot::channel();
    let qemu = async {
        let mut qemu = peer.accept().await;
        qemu.expects("device_del", json!({ "id": "late" })).await;
        both_sent.send(()).expect("the other waits");
        qemu.expects("device_del", json!({ "id": "patient" })).await;
        qemu
    };
    let late = machine.unplug(
        "late",
        Model::VirtioBlk,
        Instant::now() + Duration::from_millis(200),
    );
    let patient = async {
        go.await.expect("the first is sent");
        machine.unplug("patient", Model::VirtioBlk, in_time()).await
    };
    let answering = async {
        let (mut qemu, late) = tokio::join!(qemu, late);
        assert!(matches!(late, Err(Error::DeadlineExceeded(_))), "{late:?}");
        qemu.refuses_id(Some(2), "GenericError", "too late").await;
        qemu.refuses_id(Some(3), "DeviceNotFound", "Device 'patient' not found")
            .await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[]))
            .await;
        qemu.sees_the_end().await;
    };
    let (patient, ()) = tokio::join!(patient, answering);
    assert_eq!(patient, Ok(()));
}

#[tokio::test]
async fn a_monitor_that_serves_another_client_is_waited_for_until_the_deadline() {
    let peer = Peer::new();
    let machine = peer.machine();
    let nvme = device(&machine, Model::Nvme, "n");
    let plugged = machine
        .plug(&nvme, Instant::now() + Duration::from_millis(100))
        .await;
    let Err(Error::DeadlineExceeded(message)) = plugged else {
        panic!("{plugged:?}")
    };
    assert!(
        message.contains("did not greet (has it another client?"),
        "{message}"
    );
}

/// Plugs into a QEMU whose monitor sends `greeting` and then, to the first query, `line`.
async fn plug_into(greeting: Option<&str>, line: &str) -> String {
    let peer = Peer::new();
    let machine = peer.machine();
    let nvme = device(&machine, Model::Nvme, "n");
    let qemu = async {
        let qemu = match greeting {
            Some(greeting) => {
                let mut qemu = peer.accept_silently().await;
                qemu.says(greeting).await;
                qemu
            }
            None => {
                let mut qemu = peer.accept().await;
                qemu.expects("query-pci", Value::Null).await;
                // The client may have read enough and closed the connection.
                let _ = qemu.tries_to_say(line).await;
                qemu
            }
        };
        qemu.sees_the_end().await;
    };
    let (plugged, ()) = tokio::join!(machine.plug(&nvme, in_time()), qemu);
    match plugged {
        Err(Error::Unavailable(message)) => message,
        other => panic!("{greeting:?} {line:?}: {other:?}"),
    }
}

#[tokio::test]
async fn what_is_not_qmp_ends_the_connection_and_is_shown() {
    for greeting in [
        "SSH-2.0-OpenSSH_9.2",
        "{}",
        r#"{"QMP": {"version": {}}}"#,
        "",
    ] {
        let message = plug_into(Some(greeting), "").await;
        assert!(
            message.contains(&format!("it sent {greeting:?}, which is not QMP")),
            "{message}"
        );
    }
    for line in [
        "?",
        r#"{"return": {}}"#,
        r#"{"return": [], "id": 99}"#,
        r#"{"error": {"class": "E", "desc": "d"}}"#,
    ] {
        let message = plug_into(None, line).await;
        assert!(
            message.contains("lost the connection to QEMU's monitor"),
            "{line}: {message}"
        );
    }
    let message = plug_into(None, &"x".repeat(17 << 20)).await;
    assert!(message.contains("max line length"), "{message}");
}

#[tokio::test]
async fn an_answer_of_another_form_is_a_fault_that_names_the_command() {
    let peer = Peer::new();
    let machine = peer.machine();
    let nvme = device(&machine, Model::Nvme, "n");
    let qemu = async {
        let mut qemu = peer.accept().await;
        qemu.answers("query-pci", Value::Null, json!({ "devices": 1 }))
            .await;
        qemu.sees_the_end().await;
    };
    let (plugged, ()) = tokio::join!(machine.plug(&nvme, in_time()), qemu);
    let Err(Error::Internal { message, .. }) = plugged else {
        panic!("{plugged:?}")
    };
    assert!(
        message.starts_with("QEMU's answer to query-pci"),
        "{message}"
    );
}

#[tokio::test]
async fn a_monitor_on_tcp_is_the_same() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("a port").to_string();
    let machine = Machine::new(
        address.parse().expect("an address"),
        vec!["pci.a".to_owned()],
        false,
    );
    let qemu = async {
        let (stream, _) = bounded("a connection", listener.accept())
            .await
            .expect("a connection");
        let mut qemu = super::peer::Monitor::on(stream);
        qemu.greets(7, 2).await;
        qemu.refuses("device_del", json!({ "id": "d" }), "DeviceNotFound", "no")
            .await;
        qemu.answers("query-chardev", Value::Null, chardevs(&[]))
            .await;
        qemu.sees_the_end().await;
    };
    let (unplugged, ()) = tokio::join!(machine.unplug("d", Model::VirtioBlk, in_time()), qemu);
    assert_eq!(unplugged, Ok(()));
    drop(listener);
    assert_eq!(
        machine.unplug("d", Model::VirtioBlk, in_time()).await,
        Ok(())
    );
}

#[tokio::test]
async fn each_time_has_a_connection_of_its_own() {
    let mut peer = Peer::new();
    let machine = peer.machine();
    for _ in 0..2 {
        let nvme = device(&machine, Model::Nvme, "n");
        let qemu = async {
            let mut qemu = peer.accept().await;
            qemu.answers("query-pci", Value::Null, pci(&[])).await;
            qemu.answers("query-chardev", Value::Null, chardevs(&[]))
                .await;
            assert_eq!(qemu.reads_next().await.as_deref(), Some("device_add"));
            qemu.answers_last(json!({})).await;
            qemu.answers("query-pci", Value::Null, pci(&[("n", true)]))
                .await;
            qemu.sees_the_end().await;
        };
        let (plugged, ()) = tokio::join!(machine.plug(&nvme, in_time()), qemu);
        assert_eq!(plugged, Ok(()));
        peer.restart();
    }
}
