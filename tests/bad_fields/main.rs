//! Bad input, from the descriptors: each field of each request of the API, those of the messages in it
//! too, is tried with each value of a table, while all else in the request is good. The answer is a
//! success or says, in time, what of the request is wrong; a refused request changes nothing, and in
//! the end SPDK's own lists are those of the API. A field or a method that is new is tried by being
//! there.

#[path = "../common/mod.rs"]
mod common;
mod field;
mod requests;
mod state;
mod values;

use common::kinds::{IMPLEMENTED, Lab, Place};
use common::{Options, Target};
use requests::Trial;
use state::State;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_value_of_any_field_of_any_request_does_harm() {
    let dir = std::sync::Arc::new(tempfile::tempdir().expect("a directory"));
    let options = Options::hugepages().in_dir(std::sync::Arc::clone(&dir));
    let socket = dir.path().join("rpc.sock");
    let target = options.args(["--spdk-rpc-socket", &socket.display().to_string()]);
    let target = Target::start_with(target).await;
    let mut trial = Trial::default();
    for kind in IMPLEMENTED {
        // It takes a core: only where there is something to attach.
        let peer = match kind.message {
            "NvmePath" => Some(Target::start_with(Options::default().beside(&target)).await),
            _ => None,
        };
        let lab = Lab {
            target: target.grpc,
            peer: peer.as_ref().unwrap_or(&target).grpc,
            dir: target.scratch().to_owned(),
        };
        let place = Place::new(lab, kind, &kind.message.to_lowercase()).await;
        trial.of_kind(&place).await;
        let client = &place.resource.client;
        assert!(client.is_serving().await, "{}: it serves", kind.message);
        let with = State::of_api(client).await;
        assert_eq!(State::of_spdk(&socket).await, with, "{}", kind.message);
        place.clean().await;
        let left = State::of_spdk(&socket).await;
        assert_eq!(left, State::default(), "{} left it", kind.message);
    }
    let client = target.client().await;
    assert_eq!(State::of_api(&client).await, State::default());
    let log = target.log();
    assert!(!log.contains("panicked"), "{log}");
    trial.finish();
    target.stop();
}
