//! Futures on SPDK's app thread.
//!
//! A task is polled at once when it is spawned, and then each time it is woken. A wake on the app thread (nearly
//! always from a C callback) puts the task into the thread's own queue; a wake from another thread goes through the
//! mailbox.
//!
//! ```text
//! spawn ─► polled ─┬─ ready ─► dropped
//!            ▲     └─ pending ── wake ─► queued ─┐
//!            └───────────── run_one ◄────────────┘
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

/// Identifies a task on its thread.
pub type TaskId = u64;
type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Forwards a wake from another thread to the app thread.
pub trait RemoteWake: Send + Sync {
    /// Has [`wake`] called with `task` on the app thread, eventually.
    fn wake_remotely(&self, task: TaskId);
}

#[derive(Default)]
struct Executor {
    next: Cell<TaskId>,
    tasks: RefCell<HashMap<TaskId, (Task, Waker)>>,
    woken: RefCell<VecDeque<TaskId>>,
    remote: RefCell<Option<Arc<dyn RemoteWake>>>,
    panicked: Cell<Option<fn()>>,
}

thread_local! {
    static EXECUTOR: Executor = Executor::default();
}

/// Makes the current thread the one that runs tasks. `panicked` is called after a task has panicked, before that
/// task is dropped.
pub fn start(remote: Arc<dyn RemoteWake>, panicked: fn()) {
    EXECUTOR.with(|executor| {
        *executor.remote.borrow_mut() = Some(remote);
        executor.panicked.set(Some(panicked));
    });
}

/// Drops all unfinished tasks. The current thread runs no tasks from then on.
pub fn stop() {
    EXECUTOR.with(|executor| {
        let tasks = std::mem::take(&mut *executor.tasks.borrow_mut());
        drop(tasks);
        executor.woken.borrow_mut().clear();
        *executor.remote.borrow_mut() = None;
        executor.panicked.set(None);
    });
}

struct TaskWaker {
    task: TaskId,
    remote: Arc<dyn RemoteWake>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let here = EXECUTOR
            .try_with(|executor| executor.remote.borrow().is_some())
            .unwrap_or(false);
        if here {
            wake(self.task);
        } else {
            self.remote.wake_remotely(self.task);
        }
    }
}

/// Queues a task of this thread to be polled. Waking a task that has ended has no effect.
pub fn wake(task: TaskId) {
    EXECUTOR.with(|executor| executor.woken.borrow_mut().push_back(task));
}

/// Queues every task, for wakes that do not say which task they are for.
pub fn wake_all() {
    EXECUTOR.with(|executor| {
        let tasks = executor.tasks.borrow();
        executor.woken.borrow_mut().extend(tasks.keys());
    });
}

/// Starts a task on the current thread and polls it at once. On a thread that runs no tasks (during teardown) the
/// future is dropped.
pub fn spawn_local(future: impl Future<Output = ()> + 'static) {
    let Some(remote) = EXECUTOR.with(|executor| executor.remote.borrow().clone()) else {
        return;
    };
    let task = EXECUTOR.with(|executor| executor.next.replace(executor.next.get() + 1));
    let waker = Waker::from(Arc::new(TaskWaker { task, remote }));
    poll(task, Box::pin(future), waker);
}

/// Returns whether a task is queued to be polled.
pub fn has_woken() -> bool {
    EXECUTOR.with(|executor| !executor.woken.borrow().is_empty())
}

/// Returns whether no task exists, waiting ones included.
pub fn is_empty() -> bool {
    EXECUTOR.with(|executor| executor.tasks.borrow().is_empty())
}

/// Polls the task at the front of the queue. `false` if the queue is empty.
pub fn run_one() -> bool {
    let Some(task) = EXECUTOR.with(|executor| executor.woken.borrow_mut().pop_front()) else {
        return false;
    };
    let found = EXECUTOR.with(|executor| executor.tasks.borrow_mut().remove(&task));
    if let Some((future, waker)) = found {
        poll(task, future, waker);
    }
    true
}

