//! Runs work of other threads on SPDK's app thread, and returns the results.
//!
//! ```text
//! call: admitted ─► request ring ─► executor ─► reply ring ─┬─► seen by a caller that watches
//!          └ full: CallError::Full         (app thread)      └─► bell ─► delivered (tokio task)
//! ```
//!
//! A recipe (a `Send` closure) crosses threads; the future that it creates lives and is dropped on the app thread.
//! The app thread never waits for a control thread: both rings are lock-free, admission bounds the calls in flight
//! to what the reply ring holds, and signalling the [`Bell`] is one write to an eventfd at most. Waking a tokio task
//! directly would take locks that control threads hold.

mod consumer;
mod observer;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot::{self, error::TryRecvError};

use spdk_control::admission::{Admission, Permit};
use spdk_control::bell::{Bell, Taking};
use spdk_control::event_fd::EventFd;
use spdk_control::executor::{self, RemoteWake};
use spdk_control::gate::Gate;
use spdk_control::missed::Missed;
use spdk_sys as sys;

use crate::app_thread::Spdk;
use crate::error::Error;
use crate::hooks::idle;
use crate::hooks::polls::{self, Polls};
use crate::reactors::{self, Reactor};
use crate::ring::Ring;
use crate::step::{Current, Long};
use observer::Asked;

pub(crate) use consumer::open;
pub use observer::{Observer, Timeline, observe_calls};

/// Why a call has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Backpressure: the mailbox's limit of calls in flight is reached; nothing was started.
    #[error("the data path has as many configuration calls under way as it takes; try again later")]
    Full,
    /// SPDK is stopping or has stopped.
    #[error("the data path is stopping")]
    Stopped,
    /// The recipe panicked; how many of its steps ran is unknown.
    #[error("the call was cut off by a fault of the program")]
    Panicked,
}

/// Steps longer than this delay I/O noticeably, and are recorded.
const LONG: Duration = Duration::from_micros(100);

/// The mailbox's cost on the app thread's reactor since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlStats {
    /// Number of steps: a recipe begun, or a task resumed.
    pub steps: u64,
    /// Total time of all steps.
    pub busy: Duration,
    /// Duration of the longest step.
    pub longest: Duration,
}

/// The occupancy of the mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MailboxStats {
    /// Maximum number of calls in flight.
    pub capacity: usize,
    /// Calls in flight.
    pub in_flight: usize,
    /// Calls refused since the start because the limit was reached.
    pub refused: usize,
}

pub(crate) enum Message {
    Call(Box<dyn FnOnce(Spdk) + Send>),
    Wake(u64),
    Stop,
}

/// Completes a call on the control side.
pub(crate) struct Reply(Box<dyn FnOnce() + Send>);

pub(crate) struct Rings {
    requests: Ring<Message>,
    replies: Ring<Reply>,
}

impl Rings {
    /// Delivers all available replies to the callers that await them.
    fn deliver(&self, _: &Taking<'_>) {
        // SAFETY: pop requires a single consumer. The holder of `Taking` is the only thread that pops replies while
        // the gate is open, and `Taking` is exclusive.
        while let Some(reply) = unsafe { self.replies.pop() } {
            // If dropping a result that nobody awaits panics, other callers must not be affected.
            let _ = catch_unwind(AssertUnwindSafe(move || (reply.0)()));
        }
    }
}

/// State shared by both sides.
pub(crate) struct Shared {
    gate: Gate<Arc<Rings>>,
    admission: Arc<Admission>,
    closing: AtomicBool,
    missed: Missed,
    bell: Bell<EventFd>,
    /// The app thread's core.
    core: u32,
    steps: AtomicU64,
    busy_ticks: AtomicU64,
    longest_ticks: AtomicU64,
    step: Current,
    long: Long,
}

