//! Tells those who trace a call what the app thread did for it. The times come back with the answer: the
//! app thread shares nothing with them, and does nothing for a call that nobody traces.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use spdk_sys as sys;

use crate::reactors::duration;

/// Steps of a call that are told one by one.
const STEPS: usize = 64;

/// What became of a call that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// The recipe, as the compiler names it.
    pub recipe: &'static str,
    /// When it was asked for.
    pub asked: SystemTime,
    /// Begin and end of each step on the app thread, since `asked`.
    pub steps: Vec<(Duration, Duration)>,
    /// Steps beyond those.
    pub left_out: u32,
    /// The end of the last step, since `asked`.
    pub ended: Duration,
}

/// Wants to know of calls. Called on the thread that awaits the call.
pub trait Observer: Sync {
    /// Whether the call that begins now is of interest.
    fn wants(&self) -> bool;
    /// It has been answered.
    fn told(&self, timeline: &Timeline);
}

static OBSERVER: OnceLock<&'static dyn Observer> = OnceLock::new();

/// From now on tells `observer`; the first one that is given counts.
pub fn observe_calls(observer: &'static dyn Observer) {
    let _ = OBSERVER.set(observer);
}

/// A call that somebody wants to know of.
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
    /// `None` if nobody does.
    pub(super) fn now() -> Option<Self> {
        let observer = *OBSERVER.get()?;
        observer.wants().then(|| Self {
            observer,
            at: SystemTime::now(),
            ticks: ticks(),
        })
    }

    /// The recipe `F` has been answered.
    pub(super) fn tell<F>(&self, steps: &Steps) {
        let since = |ticks: u64| duration(ticks.saturating_sub(self.ticks));
        self.observer.told(&Timeline {
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

/// What a future gives, and with `timed` when its steps were. On the app thread.
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
    // SAFETY: reads the processor's counter; any thread.
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
