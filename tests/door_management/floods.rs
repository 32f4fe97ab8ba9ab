//! What a client of HTTP/2 may make the server write into its log.

use std::io::{Read, Write};

use serde_json::json;

use crate::common::Target;
use crate::{ANSWER, dial};

/// HEADERS of a stream that ends with them (RFC 9113, 6.2), and its RST_STREAM (6.4).
fn opened_and_reset(stream: u32) -> Vec<u8> {
    // From HPACK's static table: POST, http, /; the name of the authority, with a value of one byte.
    let block = [0x83, 0x86, 0x84, 0x41, 1, b'x'];
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("short");
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    };
    // END_STREAM and END_HEADERS; CANCEL.
    [frame(1, 5, &block), frame(3, 0, &8_u32.to_be_bytes())].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rapid_resets_end_their_connection_and_are_a_few_lines_of_the_log() {
    const ATTACKS: usize = 60;
    let target = Target::start().await;
    let mut attack = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS without any.
    attack.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    attack.extend((0..2000).flat_map(|n| opened_and_reset(2 * n + 1)));
    for _ in 0..ATTACKS {
        let mut stream = dial(target.grpc, ANSWER);
        // The server closes in the middle.
        let _ = stream.write_all(&attack);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    let client = target.client().await;
    client.ok("ListNullVolumes", json!({})).await;
    let log = target.log();
    let lines = log
        .lines()
        .filter(|line| line.contains(" WARN ") || line.contains("ERROR"));
    let lines: Vec<&str> = lines.collect();
    assert!(
        (1..ATTACKS / 4).contains(&lines.len()),
        "{} lines:\n{log}",
        lines.len()
    );
    target.stop();
}