/// Yields to the reactor for one turn.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Resolves to the future's output, or to `None` if the future panics.
pub async fn caught<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        let step = AssertUnwindSafe(|| future.as_mut().poll(context));
        match std::panic::catch_unwind(step) {
            Ok(step) => step.map(Some),
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

/// Polls a task once. The task is out of the table meanwhile, so that it can spawn and wake others. A panic ends
/// that task alone: unwinding into C would be undefined behavior.
fn poll(task: TaskId, mut future: Task, waker: Waker) {
    let step = std::panic::catch_unwind(AssertUnwindSafe(|| {
        future.as_mut().poll(&mut Context::from_waker(&waker))
    }));
    match step {
        Ok(Poll::Pending) => EXECUTOR.with(|executor| {
            executor.tasks.borrow_mut().insert(task, (future, waker));
        }),
        Ok(Poll::Ready(())) => {}
        Err(_) => {
            let told = EXECUTOR.with(|executor| executor.panicked.get());
            if let Some(tell) = told {
                tell();
            }
            // What the future owns may panic again when dropped.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(move || drop(future)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;
    use std::sync::Mutex;

    thread_local! {
        static PANICS: Cell<u32> = const { Cell::new(0) };
    }

    #[derive(Default)]
    struct Recorder(Mutex<Vec<TaskId>>);
    impl RemoteWake for Recorder {
        fn wake_remotely(&self, task: TaskId) {
            self.0.lock().expect("not poisoned").push(task);
        }
    }

    fn started() -> Arc<Recorder> {
        let recorder = Arc::new(Recorder::default());
        start(recorder.clone(), || PANICS.set(PANICS.get() + 1));
        recorder
    }

    #[test]
    fn a_task_runs_until_its_first_wait_when_spawned() {
        started();
        let (promise, pending) = crate::completion::completion::<u32>();
        let seen = Rc::new(Cell::new(0));
        let result = seen.clone();
        spawn_local(async move {
            result.set(1);
            result.set(pending.await.unwrap_or(0));
        });
        assert_eq!(seen.get(), 1);
        assert!(!run_one());
        promise.complete(2);
        assert_eq!(seen.get(), 1, "a wake queues, it does not poll");
        assert!(run_one());
        assert_eq!(seen.get(), 2);
        stop();
    }

    #[test]
    fn a_panicking_task_takes_nothing_else_down() {
        started();
        let seen = Rc::new(Cell::new(false));
        let result = seen.clone();
        spawn_local(async { panic!("expected by this test") });
        spawn_local(async move { result.set(true) });
        assert!(seen.get());
        assert_eq!(PANICS.get(), 1);
        stop();
    }

    #[test]
    fn a_panic_that_is_caught_leaves_its_task_to_go_on() {
        started();
        let seen = Rc::new(Cell::new((None, None)));
        let result = seen.clone();
        spawn_local(async move {
            let panics = caught(async { panic!("expected by this test") }).await;
            result.set((panics, caught(async { 1 }).await));
        });
        assert_eq!(seen.get(), (None::<()>, Some(1)));
        stop();
    }

    #[test]
    fn a_wake_from_another_thread_goes_through_the_mailbox() {
        let recorder = started();
        let elsewhere = Arc::new(Mutex::new((0, None::<Waker>)));
        let seen = Rc::new(Cell::new(0));
        let (result, value) = (seen.clone(), elsewhere.clone());
        spawn_local(async move {
            let value = std::future::poll_fn(|context| {
                let mut value = value.lock().expect("not poisoned");
                value.1 = Some(context.waker().clone());
                match value.0 {
                    0 => Poll::Pending,
                    there => Poll::Ready(there),
                }
            });
            result.set(value.await);
        });
        let other = std::thread::spawn(move || {
            let mut value = elsewhere.lock().expect("not poisoned");
            value.0 = 5;
            value.1.take().expect("it was polled").wake();
        });
        other.join().expect("it does not panic");
        let woken = std::mem::take(&mut *recorder.0.lock().expect("not poisoned"));
        assert_eq!(woken.len(), 1);
        assert!(!run_one());
        wake(woken[0]);
        assert!(run_one());
        assert_eq!(seen.get(), 5);
        stop();
    }

    #[test]
    fn waking_all_polls_a_task_whose_own_wake_was_lost() {
        started();
        let turns = Rc::new(Cell::new(0));
        let count = turns.clone();
        spawn_local(std::future::poll_fn(move |_| {
            count.set(count.get() + 1);
            if count.get() == 2 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }));
        wake_all();
        assert!(run_one());
        assert_eq!(turns.get(), 2);
        stop();
    }
}
