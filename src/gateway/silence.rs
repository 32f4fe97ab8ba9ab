//! A TCP stream that is given up when nothing moves on it: hyper bounds the time of a request's
//! headers, but waits for ever for a first byte, and for a client that does not read its answer.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// The stream, and when it will have been silent for too long.
pub struct Bounded {
    stream: TcpStream,
    /// How long nothing may move, once something has.
    silence: Duration,
    end: Pin<Box<Sleep>>,
}

impl Bounded {
    /// A stream whose first byte comes within `first`, and that is never silent for longer than
    /// `silence` from then on.
    pub fn new(stream: TcpStream, first: Duration, silence: Duration) -> Self {
        Self {
            stream,
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
            self.end.as_mut().reset(Instant::now() + self.silence);
            return found;
        }
        ready!(self.end.as_mut().poll(cx));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let found = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.bound(cx, found)
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let found = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bound(cx, found)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
