//! The configuration call that the app thread's reactor is running: what a watchdog reports about a stalled reactor.

use std::cell::{Cell, OnceCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use spdk_control::executor;

/// A function that returns the name.
type Name = fn() -> &'static str;

/// The running step: a [`Name`], or null if none runs.
#[derive(Clone, Default)]
pub(crate) struct Current(Arc<Names>);

/// Each pointer is a [`Name`] or null.
#[derive(Default)]
struct Names {
    running: AtomicPtr<()>,
    /// The step that ran last and has not been taken yet.
    last: AtomicPtr<()>,
}

thread_local! {
    /// Where the steps of this thread are told.
    static HERE: OnceCell<Current> = const { OnceCell::new() };
    /// The step that has begun last on this thread: a [`Name`], or null.
    static LATEST: Cell<*mut ()> = const { Cell::new(null_mut()) };
}

/// Takes the name of the recipe whose step has begun last on this thread, if one has since the last time.
pub(crate) fn take_latest() -> Option<&'static str> {
    named(LATEST.replace(null_mut()))
}

/// Starts a task on the current thread, as [`executor::spawn_local`] does. If a step starts it, its steps carry the
/// name of the recipe of that one.
pub(crate) fn spawn_local(task: impl Future<Output = ()> + 'static) {
    match Named::here() {
        Named(Some((current, name))) => executor::spawn_local(current.steps(name, task)),
        Named(None) => executor::spawn_local(task),
    }
}

/// The recipe of a step, for what C calls back on its behalf.
pub(crate) struct Named(Option<(Current, Name)>);

impl Named {
    /// Returns the recipe of the running step, if any.
    pub(crate) fn here() -> Self {
        let current = HERE.with(|here| here.get().cloned());
        let name = (current.as_ref()).and_then(|it| function(it.0.running.load(Ordering::Relaxed)));
        Self(current.zip(name))
    }

    /// Runs a function under the name of the recipe.
    pub(crate) fn run<T>(&self, step: impl FnOnce() -> T) -> T {
        let _running = self.0.as_ref().map(|(current, name)| current.begin(*name));
        step()
    }
}

impl Current {
    /// Wraps the future so that its steps carry the name of the recipe `F` that created it.
    pub(crate) fn named<F, Fut: Future>(
        &self,
        future: Fut,
    ) -> impl Future<Output = Fut::Output> + use<F, Fut> {
        self.steps(std::any::type_name::<F>, future)
    }

    fn steps<Fut: Future>(
        &self,
        name: Name,
        future: Fut,
    ) -> impl Future<Output = Fut::Output> + use<Fut> {
        let current = self.clone();
        async move {
            let mut future = pin!(future);
            poll_fn(move |context| {
                let _running = current.begin(name);
                future.as_mut().poll(context)
            })
            .await
        }
    }

    /// Returns the name of the running step.
    pub(crate) fn name(&self) -> Option<&'static str> {
        named(self.0.running.load(Ordering::Relaxed))
    }

    /// Takes the recipe of the step that has just ended, for [`Long::note`]. App thread.
    pub(crate) fn take_last(&self) -> Ended {
        let name = self.0.last.load(Ordering::Relaxed);
        self.0.last.store(null_mut(), Ordering::Relaxed);
        Ended(name)
    }

    fn begin(&self, name: Name) -> Running<'_> {
        HERE.with(|here| {
            here.get_or_init(|| self.clone());
        });
        LATEST.set(name as *mut ());
        let outer = self.0.running.load(Ordering::Relaxed);
        self.0.running.store(name as *mut (), Ordering::Relaxed);
        self.0.last.store(name as *mut (), Ordering::Relaxed);
        Running {
            current: self,
            outer,
        }
    }
}

/// Returns the name that a pointer stands for.
fn named(name: *mut ()) -> Option<&'static str> {
    function(name).map(|name| name())
}

