//! How other threads ask for work on SPDK's app thread, and get the answer.
//!
//! ```text
//! call: admitted ─► request ring ─► executor ─► reply ring ─┬─► seen by a caller that watches
//!          └ full: CallError::Full         (app thread)      └─► bell ─► delivered (tokio task)
//! ```
//!
//! A recipe (a `Send` closure) crosses; the future that it makes lives and dies
//! on the app thread. The app thread never waits for a control thread: both
//! rings are lock-free, no more calls are admitted than the reply ring holds,
//! and the ring of the [`Bell`] is one write to an eventfd, if any. Waking a tokio
//! task directly would take locks that control threads hold.

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

use crate::error::Error;
use crate::reactors::{self, Reactor};
use crate::ring::Ring;
use crate::runtime::Spdk;
use crate::step::{Current, Long};
use observer::Asked;

pub(crate) use consumer::open;
pub use observer::{Observer, Timeline, observe_calls};

/// Why a call brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// As many calls as the mailbox holds are under way; nothing was started.
    #[error("the data path has as many configuration calls under way as it takes; try again later")]
    Full,
    /// SPDK is stopping or has stopped.
    #[error("the data path is stopping")]
    Stopped,
    /// The recipe panicked; how far it came is not known.
    #[error("the call was cut off by a fault of the program")]
    Panicked,
}

/// A step that takes longer holds I/O up.
const LONG: Duration = Duration::from_micros(100);

/// What the mailbox has cost the app thread's reactor since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlStats {
    /// Steps taken: a recipe begun, or a task continued.
    pub steps: u64,
    /// Time that these steps took in all.
    pub busy: Duration,
    /// The longest one.
    pub longest: Duration,
}

/// How full the mailbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MailboxStats {
    /// Calls that may be under way at once.
    pub capacity: usize,
    /// Calls that are.
    pub in_flight: usize,
    /// Calls that were refused since start, because too many were.
    pub refused: usize,
}

pub(crate) enum Message {
    Call(Box<dyn FnOnce(Spdk) + Send>),
    Wake(u64),
    Stop,
}

/// Finishes a call on the control side.
pub(crate) struct Reply(Box<dyn FnOnce() + Send>);

pub(crate) struct Rings {
    requests: Ring<Message>,
    replies: Ring<Reply>,
}

impl Rings {
    /// Brings all replies that are there to those who wait for them.
    fn deliver(&self, _: &Taking<'_>) {
        // SAFETY: who has the right to take is the only one that pops replies while
        // the gate is open.
        while let Some(reply) = unsafe { self.replies.pop() } {
            // An answer that panics when nobody wants it is no other caller's fault.
            let _ = catch_unwind(AssertUnwindSafe(move || (reply.0)()));
        }
    }
}

/// What both sides share.
pub(crate) struct Shared {
    gate: Gate<Arc<Rings>>,
    admission: Arc<Admission>,
    closing: AtomicBool,
    missed: Missed,
    bell: Bell<EventFd>,
    steps: AtomicU64,
    busy_ticks: AtomicU64,
    longest_ticks: AtomicU64,
    step: Current,
    long: Long,
}

impl Shared {
    /// Both rings, for `capacity` calls at a time (a power of two, less one).
    /// On the app thread.
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
        sent.map_err(|_| CallError::Full)
    }

    /// Sends a reply on its way. On the app thread.
    fn reply(&self, rings: &Rings, reply: Reply) {
        match rings.replies.push(Box::new(reply)) {
            Ok(()) => self.bell.ring(),
            // Admission leaves room for every reply: this keeps the answer even so.
            Err(reply) => (reply.0)(),
        }
    }

    /// Watches for an answer, which is nearly always there in a moment.
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

    /// Refuses calls from now on; those under way go on.
    pub(crate) fn refuse_calls(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Asks the app thread to stop SPDK. `Full`: ask again.
    pub(crate) fn request_stop(&self) -> Result<(), CallError> {
        self.send(Message::Stop)
    }

    /// Frees the rings, delivering what was answered and dropping what was not.
    /// On SPDK's own thread, after its reactors have ended and before its memory
    /// goes.
    pub(crate) fn close(&self) {
        self.refuse_calls();
        if let Some(rings) = self.gate.close().and_then(Arc::into_inner) {
            // SAFETY: the gate is closed and the poller is gone: no one else
            // consumes.
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

/// The way to SPDK's app thread, for any thread. Cheap to clone.
#[derive(Clone)]
pub struct Handle(pub(crate) Arc<Shared>);

impl Handle {
    /// Runs `recipe` on SPDK's app thread and awaits what its future gives.
    ///
    /// Once the call is admitted, it runs to its end even if this future is
    /// dropped. [`CallError::Full`] comes at once and means that nothing ran.
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
                    // A caller that has gone away is normal.
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

    /// Why a call that had begun has no answer. Recipes are dropped at the end, and when they panic.
    fn unanswered(&self) -> CallError {
        match self.0.closing.load(Ordering::Acquire) {
            true => CallError::Stopped,
            false => CallError::Panicked,
        }
    }

    /// How full the mailbox is.
    pub fn mailbox_stats(&self) -> MailboxStats {
        MailboxStats {
            capacity: self.0.admission.capacity(),
            in_flight: self.0.admission.in_flight(),
            refused: self.0.admission.refused(),
        }
    }

    /// The reactors; none once SPDK is stopping for good.
    pub fn reactors(&self) -> Vec<Reactor> {
        // The gate keeps SPDK from freeing them.
        let open = self.0.gate.enter();
        open.map(|_open| reactors::read()).unwrap_or_default()
    }

    /// The recipe whose step the app thread's reactor runs right now, as the compiler names it.
    pub fn current_step(&self) -> Option<&'static str> {
        self.0.step.name()
    }

    /// The recipes that had steps of more than 100 µs, and the longest of each; of the first 64 recipes.
    pub fn long_steps(&self) -> Vec<(&'static str, Duration)> {
        let all = self.0.long.all().into_iter();
        all.map(|(name, ticks)| (name, reactors::duration(ticks)))
            .collect()
    }

    /// What configuration has cost the app thread's reactor since start.
    pub fn control_stats(&self) -> ControlStats {
        ControlStats {
            steps: self.0.steps.load(Ordering::Relaxed),
            busy: self.0.duration(&self.0.busy_ticks),
            longest: self.0.duration(&self.0.longest_ticks),
        }
    }
}

/// Brings replies to those who wait for them, until the mailbox closes.
pub(crate) async fn deliver(shared: Arc<Shared>) -> std::io::Result<()> {
    // SAFETY: an OwnedFd is open until it is dropped and always names the same
    // descriptor, and it is moved in, so nobody closes or exchanges it.
    let bell = unsafe { AsyncFd::register(shared.bell.event().descriptor()?) }?;
    loop {
        let mut ready = bell.readable().await?;
        // Before the hush: a ring after it makes a new edge, which is seen.
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
