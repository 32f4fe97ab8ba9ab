//! Events of objects, hosts, paths and reactors, in one order for all watchers.

mod log;

use std::time::SystemTime;

pub use crate::api::own::{Condition, Event, EventType};
pub use log::{Gap, Log, Ticket, Watch};

use crate::resource;

/// Maximum length of a reason, in bytes.
const REASON_MAX: usize = 512;

impl Event {
    /// An event that happens now to the object with this typed name.
    pub(crate) fn now(event_type: EventType, object: &str) -> Self {
        Self {
            time: Some(SystemTime::now().into()),
            r#type: event_type.into(),
            object: object.to_owned(),
            ..Self::default()
        }
    }

    /// Adds a reason.
    #[must_use]
    pub(crate) fn because(mut self, reason: &str) -> Self {
        let end = reason.floor_char_boundary(REASON_MAX);
        self.reason = reason.get(..end).unwrap_or_default().to_owned();
        self
    }

    /// An object's condition has become this one.
    pub(crate) fn of_condition(object: &str, condition: &resource::Condition) -> Self {
        let event = Self::now(EventType::ConditionChanged, object);
        let (condition, reason) = described(condition);
        Self {
            condition: condition.into(),
            ..event.because(reason)
        }
    }

    /// Whether it is a change of an object, which has its own revision.
    fn is_change(&self) -> bool {
        matches!(
            self.r#type(),
            EventType::Created | EventType::Updated | EventType::Deleted
        )
    }
}

/// Converts a condition to the API's, with its reason.
pub(crate) fn described(condition: &resource::Condition) -> (Condition, &str) {
    match condition {
        resource::Condition::Applied => (Condition::Applied, ""),
        resource::Condition::Pending(pending) => (Condition::Pending, &pending.reason),
        resource::Condition::Deleting { .. } => (Condition::Deleting, ""),
    }
}
