//! Which configuration call the app thread's reactor works for right now: what a watchdog tells of a
//! reactor that does not turn.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Gives a name.
type Name = fn() -> &'static str;

/// The step that runs: a [`Name`], or null while none does.
#[derive(Clone, Default)]
pub(crate) struct Current(Arc<AtomicPtr<()>>);

impl Current {
    /// The future; its steps go by the name of the recipe `F` that makes it.
    pub(crate) fn named<F, Fut: Future>(
        &self,
        future: Fut,
    ) -> impl Future<Output = Fut::Output> + use<F, Fut> {
        let current = self.clone();
        async move {
            let mut future = pin!(future);
            poll_fn(move |context| {
                let _running = current.begin(std::any::type_name::<F>);
                future.as_mut().poll(context)
            })
            .await
        }
    }

    /// The name of the step that runs.
    pub(crate) fn name(&self) -> Option<&'static str> {
        let name = self.0.load(Ordering::Relaxed);
        if name.is_null() {
            return None;
        }
        // SAFETY: what is stored and not null is a function of this type, by `begin`.
        let name = unsafe { std::mem::transmute::<*mut (), Name>(name) };
        Some(name())
    }

    fn begin(&self, name: Name) -> Running<'_> {
        self.0.store(name as *mut (), Ordering::Relaxed);
        Running(self)
    }
}

/// Ends the step, also when it panics.
struct Running<'a>(&'a Current);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.0.store(null_mut(), Ordering::Relaxed);
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
            crate::executor::yield_now().await;
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
}
