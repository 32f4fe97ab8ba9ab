//! A stream that fails when it is idle for too long. hyper has a timeout for a request's headers, but waits forever
//! for the first byte, for the rest of the HTTP/2 preface, and for a client that does not read its answer.
//!
//! Backpressure: nothing is read while output is stuck, or a client that sends requests without reading would fill the
//! memory with answers.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::limits::STUCK_OUTPUT;

/// Length of the HTTP/2 preface (RFC 9113, 3.4), by which hyper tells HTTP/2 from HTTP/1.
const PREFACE: usize = 24;

/// A stream with its idle deadline.
pub struct IdleTimeout<S> {
    stream: S,
    /// Bytes of the preface still to be received.
    opening: usize,
    /// Whether output also ends the opening phase: an HTTP/1 request may be shorter than the preface, and its answer
    /// shows that it was complete. Not for HTTP/2, where the server sends its settings unprompted.
    short_requests: bool,
    /// Idle timeout after the opening phase.
    idle: Duration,
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
    /// Since when the peer accepts no output.
    stuck: Option<Instant>,
    /// The reader that waits for output to be accepted.
    reader: Option<Waker>,
}

impl<S: Unpin> IdleTimeout<S> {
    /// Wraps a stream whose first bytes have to arrive within `opening`, and which may then be idle for `idle` at
    /// most.
    pub fn new(stream: S, opening: Duration, idle: Duration) -> Self {
        let deadline = Instant::now() + opening;
        Self {
            stream,
            opening: PREFACE,
            short_requests: true,
            idle,
            deadline,
            timer: Box::pin(sleep_until(deadline)),
            stuck: None,
            reader: None,
        }
    }

    /// Like [`new`](Self::new), for HTTP/2 only: the complete preface has to arrive within `opening`.
    pub fn http2(stream: S, opening: Duration, idle: Duration) -> Self {
        Self {
            short_requests: false,
            ..Self::new(stream, opening, idle)
        }
    }

    /// Passes a result on, or fails at the idle deadline.
    fn bound<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            if self.opening == 0 {
                self.deadline = Instant::now() + self.idle;
            }
            return result;
        }
        ready!(self.poll_expired(cx));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }

    /// The same for output, which also shows whether the peer reads.
    fn bound_output<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.short_requests {
            self.opening = 0;
        }
        if result.is_ready() {
            if self.stuck.take().is_some()
                && let Some(reader) = self.reader.take()
            {
                reader.wake();
            }
        } else if self.stuck.is_none() {
            self.stuck = Some(Instant::now());
        }
        self.bound(cx, result)
    }

    /// Resets the timer only when it fires or is too late: resetting it for all bytes would be costly.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let stuck = self.stuck.map(|since| since + STUCK_OUTPUT);
            let deadline = stuck.map_or(self.deadline, |stuck| stuck.min(self.deadline));
            if self.timer.deadline() > deadline {
                self.timer.as_mut().reset(deadline);
            }
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for IdleTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stuck.is_some() {
            self.reader = Some(cx.waker().clone());
            return self.bound(cx, Poll::Pending);
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.opening = self.opening.saturating_sub(buf.filled().len() - before);
        self.bound(cx, result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for IdleTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bound_output(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.bound_output(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        if result.is_ready() && self.stuck.is_none() {
            // A flush with nothing stuck is no activity of the peer.
            return result;
        }
        self.bound_output(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bound_output(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_its_first_bytes_do_not_come() {
        let (mut peer, stream) = duplex(64);
        let mut stream = IdleTimeout::new(stream, Duration::from_secs(10), LONG);
        peer.write_all(b"PRI * HT").await.expect("room");
        let mut buffer = Vec::new();
        let ended = stream.read_to_end(&mut buffer).await;
        assert_eq!(
            ended.expect_err("nothing more came").kind(),
            ErrorKind::TimedOut
        );
        assert_eq!(buffer, b"PRI * HT");
    }

    #[tokio::test(start_paused = true)]
    async fn output_of_the_server_is_no_word_of_an_http2_client() {
        let (_peer, stream) = duplex(64);
        let mut stream = IdleTimeout::http2(stream, Duration::from_secs(10), LONG);
        stream.write_all(b"settings").await.expect("room");
        let begun = Instant::now();
        let ended = stream.read_u8().await.expect_err("nothing came");
        assert_eq!(ended.kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() <= Duration::from_secs(11));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_ends_and_one_that_moves_does_not() {
        let (mut peer, stream) = duplex(64);
        let idle = Duration::from_secs(10);
        let mut stream = IdleTimeout::new(stream, idle, idle);
        let begun = Instant::now();
        for _ in 0..5 {
            peer.write_all(&[1; 24]).await.expect("room");
            stream.read_exact(&mut [0; 24]).await.expect("it moves");
            tokio::time::advance(Duration::from_secs(9)).await;
        }
        assert!(begun.elapsed() >= Duration::from_secs(45));
        let ended = stream.read_u8().await.expect_err("idle");
        assert_eq!(ended.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_read_from_a_peer_that_does_not_read() {
        let (mut peer, stream) = duplex(64);
        let (mut reader, mut writer) = tokio::io::split(IdleTimeout::new(stream, LONG, LONG));
        let writing = tokio::spawn(async move { writer.write_all(&[2; 200]).await });
        tokio::task::yield_now().await;
        peer.write_all(&[1; 24]).await.expect("room");
        let early = tokio::time::timeout(Duration::from_secs(5), reader.read_u8()).await;
        assert!(early.is_err(), "it read while output was stuck");
        peer.read_exact(&mut [0; 200]).await.expect("output");
        writing.await.expect("no panic").expect("all is written");
        assert_eq!(reader.read_u8().await.expect("input"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn stuck_output_ends_the_stream_also_while_input_comes() {
        let (mut peer, stream) = duplex(64);
        let mut stream = IdleTimeout::new(stream, LONG, LONG);
        peer.write_all(&[1; 24]).await.expect("room");
        let begun = Instant::now();
        let ended = stream.write_all(&[2; 200]).await.expect_err("stuck");
        assert_eq!(ended.kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() < STUCK_OUTPUT + Duration::from_secs(1));
    }
}
