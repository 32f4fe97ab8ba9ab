//! Reasons for which a path is refused.

use tonic::Code;

use super::session::Session;
use crate::common::nvme_tcp_peer::{NQN, Peer, Turn};
use crate::common::{
    Fixture, Options, Target, nqn_of, remote_controller, subsystem, tcp_path, unique,
};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_subsystem_and_a_host_that_is_not_admitted_are_told_apart() {
    let mut session = Session::start().await;
    let peer = Target::start_with(Options::default().beside(&session.target)).await;
    let export = Fixture::tcp(&peer, 4).await;
    let closed = subsystem(
        &export.client,
        &unique("closed"),
        json!({ "hostnqn": nqn_of("nobody") }),
    )
    .await;
    let nqn = nqn_of(closed.rsplit('/').next().expect("an ID"));
    let (_, port) = crate::common::tcp_controller(&export.client, &closed).await;
    for (what, path, reason) in [
        (
            "an unknown subsystem",
            tcp_path(export.port, &nqn_of("unknown")),
            "no subsystem of this NQN",
        ),
        (
            "a host that is not admitted",
            tcp_path(port, &nqn),
            "does not admit this host NQN",
        ),
    ] {
        let controller = remote_controller(&session.client, &unique("refused"), "DISABLE").await;
        let status = session
            .of("NvmePath")
            .refused(&controller, "path", path, Code::FailedPrecondition)
            .await;
        assert!(status.message().contains(reason), "{what}: {status}");
        session.ends("NvmeRemoteController", &controller).await;
    }
    session.unharmed("refusals").await;
    peer.stop();
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_of_connect_are_told_and_a_port_that_is_not_nvme_is() {
    let mut session = Session::start().await;
    for (status, code, reason) in [
        (
            (1, 0x82),
            Code::FailedPrecondition,
            "no subsystem of this NQN (sct 0x1, sc 0x82)",
        ),
        (
            (1, 0x84),
            Code::FailedPrecondition,
            "does not admit this host NQN (sct 0x1, sc 0x84)",
        ),
        ((0, 0x06), Code::FailedPrecondition, "sct 0x0, sc 0x6"),
        ((1, 0x81), Code::Unavailable, "busy"),
    ] {
        let peer = Peer::start();
        peer.script(move |ask| match ask.is_fabrics(1) {
            true => Turn::Fail(status.0, status.1),
            false => Turn::Right,
        });
        let Err(error) = session.attach(&peer).await else {
            panic!("{status:?}: it is attached");
        };
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(reason), "{error}");
    }
    let controller = remote_controller(&session.client, &unique("http"), "DISABLE").await;
    let path = tcp_path(session.target.http.port(), NQN);
    let refused = session
        .of("NvmePath")
        .create(&controller, "path", path)
        .await;
    let status = refused.expect_err("the HTTP port is not NVMe/TCP");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let said = status.message();
    assert!(said.contains("does not speak NVMe/TCP"), "{status}");
    session.ends("NvmeRemoteController", &controller).await;
    session.unharmed("refusals").await;
    session.target.stop();
}
