//! Timeouts for futures on the app thread.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::app_thread::Spdk;
use crate::timer::sleep;

/// Awaits `future` for at most `limit`. `None` on a timeout, which drops the future. A future that is ready at the
/// deadline wins.
pub(crate) async fn within<F: Future>(spdk: Spdk, limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut alarm = pin!(sleep(spdk, limit));
    poll_fn(|context| {
        if let Poll::Ready(value) = future.as_mut().poll(context) {
            return Poll::Ready(Some(value));
        }
        alarm.as_mut().poll(context).map(|()| None)
    })
    .await
}
