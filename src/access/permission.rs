//! Permission of a running stream, which a reload of the grants may take away.

use std::future::pending;
use std::sync::Arc;

use axum::http::Request;
use axum::http::header::AUTHORIZATION;
use tokio::sync::watch::Receiver;

use super::policy::Policy;
use super::{check, who};
use crate::error::Error;
use crate::server::Caller;

/// The permission to read of all objects, with which a stream was begun. An extension of the request.
#[derive(Clone)]
pub struct Permission {
    policy: Receiver<Arc<Policy>>,
    /// What the sender is known by.
    sender: Request<()>,
}

impl Permission {
    /// The permission of a request's sender, which was checked against these grants or earlier ones.
    pub(super) fn new<B>(mut policy: Receiver<Arc<Policy>>, request: &Request<B>) -> Self {
        let mut sender = Request::new(());
        if let Some(caller) = request.extensions().get::<Caller>() {
            sender.extensions_mut().insert(caller.clone());
        }
        if let Some(token) = request.headers().get(AUTHORIZATION) {
            sender.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        // A reload between the check and now is not missed.
        policy.mark_changed();
        Self { policy, sender }
    }

    /// Waits until the grants in use no longer allow it; returns what a new call would get: UNAUTHENTICATED or
    /// PERMISSION_DENIED. Cancel safe.
    pub async fn lost(&mut self) -> Error {
        loop {
            if self.policy.changed().await.is_err() {
                return pending().await;
            }
            let policy = Arc::clone(&self.policy.borrow_and_update());
            let grants = who::grants(&policy, &self.sender);
            if let Err(error) = grants.and_then(|grants| check::read_all(&grants)) {
                return error;
            }
        }
    }
}
