//! Buffers a request completely before the service is called.
//!
//! tonic's decoder allocates a message as soon as its length is announced, up to 4 MiB, so half-sent calls would
//! occupy what they announce. Here they occupy only the bytes sent, which are accounted for.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tonic::Status;

use super::calls::RequestBody;
use super::limits::MESSAGE;

/// The buffered bytes, then the end of the request, then the unread rest if the request exceeds the limit.
pub struct Gathered {
    bytes: Bytes,
    end: Option<Result<Frame<Bytes>, Status>>,
    rest: RequestBody,
}

/// Buffers a request until it is complete or larger than one message may be.
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

/// Grows by a quarter of the content at least: doubling would double the memory of a call.
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
