//! Tracing of calls: when the app thread ran their steps. The times are returned together with the result, so the
//! app thread shares no state with the tracer, and does no work for calls that are not traced.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use spdk_sys as sys;

use crate::reactors::duration;

/// Maximum number of steps recorded per call.
const STEPS: usize = 64;

/// The times of a call that has been answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// The recipe's type name.
    pub recipe: &'static str,
    /// When the call was made.
    pub asked: SystemTime,
    /// Begin and end of each step on the app thread, since `asked`.
    pub steps: Vec<(Duration, Duration)>,
    /// Steps beyond those recorded.
    pub left_out: u32,
    /// End of the last step, since `asked`.
    pub ended: Duration,
}

/// Observes calls. Runs on the thread that awaits the call.
pub trait Observer: Sync {
    /// Returns whether the call that begins now is to be traced.
    fn wants(&self) -> bool;
    /// Reports an answered call.
    fn answered(&self, timeline: &Timeline);
}

static OBSERVER: OnceLock<&'static dyn Observer> = OnceLock::new();

/// Registers the observer of all further calls; only the first registration counts.
pub fn observe_calls(observer: &'static dyn Observer) {
    let _ = OBSERVER.set(observer);
}

/// A call that is traced.
pub(super) struct Asked {
    observer: &'static dyn Observer,
    at: SystemTime,
    ticks: u64,
}

/// The times of a call's steps, in ticks.
#[derive(Debug, Default)]
pub(super) struct Steps {
    steps: Vec<(u64, u64)>,
    left_out: u32,
    ended: u64,
}

impl Asked {
    /// Starts a trace; `None` if the observer does not want this call.
    pub(super) fn now() -> Option<Self> {
        let observer = *OBSERVER.get()?;
        observer.wants().then(|| Self {
            observer,
            at: SystemTime::now(),
            ticks: ticks(),
        })
    }

    /// Reports the answered call of recipe `F` to the observer.
    pub(super) fn tell<F>(&self, steps: &Steps) {
        let since = |ticks: u64| duration(ticks.saturating_sub(self.ticks));
        self.observer.answered(&Timeline {
            recipe: std::any::type_name::<F>(),
            asked: self.at,
            steps: steps
                .steps
                .iter()
                .map(|&(begun, ended)| (since(begun), since(ended)))
                .collect(),
            left_out: steps.left_out,
            ended: since(steps.ended),
        });
    }
}

/// Runs a future; with `timed`, also records its steps. App thread.
pub(super) async fn timed<F: Future>(timed: bool, future: F) -> (F::Output, Option<Steps>) {
    if !timed {
        return (future.await, None);
    }
    let mut steps = Steps::default();
    let mut future = pin!(future);
    let output = poll_fn(|context| {
        let begun = ticks();
        let polled = future.as_mut().poll(context);
        steps.push(begun, ticks());
        polled
    });
    let output = output.await;
    (output, Some(steps))
}

impl Steps {
    fn push(&mut self, begun: u64, ended: u64) {
        if self.steps.len() < STEPS {
            self.steps.push((begun, ended));
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
        self.ended = ended;
    }
}

fn ticks() -> u64 {
    // SAFETY: reads the processor's time stamp counter; any thread.
    unsafe { sys::spdk_get_ticks() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn steps_are_told_in_their_order_and_their_number_has_a_bound() {
        let mut turns = STEPS + 3;
        let future = poll_fn(move |_| {
            turns -= 1;
            match turns {
                0 => Poll::Ready(7),
                _ => Poll::Pending,
            }
        });
        let mut future = pin!(timed(true, future));
        let mut context = Context::from_waker(Waker::noop());
        let (value, steps) = loop {
            if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
                break done;
            }
        };
        let steps = steps.expect("they were asked for");
        assert_eq!((value, steps.steps.len(), steps.left_out), (7, STEPS, 3));
        assert!(steps.steps.iter().all(|(begun, ended)| begun <= ended));
        assert!(steps.steps.is_sorted_by_key(|(begun, _)| *begun));
        assert!(steps.ended >= steps.steps[STEPS - 1].1);
    }
}
