//! Drains the rest of a request body when the response is known early.

use std::time::Duration;

use axum::body::Body;
use axum::http::Version;
use http_body_util::BodyExt;
use tokio::time::timeout;

/// Limits of draining: bytes read and discarded, and time.
const BYTES: usize = 16 << 20;
const TIMEOUT: Duration = Duration::from_secs(1);

/// Reads the rest of a body before the response is sent. Over HTTP/2 a stream that is answered before its request ends
/// is reset (RFC 9113, 8.1), and curl 7.88 then loses the response. HTTP/1 has no such reset, and its clients can ask
/// first (100-continue) whether to send a body.
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
    // At the timeout or beyond the limit the connection deals with the rest.
    let _ = timeout(TIMEOUT, rest).await;
}
