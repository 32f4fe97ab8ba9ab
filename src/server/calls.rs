//! Calls in flight: limits in total and per peer, and request and answer bodies with bounded time and memory.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use super::admission::{Peer, Place};
use super::held::Held;
use super::limits::{CALLS, CALLS_PER_PEER};
use crate::error::Error;
use crate::telemetry::calls::Record;

/// Number of calls in flight, over all connections.
#[derive(Default)]
pub struct Calls(Mutex<Count>);

#[derive(Default)]
struct Count {
    total: usize,
    by_peer: HashMap<Peer, usize>,
}

impl Calls {
    fn begin(&self, peer: Peer) -> Result<(), Error> {
        let refuse = |what: &str, bound: usize| {
            let message = format!("{bound} calls {what} are under way, the most that may be");
            Err(Error::ResourceExhausted(message))
        };
        let mut count = self.0.lock();
        if count.total >= CALLS {
            return refuse("in all", CALLS);
        }
        let of_peer = count.by_peer.entry(peer).or_default();
        if *of_peer >= CALLS_PER_PEER {
            return refuse("of this peer", CALLS_PER_PEER);
        }
        *of_peer += 1;
        count.total += 1;
        Ok(())
    }

    fn end(&self, peer: Peer) {
        let mut count = self.0.lock();
        count.total -= 1;
        if let Some(of_peer) = count.by_peer.get_mut(&peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                count.by_peer.remove(&peer);
            }
        }
    }
}

/// A connection, as its calls see it.
pub struct Connection {
    /// Its place.
    pub place: Place,
    /// Its memory accounting.
    pub held: Arc<Held>,
    /// Its peer.
    pub peer: Peer,
    /// The calls of all connections.
    pub calls: Arc<Calls>,
}

/// A call in flight, until its answer is written completely or abandoned.
pub struct Call(Arc<Connection>);

impl Call {
    /// Begins a call.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED at the limit of calls.
    pub fn begin(connection: &Arc<Connection>) -> Result<Arc<Self>, Error> {
        connection.calls.begin(connection.peer)?;
        connection.place.call_begins();
        Ok(Arc::new(Self(Arc::clone(connection))))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.place.call_ends();
        self.0.calls.end(self.0.peer);
    }
}

/// A request body. Exceeding the deadline or the memory limit is an error. Backpressure: nothing is read while the
/// client leaves too much of its answers unread.
pub struct RequestBody {
    body: Incoming,
    call: Arc<Call>,
    counted: usize,
    age: Duration,
    begun: Instant,
    late: Option<Pin<Box<Sleep>>>,
    record: Option<Arc<Record>>,
}

impl RequestBody {
    /// Wraps `body`, which has to be complete within `age`. `record` is told whether it is.
    pub fn new(
        body: Incoming,
        call: &Arc<Call>,
        age: Duration,
        record: Option<Arc<Record>>,
    ) -> Self {
        if let Some(record) = &record {
            record.set_incomplete(!body.is_end_stream());
        }
        Self {
            body,
            record,
            call: Arc::clone(call),
            counted: 0,
            age,
            begun: Instant::now(),
            late: None,
        }
    }

    fn held(&self) -> &Held {
        &self.call.0.held
    }

    fn is_complete(&self) {
        if let Some(record) = &self.record {
            record.set_incomplete(false);
        }
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        let end = self.begun + self.age;
        let late = self.late.get_or_insert_with(|| Box::pin(sleep_until(end)));
        ready!(late.as_mut().poll(cx));
        let message = format!("the request did not arrive in full within {:?}", self.age);
        Poll::Ready(Error::DeadlineExceeded(message).into())
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        ready!(self.held().poll_room(cx));
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if self.body.is_end_stream() || frame.is_trailers() {
                    self.is_complete();
                }
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.counted += bytes;
                if !self.held().receive(bytes) {
                    let message = "requests that are not complete hold too much memory";
                    let error = Error::ResourceExhausted(message.to_owned());
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let status = Status::from_error(Box::new(error));
                Poll::Ready(Some(Err(status)))
            }
            Poll::Ready(None) => {
                self.is_complete();
                Poll::Ready(None)
            }
            Poll::Pending => self.poll_late(cx).map(|late| Some(Err(late))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.held().received(self.counted);
    }
}

/// An answer body. Each part keeps the call in flight until it is written.
pub struct AnswerBody {
    body: Body,
    call: Option<Arc<Call>>,
}

impl AnswerBody {
    /// Wraps the answer to a call; `None` for a refused call.
    pub fn new(body: Body, call: Option<Arc<Call>>) -> Self {
        Self { body, call }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let hold = |bytes| match &self.call {
            Some(call) => call.0.held.part(bytes, Arc::clone(call)),
            None => bytes,
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(hold))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn calls_are_bounded_in_all_and_by_peer() {
        let calls = Calls::default();
        let peer = |n: u8| Peer::from(IpAddr::from([10, 0, 0, n]));
        let begun = |n: u8| (0..CALLS).filter(|_| calls.begin(peer(n)).is_ok()).count();
        assert_eq!(begun(1), CALLS_PER_PEER);
        assert_eq!(begun(2), CALLS - CALLS_PER_PEER);
        assert_eq!(begun(3), 0);
        calls.end(peer(1));
        assert_eq!(begun(3), 1);
        assert!(calls.0.lock().by_peer.len() <= 3);
    }
}