fn function(name: *mut ()) -> Option<Name> {
    if name.is_null() {
        return None;
    }
    // SAFETY: invariant of `Names`: a non-null pointer is a function of type `Name`, stored by `begin`.
    Some(unsafe { std::mem::transmute::<*mut (), Name>(name) })
}

/// The recipe of an ended step: a [`Name`], or null if the step has none.
pub(crate) struct Ended(*mut ());

/// Maximum number of recipes recorded.
const RECIPES: usize = 64;

/// The longest step of each recipe with long steps, for the first [`RECIPES`] of them. The app thread writes, any
/// thread reads.
pub(crate) struct Long {
    limit: u64,
    of: [Longest; RECIPES],
}

/// The record of one recipe.
#[derive(Default)]
struct Longest {
    name: AtomicPtr<()>,
    ticks: AtomicU64,
}

impl Long {
    /// Creates a record of steps longer than `limit` ticks.
    pub(crate) fn over(limit: u64) -> Self {
        Self {
            limit,
            of: std::array::from_fn(|_| Longest::default()),
        }
    }

    /// Records a step. App thread.
    pub(crate) fn note(&self, Ended(name): Ended, ticks: u64) {
        if ticks <= self.limit || name.is_null() {
            return;
        }
        let is_its = |of: &&Longest| {
            let known = of.name.load(Ordering::Relaxed);
            known == name || known.is_null()
        };
        if let Some(of) = self.of.iter().find(is_its) {
            of.ticks.fetch_max(ticks, Ordering::Relaxed);
            of.name.store(name, Ordering::Release);
        }
    }

    /// Returns the recipes with long steps, and the ticks of the longest step of each.
    pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
        let of = self.of.iter().map_while(|of| {
            let name = named(of.name.load(Ordering::Acquire))?;
            Some((name, of.ticks.load(Ordering::Relaxed)))
        });
        of.collect()
    }
}

/// Marks the step as ended when dropped, also on a panic.
struct Running<'a> {
    current: &'a Current,
    /// The step in which this one runs: a task is polled where it is started.
    outer: *mut (),
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.current.0.running.store(self.outer, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    struct Recipe;

    #[test]
    fn a_step_has_its_recipes_name_while_it_runs() {
        let current = Current::default();
        let seen = current.clone();
        let future = current.named::<Recipe, _>(async move {
            let first = seen.name();
            spdk_control::executor::yield_now().await;
            (first, seen.name())
        });
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        assert!(future.as_mut().poll(&mut context).is_pending());
        assert_eq!(current.name(), None, "between its steps");
        let Poll::Ready((first, second)) = future.as_mut().poll(&mut context) else {
            panic!("it has two steps");
        };
        assert!(
            first.is_some_and(|name| name.ends_with("Recipe")),
            "{first:?}"
        );
        assert_eq!(first, second);
        assert_eq!(current.name(), None);
    }

    #[test]
    fn a_step_within_another_gives_its_name_back() {
        let current = Current::default();
        let outer = current.begin(std::any::type_name::<Recipe>);
        drop(current.begin(std::any::type_name::<u8>));
        assert_eq!(current.name(), Some(std::any::type_name::<Recipe>()));
        drop(outer);
        assert_eq!(current.name(), None);
    }

    #[test]
    fn the_longest_of_the_long_steps_of_each_recipe_is_known() {
        struct Other;
        let (current, long) = (Current::default(), Long::over(10));
        let step = |name: Name, ticks| {
            drop(current.begin(name));
            long.note(current.take_last(), ticks);
        };
        step(std::any::type_name::<Recipe>, 10);
        assert_eq!(long.all(), []);
        step(std::any::type_name::<Recipe>, 12);
        step(std::any::type_name::<Other>, 30);
        step(std::any::type_name::<Recipe>, 11);
        long.note(current.take_last(), 99);
        let found = long.all().into_iter();
        let found: Vec<_> = found
            .map(|(name, t)| (name.rsplit("::").next(), t))
            .collect();
        assert_eq!(found, [(Some("Recipe"), 12), (Some("Other"), 30)]);
    }
}
