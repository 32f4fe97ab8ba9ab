//! What is left of a request's body when its answer is known already.

use std::time::Duration;

use axum::body::Body;
use axum::http::Version;
use http_body_util::BodyExt;
use tokio::time::timeout;

/// So much of a body is read for nothing at most, and for so long.
const BYTES: usize = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(1);

/// Reads the rest of a body before the answer goes out. Over HTTP/2 a stream whose answer comes before
/// the end of its request is reset (RFC 9113, 8.1), and curl 7.88 then loses the answer. HTTP/1 has no
/// such trouble, and clients that ask first whether to send a body.
pub async fn drain(version: Version, mut body: Body) {
    if version != Version::HTTP_2 {
        return;
    }
    let rest = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len());
            if read > BYTES {
                return;
            }
        }
    };
    // What does not come in time, or is too much, is left to the connection.
    let _ = timeout(PATIENCE, rest).await;
}
