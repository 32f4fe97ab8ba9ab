//! Peers of a remote controller with a pre-shared key: they are spoken to over TLS, and have to hold the key.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod};
use openssl::x509::X509;
use serde_json::json;
use tonic::Code;

use super::session::{END, Session};
use crate::common::{Authority, HOST, Psk, base64, name_of, nqn_of, psk_of, tcp_path, unique};

/// Content type of a TLS record of the handshake (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;

/// Starts a peer with this behaviour on the first connection that is spoken on (one before it only tries whether the
/// peer listens); returns its port, and the result.
fn peer<T: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let serving = std::thread::spawn(move || {
        loop {
            let (stream, _) = listener.accept().expect("a connection");
            stream.set_read_timeout(Some(END)).expect("a limit");
            if stream.peek(&mut [0]).expect("in time") > 0 {
                drop(listener);
                return serve(stream);
            }
        }
    });
    (port, serving)
}

/// Attaches a remote controller with this key to the peer; the path must be refused as the peer is not the one.
async fn is_refused(session: &Session, port: u16, subnqn: &str, psk: &str) {
    let object = json!({ "multipath": "NVME_MULTIPATH_DISABLE", "tcp": { "psk": base64(psk) } });
    let controllers = session.of("NvmeRemoteController");
    let controller = name_of(&controllers.created("", &unique("tls"), object).await);
    let mut path = tcp_path(port, subnqn);
    path["fabrics"]["hostnqn"] = HOST.into();
    let status = session.of("NvmePath").create(&controller, "p", path).await;
    let status = status.expect_err("the peer has no key");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    controllers.deleted(&controller).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_derived_key_that_begins_with_a_zero_byte_is_a_key() {
    let session = Session::start().await;
    let subnqn = nqn_of("peer-of-a-key");
    let key = (0..=u8::MAX)
        .flat_map(|byte| (0..8).map(move |more| (byte, more)))
        .map(|(byte, more)| (psk_of(byte), format!("{subnqn}-{more}")))
        .find(|(psk, subnqn)| Psk::new(psk, HOST, subnqn).key[0] == 0);
    let (psk, subnqn) = key.expect("one key in 256 begins so");
    let (port, heard) = peer(|mut stream| {
        let mut first = [0];
        stream.read_exact(&mut first).map(|()| first[0])
    });
    is_refused(&session, port, &subnqn, &psk).await;
    let first = heard.join().expect("no panic");
    assert_eq!(
        first.expect("it speaks first"),
        HANDSHAKE,
        "not in the clear"
    );
    session.target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_a_certificate_in_place_of_the_key_is_refused_and_told_nothing() {
    let session = Session::start().await;
    let (certificate, key) = Authority::new().sign("127.0.0.1");
    let mut acceptor = SslAcceptor::mozilla_modern_v5(SslMethod::tls_server()).expect("TLS 1.3");
    let certificate = X509::from_pem(certificate.pem().as_bytes()).expect("a certificate");
    let key = PKey::private_key_from_pem(key.serialize_pem().as_bytes()).expect("a key");
    acceptor.set_certificate(&certificate).expect("it is set");
    acceptor.set_private_key(&key).expect("it is set");
    let acceptor = acceptor.build();
    let (port, told) = peer(move |stream| {
        let mut stream = acceptor.accept(stream).map_err(|error| error.to_string())?;
        let mut bytes = [0; 2048];
        let read = stream.read(&mut bytes).map_err(|error| error.to_string())?;
        Ok::<_, String>(bytes[..read].to_vec())
    });
    is_refused(&session, port, &nqn_of("peer-of-a-key"), &psk_of(7)).await;
    let told = told.join().expect("no panic");
    let error = told.expect_err("no handshake, nothing in it");
    assert!(error.contains("alert"), "{error}");
    session.target.stop();
}
