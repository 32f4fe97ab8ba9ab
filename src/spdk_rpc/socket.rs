//! Client of SPDK's JSON-RPC socket.

use std::io::ErrorKind;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Maximum size of an answer, in bytes: slightly above SPDK's own limit.
const ANSWER_MAX: usize = 33 << 20;

/// Sends a request, and reads the answer if `answered`: a notification has none. The caller bounds the time.
///
/// # Errors
/// Why there is no answer.
pub async fn call(path: &Path, request: &[u8], answered: bool) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    // SPDK writes an answer as one line.
    while answered && answer.last() != Some(&b'\n') {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if answer.len() > ANSWER_MAX {
            return Err(std::io::Error::other(format!(
                "it has more than {ANSWER_MAX} bytes"
            )));
        }
    }
    Ok(answer)
}
