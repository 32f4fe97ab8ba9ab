//! Probes the peer of a path from a control thread before SPDK connects.
//!
//! SPDK changes one path of a controller at a time and cannot cancel an attempt before its timeout. A silent peer
//! would block the controller's other paths and the shutdown of the process; a connection of our own can be dropped at
//! any time.
//!
//! ```text
//! connect ─► ICReq ─► header of an ICResp ─► closed; SPDK connects
//!    │                └─ anything else ─► FAILED_PRECONDITION
//!    └─ refused ─┴─ closed ─┴─ deadline ─► UNAVAILABLE
//! ```

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use spdk::bdev::nvme::{Address, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout_at;

use crate::error::Error;

/// Length in bytes of ICReq and ICResp, the handshake PDUs of NVMe/TCP (NVMe/TCP transport specification, ICReq).
const IC_LEN: u8 = 128;

/// Common header of an ICResp: type 1, no flags, both lengths.
const IC_RESP: [u8; 8] = [1, 0, IC_LEN, 0, IC_LEN, 0, 0, 0];

/// Start of a TLS alert record, a TLS port's reply to anything but TLS (RFC 8446, sections 5.1 and 6).
const TLS_ALERT: [u8; 2] = [21, 3];

/// Bits of the DGST field of ICReq.
const HEADER_DIGEST: u8 = 1;
const DATA_DIGEST: u8 = 1 << 1;

/// Waits until the peer of a TCP path answers the NVMe/TCP handshake. With TLS only the TCP connect is probed: such a
/// peer does not answer in plain text. Other transports are not probed.
///
/// # Errors
/// [`Error::Unavailable`] if the peer cannot be connected or has not answered before the deadline `by`;
/// [`Error::FailedPrecondition`] if its answer is not NVMe/TCP.
pub(super) async fn reachable(path: &Options, by: Instant) -> Result<(), Error> {
    let Address::Tcp { ip, port } = path.address else {
        return Ok(());
    };
    let fail = |what: String| Err(Error::Unavailable(format!("{}: {what}", path.address)));
    let begun = Instant::now();
    match timeout_at(by.into(), greet(SocketAddr::new(ip, port), path)).await {
        Ok(Ok(answer)) if answer.as_ref().is_none_or(|answer| *answer == IC_RESP) => Ok(()),
        Ok(Ok(answer)) => {
            let answer = answer.unwrap_or_default();
            let what = match answer.starts_with(&TLS_ALERT) {
                true => "the peer takes TLS: the controller of this path needs its psk".to_owned(),
                false => format!(
                    "the peer does not speak NVMe/TCP: it answers {:?}",
                    String::from_utf8_lossy(&answer)
                ),
            };
            let address = path.address.to_string();
            let what = format!("{address}: {what}");
            Err(Error::failed_precondition(address, what))
        }
        Ok(Err(error)) => fail(format!("the peer cannot be connected: {error}")),
        Err(_) => fail(format!(
            "the peer has not answered within {} ms",
            begun.elapsed().as_millis()
        )),
    }
}

/// Connects and returns the first bytes of the answer; `None` for a path with TLS.
async fn greet(peer: SocketAddr, path: &Options) -> io::Result<Option<Vec<u8>>> {
    let mut stream = connect(peer, path.source).await?;
    if path.psk.is_some() {
        return Ok(None);
    }
    stream.write_all(&icreq(path)).await?;
    let mut answer = [0; IC_RESP.len()];
    let mut read = 0;
    while let Some(rest) = answer.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest).await? {
            0 if read > 0 => break,
            0 => {
                let what = "it has closed the connection, as a port that takes TLS does for a path without a psk";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
            more => read += more,
        }
    }
    // Only the common header is checked: SPDK validates the rest of the handshake.
    Ok(Some(answer[..read].to_vec()))
}

