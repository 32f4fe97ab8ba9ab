//! A body of gRPC that is read along for the name of the object.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::Record;
use super::methods::Method;

/// So much of a message is looked at. Names come first, and what carries much comes last or not at all.
const LOOKED_AT: usize = 4096;

/// Bytes before a message: whether it is compressed, and its length.
const HEADER: usize = 5;

/// The body, whose first message is looked at as it passes.
pub(super) struct Peek {
    body: Body,
    look: Option<Look>,
}

struct Look {
    record: Arc<Record>,
    method: &'static Method,
    is_answer: bool,
    seen: Vec<u8>,
}

impl Peek {
    /// The request, or else the answer, of a call.
    pub(super) fn over(
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
            look: Some(Look {
                record: Arc::clone(record),
                method,
                is_answer,
                seen: Vec::new(),
            }),
        })
    }
}

impl Look {
    /// Takes note of a further piece; whether the name has been found, or will not be.
    fn at(&mut self, piece: &[u8]) -> bool {
        let all = match self.seen.is_empty() {
            true => piece,
            false => {
                let room = LOOKED_AT.saturating_sub(self.seen.len());
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
        if message.len() < length && all.len() < LOOKED_AT {
            self.keep(piece);
            return false;
        }
        let message = message.get(..length).unwrap_or(message);
        if let Some(name) = self.method.object(message, self.is_answer) {
            self.record.set_object(name);
        }
        true
    }

    /// Keeps the first piece: the next is looked at together with it.
    fn keep(&mut self, piece: &[u8]) {
        if self.seen.is_empty() {
            self.seen.extend(piece.iter().take(LOOKED_AT));
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
