//! The event stream of a watching client.

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{Stream, unfold};
use tokio::select;
use tonic::Status;

use super::{Objects, WATCHERS};
use crate::access::Permission;
use crate::error::Error;
use crate::events::{Event, Gap};

/// A stream of events, which ends with an error that says why.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

impl Objects {
    /// Watches the events after this revision, or from now on, until the permission is lost.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a negative revision, OUT_OF_RANGE for one that the log cannot continue from,
    /// RESOURCE_EXHAUSTED at the limit of watchers.
    pub(super) fn events(
        &self,
        after: Option<i64>,
        permission: Option<Permission>,
    ) -> Result<Events, Error> {
        let after = after.map(|revision| {
            u64::try_from(revision).map_err(|_| {
                let what =
                    format!("{revision} is no revision: 0 or more, such as that of ListObjects");
                Error::invalid("after_revision", what)
            })
        });
        let after = after.transpose()?;
        let permit = Arc::clone(&self.watchers)
            .try_acquire_owned()
            .map_err(|_| {
                let what = format!("{WATCHERS} clients watch, the most that may: try again later");
                Error::ResourceExhausted(what)
            })?;
        let watch = self.shared.events.watch(after).map_err(Error::from)?;
        // The permit is released when the stream ends or the client leaves.
        let state = Some((watch, permission, permit));
        Ok(Box::pin(unfold(state, |state| async {
            let (mut watch, mut permission, permit) = state?;
            let event = select! {
                // No event is sent after the permission is lost.
                biased;
                error = lost(&mut permission) => Err(error),
                event = watch.next() => event.map_err(Error::from),
            };
            match event {
                Ok(event) => Some((Ok(Event::clone(&event)), Some((watch, permission, permit)))),
                Err(error) => Some((Err(error.into()), None)),
            }
        })))
    }
}

/// Waits until the permission is lost; without access control, forever.
async fn lost(permission: &mut Option<Permission>) -> Error {
    match permission {
        Some(permission) => permission.lost().await,
        None => pending().await,
    }
}

impl From<Gap> for Error {
    fn from(gap: Gap) -> Self {
        match gap {
            Gap::Closed => Self::Unavailable(gap.to_string()),
            Gap::TooOld { .. } | Gap::Future { .. } | Gap::Slow { .. } => {
                Self::OutOfRange(gap.to_string())
            }
        }
    }
}
