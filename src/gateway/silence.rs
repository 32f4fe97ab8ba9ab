//! A stream that is given up when nothing moves on it: hyper bounds the time of a request's headers, but
//! waits for ever for a first byte, for the rest of HTTP/2's first words, and for a client that does not
//! read its answer.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Bytes by which HTTP/2 is told from HTTP/1 (RFC 9113, 3.4). A shorter request is answered at once.
const PREFACE: usize = 24;

/// The stream, and when it will have been silent for too long.
pub struct Bounded<S> {
    stream: S,
    /// Bytes that have yet to come, unless something goes out before.
    opening: usize,
    /// How long nothing may move, once it is open.
    silence: Duration,
    end: Pin<Box<Sleep>>,
}

impl<S: Unpin> Bounded<S> {
    /// A stream whose first words come within `first`, and that is never silent for longer than
    /// `silence` from then on.
    pub fn new(stream: S, first: Duration, silence: Duration) -> Self {
        Self {
            stream,
            opening: PREFACE,
            silence,
            end: Box::pin(sleep(first)),
        }
    }

    /// What the stream answered, or an error in place of waiting for too long.
    fn bound<T>(
        &mut self,
        cx: &mut Context<'_>,
        found: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if found.is_ready() {
            if self.opening == 0 {
                self.end.as_mut().reset(Instant::now() + self.silence);
            }
            return found;
        }
        ready!(self.end.as_mut().poll(cx));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let found = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.opening = self.opening.saturating_sub(buf.filled().len() - before);
        self.bound(cx, found)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.opening = 0;
        let found = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bound(cx, found)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.opening = 0;
        let found = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.bound(cx, found)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
