//! A peer that has the key and sends messages of TLS without end.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;

use openssl::ssl::{SslAcceptor, SslMethod, SslOptions};
use serde_json::json;
use tonic::Code;

use super::session::{END, Session};
use crate::common::{HOST, KeyLog, Psk, base64, name_of, nqn_of, psk_of, tcp_path};

/// Updates of the key, without data.
const MANY: usize = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_updates_its_key_without_end_is_left() {
    let session = Session::start().await;
    let subnqn = nqn_of("peer-of-updates");
    let key = Psk::new(&psk_of(7), HOST, &subnqn).key;
    let log = KeyLog::default();
    let mut acceptor = SslAcceptor::mozilla_modern_v5(SslMethod::tls_server()).expect("TLS 1.3");
    acceptor
        .set_ciphersuites("TLS_AES_128_GCM_SHA256")
        .expect("the cipher of the key");
    acceptor.set_options(SslOptions::NO_TICKET);
    acceptor.set_num_tickets(0).expect("none");
    acceptor.set_keylog_callback({
        let write = log.writer();
        move |_, line| write(line)
    });
    acceptor.set_psk_server_callback(move |_, _, secret| {
        secret[..key.len()].copy_from_slice(&key);
        Ok(key.len())
    });
    let acceptor = acceptor.build();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let serving = std::thread::spawn(move || {
        // A connection on which nothing is said only tries whether the peer listens.
        let stream = loop {
            let (stream, _) = listener.accept().expect("a connection");
            stream.set_read_timeout(Some(END)).expect("a limit");
            if stream.peek(&mut [0]).expect("in time") > 0 {
                break stream;
            }
        };
        let mut raw = stream.try_clone().expect("a handle");
        let tls = acceptor.accept(stream).expect("its own key");
        let mut records = log.server();
        let flood: Vec<u8> = (0..MANY).flat_map(|_| records.key_update()).collect();
        let _ = raw.write_all(&flood);
        let end = raw.read_to_end(&mut Vec::new());
        drop(tls);
        end.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    });

    let object =
        json!({ "multipath": "NVME_MULTIPATH_DISABLE", "tcp": { "psk": base64(psk_of(7)) } });
    let controllers = session.of("NvmeRemoteController");
    let controller = name_of(&controllers.created("", "updates", object).await);
    let mut path = tcp_path(port, &subnqn);
    path["fabrics"]["hostnqn"] = HOST.into();
    let status = session.of("NvmePath").create(&controller, "p", path).await;
    let status = status.expect_err("it says nothing of NVMe");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let open = serving.join().expect("no panic");
    assert!(!open, "the connection stays open");
    controllers.deleted(&controller).await;
    session.target.stop();
}
