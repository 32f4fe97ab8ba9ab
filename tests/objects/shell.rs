//! The `opi-spdk events` and `opi-spdk watch` subcommands.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

use super::make;
use crate::common::Target;

/// A subcommand that runs until it is killed.
struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Running {
    fn start(target: &Target, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_opi-spdk"))
            .args(args)
            .args(["--addr", &target.grpc.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("text");
        assert!(!line.is_empty(), "the output has ended");
        line
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_and_events_print_objects_and_changes() {
    let target = Target::start().await;
    let client = target.client().await;
    make(&client, "a").await;
    let mut watch = Running::start(&target, &["watch", "nullVolumes/"]);
    assert!(watch.line().starts_with("NAME "));
    let row = watch.line();
    assert!(
        row.starts_with("nullVolumes/a ") && row.contains("applied"),
        "{row}"
    );
    make(&client, "b").await;
    let line = watch.line();
    assert!(
        line.contains("created") && line.contains("nullVolumes/b"),
        "{line}"
    );

    let mut events = Running::start(&target, &["events", "--json", "--after", "0"]);
    let event: Value = serde_json::from_str(&events.line()).expect("JSON");
    assert_eq!(event["object"], "nullVolumes/a");
    let mut late = Running::start(&target, &["events", "--after", "999999"]);
    let status = late.child.wait().expect("the command exits");
    assert_eq!(status.code(), Some(21), "OUT_OF_RANGE");
    // When the server stops, the commands exit with its status.
    target.stop();
    let status = watch.child.wait().expect("the command exits");
    assert_eq!(status.code(), Some(24), "UNAVAILABLE");
}
