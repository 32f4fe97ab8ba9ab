//! SPDK's JSON-RPC socket, from this side: its path made free before SPDK starts, and calls to it.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Bytes of an answer at most: SPDK's own limit, and a little.
const ANSWER_MAX: usize = 33 << 20;

/// Makes way for the socket: removes one that nobody listens on any more. Before SPDK starts.
///
/// # Errors
/// What is in the way at the path.
pub fn clear(path: &Path) -> Result<(), String> {
    let fail = |reason: String| format!("{}: {reason}", path.display());
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    if !dir.is_dir() {
        return Err(fail(format!("there is no directory {}", dir.display())));
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail(error.to_string())),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(fail("it is there already, and is not a socket".to_owned()));
        }
        Ok(_) => {}
    }
    match BlockingStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| fail(error.to_string()))
        }
        Err(error) => Err(fail(format!("whether it is in use is not known: {error}"))),
        Ok(_) => Err(fail("another program listens there".to_owned())),
    }
}

/// Sends a request, and reads the answer if `answered`: a notification has none. The caller bounds
/// the time that it takes.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_a_socket_without_a_listener_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("rpc.sock");
        assert_eq!(clear(&path), Ok(()));
        let listener = UnixListener::bind(&path).expect("a socket");
        assert!(
            clear(&path)
                .expect_err("in use")
                .contains("another program listens there")
        );
        assert!(path.exists());
        drop(listener);
        assert_eq!(clear(&path), Ok(()));
        assert!(!path.exists());

        std::fs::write(&path, "data").expect("it is writable");
        assert!(clear(&path).expect_err("a file").contains("not a socket"));
        assert_eq!(std::fs::read(&path).expect("it stays"), b"data");
        let nowhere = dir.path().join("missing/rpc.sock");
        assert!(
            clear(&nowhere)
                .expect_err("nowhere")
                .contains("no directory")
        );
    }
}
