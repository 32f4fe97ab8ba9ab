//! Descriptor-driven negative tests: every field of every request, including nested messages, is set to
//! every value of a table while the rest of the request stays valid.
//!
//! Invariants: each call succeeds or fails in time with a client error that names the field; a failed
//! request changes nothing; at the end the objects in SPDK are those of the API. New fields and methods
//! are covered automatically.

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
async fn every_value_of_every_field_succeeds_or_fails_cleanly() {
    let dir = std::sync::Arc::new(tempfile::tempdir().expect("a directory"));
    let options = Options::hugepages().in_dir(std::sync::Arc::clone(&dir));
    let socket = dir.path().join("rpc.sock");
    let target = options.args(["--spdk-rpc-socket", &socket.display().to_string()]);
    let target = Target::start_with(target).await;
    let mut trial = Trial::default();
    for kind in IMPLEMENTED {
        // A peer needs a core of its own: start one only for the kind that attaches to a subsystem.
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
        assert!(client.is_serving().await, "{}: not SERVING", kind.message);
        let with = State::of_api(client).await;
        assert_eq!(State::of_spdk(&socket).await, with, "{}", kind.message);
        place.clean().await;
        let left = State::of_spdk(&socket).await;
        assert_eq!(
            left,
            State::default(),
            "{}: objects left in SPDK",
            kind.message
        );
    }
    let client = target.client().await;
    assert_eq!(State::of_api(&client).await, State::default());
    let log = target.log();
    assert!(!log.contains("panicked"), "{log}");
    trial.finish();
    target.stop();
}
