//! Messages of TLS after the handshake: a host may change its keys, and may not keep the reactor busy with it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::identity::secure;
use crate::common::nvme_tcp::{Bystander, Digests, Pdu, kind};
use crate::common::{HOST, KeyLog, Options, PSK, Psk, Target};

/// Timeout of what the target does at once.
const SOON: Duration = Duration::from_secs(5);

/// Updates of the key before each byte of data.
const FEW: usize = 8;

/// Updates of the key without data: above `OPI_TLS_MESSAGES_MAX`, and fewer than the kernel buffers.
const MANY: usize = 2_000;

#[tokio::test(flavor = "multi_thread")]
async fn updates_of_a_key_come_with_data_or_end_the_connection() {
    let mut target = Target::start_with(Options::default().alone()).await;
    let mut bystander = Bystander::new(&target).await;
    let identity = secure(&target, "flood", HOST, PSK).await;
    let key = Psk::new(PSK, &identity.hostnqn, &identity.subnqn);
    let log = KeyLog::default();
    let setup = key.setup_with(log.writer()).expect("a setup");
    let stream = TcpStream::connect(identity.address).expect("the port takes connections");
    stream.set_read_timeout(Some(SOON)).expect("it is ours");
    let mut raw = stream.try_clone().expect("a handle");
    let mut tls = setup.connect("", stream).expect("its own key");
    let mut records = log.client();

    let mut bytes = Vec::new();
    for byte in Pdu::ic_req(Digests::OFF).bytes(Digests::OFF) {
        for _ in 0..FEW {
            bytes.extend(records.key_update());
        }
        bytes.extend(records.data(&[byte]));
    }
    raw.write_all(&bytes).expect("it goes");
    let mut answer = [0; 128];
    tls.read_exact(&mut answer).expect("ICResp");
    assert_eq!(answer[0], kind::IC_RESP);

    let flood: Vec<u8> = (0..MANY).flat_map(|_| records.key_update()).collect();
    // The target may close the connection before it has taken them all.
    let _ = raw.write_all(&flood);
    let end = raw.read_to_end(&mut Vec::new());
    let open = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!open, "the connection stays open");
    bystander.unharmed(&mut target, "updates of a key").await;
}