impl Shared {
    /// Creates both rings with `capacity` slots, a power of two; one call less is admitted. App thread.
    fn new(capacity: usize, may_watch: bool) -> Result<Self, Error> {
        let rings = Rings {
            requests: Ring::many_producers(capacity)?,
            replies: Ring::many_producers(capacity)?,
        };
        let event = EventFd::new().map_err(|error| {
            Error::new("create eventfd", error.raw_os_error().unwrap_or(libc::EIO))
        })?;
        Ok(Self {
            gate: Gate::new(Arc::new(rings)),
            admission: Admission::for_calls(capacity - 1),
            closing: AtomicBool::new(false),
            missed: Missed::default(),
            bell: Bell::new(event, may_watch),
            // SAFETY: reads the number of the calling thread's core.
            core: unsafe { sys::spdk_env_get_current_core() },
            steps: AtomicU64::new(0),
            busy_ticks: AtomicU64::new(0),
            longest_ticks: AtomicU64::new(0),
            step: Current::default(),
            long: Long::over(reactors::ticks(LONG)),
        })
    }

    fn admit(&self) -> Result<Permit, CallError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(CallError::Stopped);
        }
        self.admission.admit().ok_or(CallError::Full)
    }

    fn send(&self, message: Message) -> Result<(), CallError> {
        let rings = self.gate.enter().ok_or(CallError::Stopped)?;
        let sent = rings.requests.push(Box::new(message));
        sent.map_err(|_| CallError::Full)?;
        idle::wake(self.core);
        Ok(())
    }

    /// Queues a reply and signals the control side. App thread.
    fn reply(&self, rings: &Rings, reply: Reply) {
        match rings.replies.push(Box::new(reply)) {
            Ok(()) => self.bell.ring(),
            // Admission leaves room for every reply. If that invariant broke, the reply would be delivered from
            // here rather than lost.
            Err(reply) => (reply.0)(),
        }
    }

    /// Polls briefly for replies, which nearly always arrive within the poll's limit.
    fn watch(&self, done: impl FnMut() -> bool) {
        if let Some(rings) = self.gate.enter() {
            let take = |taking: &Taking<'_>| rings.deliver(taking);
            self.bell.watch(take, done, || !rings.replies.is_empty());
        }
    }

    fn record(&self, ticks: u64) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.busy_ticks.fetch_add(ticks, Ordering::Relaxed);
        self.longest_ticks.fetch_max(ticks, Ordering::Relaxed);
        self.long.note(self.step.take_last(), ticks);
    }

    fn duration(&self, ticks: &AtomicU64) -> Duration {
        reactors::duration(ticks.load(Ordering::Relaxed))
    }

    /// Refuses new calls from now on; calls in flight continue.
    pub(crate) fn refuse_calls(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Asks the app thread to stop SPDK. On `Full` the caller must retry.
    pub(crate) fn request_stop(&self) -> Result<(), CallError> {
        self.send(Message::Stop)
    }

    /// Frees the rings. Delivers pending replies and drops requests that were not started. Runs on the thread that
    /// hosts SPDK, after its reactors have ended and before its memory is freed.
    pub(crate) fn close(&self) {
        self.refuse_calls();
        if let Some(rings) = self.gate.close().and_then(Arc::into_inner) {
            // SAFETY: pop requires a single consumer. The gate is closed and the rings' last reference is held
            // here, so nobody else consumes.
            while let Some(reply) = unsafe { rings.replies.pop() } {
                (reply.0)();
            }
        }
        self.bell.hush();
        self.bell.ring();
    }
}

impl RemoteWake for Shared {
    fn wake_remotely(&self, task: u64) {
        if self.send(Message::Wake(task)).is_err() {
            self.missed.note();
        }
    }
}

/// A handle to SPDK's app thread, for any thread. Cheap to clone.
#[derive(Clone)]
pub struct Handle(pub(crate) Arc<Shared>);

