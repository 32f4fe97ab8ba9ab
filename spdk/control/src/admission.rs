//! Admission control: bounds the calls in flight by the room there is for their results (backpressure).

use std::sync::Arc;

use crate::sync::{AtomicUsize, Ordering};

/// Counts calls in flight against a fixed capacity.
pub struct Admission {
    capacity: usize,
    inside: AtomicUsize,
    refused: AtomicUsize,
}

/// One call's slot; dropping it releases the slot.
pub struct Permit(Arc<Admission>);

impl Admission {
    /// Creates a limit of `capacity` concurrent calls.
    pub fn for_calls(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            inside: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        })
    }

    /// Takes a slot. `None` if all are taken, which is counted as a refusal. Any thread.
    pub fn admit(self: &Arc<Self>) -> Option<Permit> {
        let before = self.inside.fetch_add(1, Ordering::AcqRel);
        let permit = Permit(Arc::clone(self));
        if before < self.capacity {
            return Some(permit);
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Returns the number of slots.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the number of slots in use.
    pub fn in_flight(&self) -> usize {
        self.inside.load(Ordering::Relaxed)
    }

    /// Returns how many calls were refused a slot since the start.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_given_back_is_had_again() {
        let admission = Admission::for_calls(2);
        let (one, two) = (admission.admit(), admission.admit());
        assert!(one.is_some() && two.is_some() && admission.admit().is_none());
        assert_eq!((admission.in_flight(), admission.refused()), (2, 1));
        drop(one);
        assert!(admission.admit().is_some());
        drop(two);
        assert_eq!((admission.in_flight(), admission.capacity()), (0, 2));
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::thread;

    #[test]
    fn no_more_are_inside_than_there_are_places() {
        loom::model(|| {
            let admission = Admission::for_calls(1);
            let inside = loom::sync::Arc::new(AtomicUsize::new(0));
            let callers = [(); 2].map(|()| {
                let (admission, inside) = (Arc::clone(&admission), inside.clone());
                thread::spawn(move || {
                    if let Some(permit) = admission.admit() {
                        assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0);
                        inside.fetch_sub(1, Ordering::Relaxed);
                        drop(permit);
                    }
                })
            });
            for caller in callers {
                caller.join().expect("it does not panic");
            }
            assert_eq!(admission.in_flight(), 0);
        });
    }
}