/// Connects from the path's source address. The source port is left free for SPDK's own connection.
async fn connect(peer: SocketAddr, source: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = match peer {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    if let Some(source) = source {
        let source = source.ip();
        let bound = socket.bind(SocketAddr::new(source, 0));
        bound.map_err(|error| io::Error::new(error.kind(), format!("from {source}: {error}")))?;
    }
    socket.connect(peer).await
}

/// Builds an ICReq with the digests that SPDK will request.
fn icreq(path: &Options) -> [u8; IC_LEN as usize] {
    let mut pdu = [0; IC_LEN as usize];
    // Common header: type 0, flags, header length, data offset, and the PDU length in four bytes.
    (pdu[2], pdu[4]) = (IC_LEN, IC_LEN);
    if path.header_digest {
        pdu[11] |= HEADER_DIGEST;
    }
    if path.data_digest {
        pdu[11] |= DATA_DIGEST;
    }
    pdu
}

#[cfg(test)]
mod tests {
    use super::*;
    use spdk::bdev::nvme::Multipath;
    use std::time::Duration;
    use tokio::net::TcpListener;

    fn path(peer: SocketAddr) -> Options {
        Options {
            name: "r".into(),
            address: Address::Tcp {
                ip: peer.ip(),
                port: peer.port(),
            },
            subsystem: "nqn.2016-06.io.spdk:x".into(),
            hostnqn: None,
            source: None,
            multipath: Multipath::Disabled,
            first: false,
            header_digest: false,
            data_digest: true,
            num_io_queues: 0,
            io_queue_size: 0,
            psk: None,
            deadline: Duration::ZERO,
        }
    }

    async fn peer() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[tokio::test]
    async fn a_peer_that_answers_is_heard() {
        let (listener, address) = peer().await;
        let answering = tokio::spawn(async move {
            let (mut stream, from) = listener.accept().await.unwrap();
            let mut pdu = [0xff; IC_LEN as usize];
            stream.read_exact(&mut pdu).await.unwrap();
            stream.write_all(&IC_RESP).await.unwrap();
            (pdu, from)
        });
        let mut path = path(address);
        path.source = Some("127.0.0.7:9".parse().unwrap());
        reachable(&path, soon()).await.expect("it answers");
        let (pdu, from) = answering.await.unwrap();
        assert_eq!(from.ip().to_string(), "127.0.0.7");
        assert_ne!(from.port(), 9);
        assert_eq!(pdu[..12], [0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 2]);
        assert!(pdu[12..].iter().all(|byte| *byte == 0));
    }

    #[tokio::test]
    async fn a_peer_that_does_not_speak_nvme_is_told_from_one_that_is_away() {
        let (listener, address) = peer().await;
        let answering = tokio::spawn(async move {
            for banner in [
                &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
                b"no",
                b"\x15\x03\x03\0\x02\x02\x0a",
            ] {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(banner).await.unwrap();
                let _ = stream.read(&mut [0; IC_LEN as usize]).await;
            }
        });
        let no_nvme = "does not speak NVMe/TCP";
        for said in [
            [no_nvme, "\"SSH-2.0-\""],
            [no_nvme, "\"no\""],
            ["takes TLS", "psk"],
        ] {
            match reachable(&path(address), soon()).await {
                Err(Error::FailedPrecondition { message, .. }) => {
                    assert!(said.iter().all(|part| message.contains(part)), "{message}");
                }
                other => panic!("{other:?}"),
            }
        }
        answering.await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_is_unavailable_if_it_is_silent_or_closes_or_is_not_there() {
        let (listener, address) = peer().await;
        let told = async |path: &Options, by| match reachable(path, by).await {
            Err(Error::Unavailable(what)) => what,
            other => panic!("{other:?}"),
        };
        let silent = told(&path(address), Instant::now() + Duration::from_millis(50)).await;
        assert!(silent.contains("has not answered within"), "{silent}");
        let mut over_tls = path(address);
        over_tls.psk = Some("key".into());
        reachable(&over_tls, soon()).await.expect("it is connected");

        let closing = tokio::spawn(async move {
            for _ in 0..3 {
                drop(listener.accept().await.unwrap());
            }
        });
        let closed = told(&path(address), soon()).await;
        assert!(closed.contains("cannot be connected"), "{closed}");
        closing.await.unwrap();
        let refused = told(&path(address), soon()).await;
        assert!(refused.contains("refused"), "{refused}");
        let mut elsewhere = path(address);
        elsewhere.source = Some("192.0.2.1:0".parse().unwrap());
        let elsewhere = told(&elsewhere, soon()).await;
        assert!(elsewhere.contains("from 192.0.2.1"), "{elsewhere}");
    }
}
