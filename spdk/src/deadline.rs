//! Timeouts for futures on the app thread.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::app_thread::Spdk;
use crate::completion::completion;
use crate::error::Error;
use crate::locks::lock;
use crate::step::spawn_local;
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

/// The caller of a change that runs in a task of its own: see [`in_task`].
pub(crate) struct Caller {
    has_timed_out: Rc<Cell<bool>>,
    committed: Cell<Option<oneshot::Sender<()>>>,
}

impl Caller {
    /// Returns whether the caller has reported a timeout.
    pub(crate) fn has_timed_out(&self) -> bool {
        self.has_timed_out.get()
    }

    /// Ends the timeout: from now on the caller waits for the end of the change. `false` if it has timed out before.
    pub(crate) fn commit(&self) -> bool {
        if let Some(committed) = self.committed.take() {
            let _ = committed.send(());
        }
        !self.has_timed_out()
    }
}

/// Runs a change in a task of its own, under the lock of `name` among the objects of `kind`, and awaits its result.
///
/// `None` if neither a result nor [`Caller::commit`] came within `limit`, the wait for the lock included. A change that
/// has not got the lock by then does not begin; one that has goes on, and decides what to undo. It also goes on if the
/// future of this function is dropped.
pub(crate) async fn in_task<T: 'static, F: Future<Output = Result<T, Error>> + 'static>(
    spdk: Spdk,
    limit: Duration,
    (kind, name): (&'static str, &str),
    change: impl FnOnce(Caller) -> F + 'static,
) -> Option<Result<T, Error>> {
    let (done, mut is_done) = completion::<Result<T, Error>>();
    let (committed, mut is_committed) = oneshot::channel();
    let has_timed_out = Rc::new(Cell::new(false));
    let caller = Caller {
        has_timed_out: has_timed_out.clone(),
        committed: Cell::new(Some(committed)),
    };
    let name = name.to_owned();
    spawn_local(async move {
        let _lock = lock(kind, &name).await;
        if !caller.has_timed_out() {
            done.complete(change(caller).await);
        }
    });
    let first = poll_fn(|context| match Pin::new(&mut is_done).poll(context) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        // A sender that was dropped: the change will not commit, and its result follows.
        Poll::Pending => Pin::new(&mut is_committed).poll(context).map(|_| None),
    });
    let result = match within(spdk, limit, first).await {
        Some(Some(result)) => result,
        Some(None) => is_done.await,
        None => {
            has_timed_out.set(true);
            return None;
        }
    };
    Some(result.unwrap_or_else(|abandoned| Err(abandoned.into())))
}
