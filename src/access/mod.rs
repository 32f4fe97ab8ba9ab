//! Access control: roles of clients, identified by certificate, bearer token or local user.
//!
//! ```text
//! request ─► who: which grants of the file fit it ─► layer: does one of them allow the method, with these
//!            (certificate, token, uid)                      fields, on this object? ─► service
//! ```
//!
//! Without a file (`--access-file`), every client of a management port may use the whole API.

mod check;
mod layer;
mod methods;
mod permission;
mod policy;
mod redact;
mod san;
mod who;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use axum::middleware::Next;
use tokio::sync::watch::Sender;

use crate::error::Error;
use crate::gateway;

pub use layer::Restricted;
pub use permission::Permission;
use policy::{Grant, Policy};

/// The grants in use, which a reload replaces. Clones share them.
#[derive(Clone, Default)]
pub struct Access(Option<Arc<InForce>>);

struct InForce {
    file: PathBuf,
    policy: Sender<Arc<Policy>>,
}

impl Access {
    /// Reads the file of grants.
    ///
    /// # Errors
    /// One line for the operator: what is wrong, and where.
    pub fn read(file: &Path) -> Result<Self, String> {
        let policy = Policy::read(file)?;
        Ok(Self(Some(Arc::new(InForce {
            file: file.to_owned(),
            policy: Sender::new(Arc::new(policy)),
        }))))
    }

    /// Reads the file again, and ends streams that its grants do not allow. On failure the previous grants stay in use.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn reload(&self) -> Result<(), String> {
        if let Some(in_force) = &self.0 {
            let new = Arc::new(Policy::read(&in_force.file)?);
            in_force.policy.send_replace(new);
        }
        Ok(())
    }

    /// Whether a client is identified by a token, which is readable on the network without TLS.
    pub fn has_tokens(&self) -> bool {
        self.policy().is_some_and(|policy| policy.has_tokens())
    }

    /// Whether a client is identified by a certificate, which needs TLS.
    pub fn has_certificates(&self) -> bool {
        self.policy()
            .is_some_and(|policy| policy.has_certificates())
    }

    /// Whether a grant is for a user of this machine, who then has to reach the Unix socket of the API.
    pub fn has_users(&self) -> bool {
        self.policy().is_some_and(|policy| policy.has_users())
    }

    /// Whether a user of this machine may use the API by its user ID.
    pub fn knows_user(&self, uid: u32) -> bool {
        self.policy()
            .is_none_or(|policy| who::is_owner(uid) || policy.of_uid(uid).next().is_some())
    }

    fn policy(&self) -> Option<Arc<Policy>> {
        let in_force = self.0.as_ref()?;
        Some(Arc::clone(&in_force.policy.borrow()))
    }

    /// The grants of a request's sender; `None` without access control.
    ///
    /// # Errors
    /// UNAUTHENTICATED for a sender without grants.
    fn grants<B>(&self, request: &axum::http::Request<B>) -> Result<Option<Vec<Grant>>, Error> {
        match self.policy() {
            None => Ok(None),
            Some(policy) => who::grants(&policy, request).map(Some),
        }
    }

    /// Has the stream that a request begins end once its sender may not read all objects any more.
    fn keep_checking<B>(&self, request: &mut axum::http::Request<B>) {
        if let Some(in_force) = &self.0 {
            let permission = Permission::new(in_force.policy.subscribe(), request);
            request.extensions_mut().insert(permission);
        }
    }

    /// Layer for routes outside of the API that show all objects: requires a grant to read them all.
    pub async fn readers(
        State(access): State<Self>,
        mut request: Request,
        next: Next,
    ) -> Response<Body> {
        let allowed = match access.grants(&request) {
            Ok(None) => Ok(()),
            Ok(Some(grants)) => check::read_all(&grants),
            Err(error) => Err(error),
        };
        match allowed {
            Ok(()) => {
                access.keep_checking(&mut request);
                next.run(request).await
            }
            Err(error) => gateway::refuse(error.into(), None),
        }
    }
}
