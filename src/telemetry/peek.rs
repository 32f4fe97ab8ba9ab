//! Scans a gRPC body for the name of the object while it passes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::Record;
use super::methods::Method;

/// Bytes of a message that are scanned. Names come first; large fields come last, if any.
const SCANNED: usize = 4096;

/// Length of the gRPC frame header: compression flag and message length.
const HEADER: usize = 5;

/// A body whose first message is scanned as it passes.
pub(super) struct Peek {
    body: Body,
    look: Option<Scan>,
}

struct Scan {
    record: Arc<Record>,
    method: &'static Method,
    is_answer: bool,
    seen: Vec<u8>,
}

impl Peek {
    /// Wraps the request or the response of a call.
    pub(super) fn wrap(
        body: Body,
        record: &Arc<Record>,
        method: &'static Method,
        is_answer: bool,
    ) -> Body {
        if !method.names(is_answer) {
            return body;
        }
        Body::new(Self {
            body,
            look: Some(Scan {
                record: Arc::clone(record),
                method,
                is_answer,
                seen: Vec::new(),
            }),
        })
    }
}

impl Scan {
    /// Scans the next piece. Returns whether scanning is done: the name was found or cannot be.
    fn at(&mut self, piece: &[u8]) -> bool {
        let all = match self.seen.is_empty() {
            true => piece,
            false => {
                let room = SCANNED.saturating_sub(self.seen.len());
                self.seen.extend(piece.iter().take(room));
                &self.seen
            }
        };
        let Some((header, message)) = all.split_at_checked(HEADER) else {
            self.keep(piece);
            return false;
        };
        let [compressed, length @ ..] = header else {
            return true;
        };
        if *compressed != 0 {
            return true;
        }
        let length = length
            .iter()
            .fold(0, |all, byte| all << 8 | usize::from(*byte));
        if message.len() < length && all.len() < SCANNED {
            self.keep(piece);
            return false;
        }
        let message = message.get(..length).unwrap_or(message);
        if let Some(name) = self.method.object(message, self.is_answer) {
            self.record.set_object(name);
        }
        true
    }

    /// Keeps the first piece, to be scanned together with the next.
    fn keep(&mut self, piece: &[u8]) {
        if self.seen.is_empty() {
            self.seen.extend(piece.iter().take(SCANNED));
        }
    }
}

impl HttpBody for Peek {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (Some(look), Some(Ok(frame))) = (&mut self.look, &frame)
            && frame.data_ref().is_none_or(|piece| look.at(piece))
        {
            self.look = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
