//! A request that has come in full before its service is asked.
//!
//! What decodes gRPC makes room for a message as soon as its length is announced, of which 4 MiB may be:
//! half-sent calls would hold what they announce. Here they hold what they have sent, which is counted.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tonic::Status;

use super::calls::RequestBody;
use super::limits::MESSAGE;

/// A request's bytes, then what ended them, then what is left where they are more than may be.
pub struct Gathered {
    bytes: Bytes,
    end: Option<Result<Frame<Bytes>, Status>>,
    rest: RequestBody,
}

/// Waits for the whole of a request, or for more than one message may have.
pub async fn gather(mut rest: RequestBody) -> Gathered {
    let mut bytes = Vec::new();
    let mut end = None;
    while bytes.len() <= MESSAGE {
        match poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx)).await {
            None => break,
            Some(Err(status)) => {
                end = Some(Err(status));
                break;
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => append(&mut bytes, &data),
                Err(trailers) => {
                    end = Some(Ok(trailers));
                    break;
                }
            },
        }
    }
    Gathered {
        bytes: bytes.into(),
        end,
        rest,
    }
}

/// With a quarter more room than is needed: twice as much would double what a call holds.
fn append(bytes: &mut Vec<u8>, data: &[u8]) {
    if bytes.capacity() - bytes.len() < data.len() {
        bytes.reserve_exact(data.len().max(bytes.len() / 4));
    }
    bytes.extend_from_slice(data);
}

impl Body for Gathered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.bytes.is_empty() {
            let bytes = std::mem::take(&mut self.bytes);
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if let Some(end) = self.end.take() {
            return Poll::Ready(Some(end));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty() && self.end.is_none() && self.rest.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_grows_by_a_quarter() {
        let mut bytes = Vec::new();
        for _ in 0..64 {
            append(&mut bytes, &[7; 16 << 10]);
            assert!(bytes.capacity() <= bytes.len() + (bytes.len() / 4).max(16 << 10));
        }
        assert_eq!(bytes, vec![7; 1 << 20]);
    }
}