impl Handle {
    /// Runs `recipe` on SPDK's app thread and awaits the output of its future.
    ///
    /// An admitted call runs to completion even if this future is dropped. [`CallError::Full`] is returned at once,
    /// and means that nothing ran.
    pub async fn call<F, Fut, T>(&self, recipe: F) -> Result<T, CallError>
    where
        F: FnOnce(Spdk) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let permit = self.0.admit()?;
        let asked = Asked::now();
        let is_timed = asked.is_some();
        let (sender, mut receiver) = oneshot::channel();
        let (shared, step) = (self.0.clone(), self.0.step.clone());
        let begin = move |spdk: Spdk| {
            executor::spawn_local(step.named::<F, _>(async move {
                let value = observer::timed(is_timed, recipe(spdk)).await;
                let finish = Box::new(move || {
                    drop(permit);
                    // The caller may have been dropped.
                    let _ = sender.send(value);
                });
                if let Some(rings) = shared.gate.enter() {
                    shared.reply(&rings, Reply(finish));
                }
            }));
        };
        self.0.send(Message::Call(Box::new(begin)))?;
        let mut answer = Err(TryRecvError::Empty);
        self.0.watch(|| {
            answer = receiver.try_recv();
            !matches!(answer, Err(TryRecvError::Empty))
        });
        let answer = match answer {
            Err(TryRecvError::Empty) => receiver.await.ok(),
            answer => answer.ok(),
        };
        let (value, steps) = answer.ok_or_else(|| self.unanswered())?;
        if let (Some(asked), Some(steps)) = (asked, steps) {
            asked.tell::<F>(&steps);
        }
        Ok(value)
    }

    /// Returns why a started call has no result: recipes are dropped during teardown, and when they panic.
    fn unanswered(&self) -> CallError {
        match self.0.closing.load(Ordering::Acquire) {
            true => CallError::Stopped,
            false => CallError::Panicked,
        }
    }

    /// Returns the occupancy of the mailbox.
    pub fn mailbox_stats(&self) -> MailboxStats {
        MailboxStats {
            capacity: self.0.admission.capacity(),
            in_flight: self.0.admission.in_flight(),
            refused: self.0.admission.refused(),
        }
    }

    /// Returns the reactors; empty once SPDK's reactors have ended.
    pub fn reactors(&self) -> Vec<Reactor> {
        // The guard keeps SPDK from freeing the reactors meanwhile.
        let open = self.0.gate.enter();
        open.map(|_open| reactors::read()).unwrap_or_default()
    }

    /// Returns the polls of each reactor; empty unless they are measured.
    pub fn polls(&self) -> Vec<Polls> {
        polls::read()
    }

    /// Returns the recipe whose step the app thread's reactor is running, by its type name.
    pub fn current_step(&self) -> Option<&'static str> {
        self.0.step.name()
    }

    /// Returns the recipes with steps above 100 µs, and the longest step of each. Only the first 64 such recipes are
    /// recorded.
    pub fn long_steps(&self) -> Vec<(&'static str, Duration)> {
        let all = self.0.long.all().into_iter();
        all.map(|(name, ticks)| (name, reactors::duration(ticks)))
            .collect()
    }

    /// Returns the cost of configuration on the app thread's reactor since the start.
    pub fn control_stats(&self) -> ControlStats {
        ControlStats {
            steps: self.0.steps.load(Ordering::Relaxed),
            busy: self.0.duration(&self.0.busy_ticks),
            longest: self.0.duration(&self.0.longest_ticks),
        }
    }
}

/// Delivers replies to the callers that await them, until the mailbox closes.
pub(crate) async fn deliver(shared: Arc<Shared>) -> std::io::Result<()> {
    // SAFETY: I/O safety of AsyncFd::register: an OwnedFd refers to the same open descriptor until it is dropped,
    // and it is moved in, so nobody can close or replace it.
    let bell = unsafe { AsyncFd::register(shared.bell.event().descriptor()?) }?;
    loop {
        let mut ready = bell.readable().await?;
        // Before `hush`: a signal after it makes a new edge, which epoll reports.
        ready.clear_ready();
        shared.bell.hush();
        let Some(rings) = shared.gate.enter() else {
            return Ok(());
        };
        if let Some(taking) = shared.bell.try_take() {
            rings.deliver(&taking);
        }
    }
}
