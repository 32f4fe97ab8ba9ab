//! The API's errors, in terms of resources, and their only translation into a gRPC status.
//!
//! Everything below a tonic handler returns [`Error`]; `Status::from` is called once, at the edge. A message says what
//! was wrong, with the value, and what would be right. Each status has a google.rpc `ErrorInfo` (a reason in capitals,
//! the domain `opi-spdk`), and where it helps to locate the fault also `BadRequest`, `ResourceInfo` or
//! `PreconditionFailure`.

mod spdk;
mod status;
mod subject;

pub use subject::Subject;

use std::fmt;

use status::MAX_VIOLATIONS;
pub(crate) use status::code_name;

/// The `domain` of every `ErrorInfo`.
pub const DOMAIN: &str = "opi-spdk";

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The resource, or one that it depends on, does not exist.
    #[error("{message}")]
    NotFound {
        /// The API's name of the missing resource.
        name: Subject,
        /// What was looked up.
        message: String,
    },
    /// The name, or another unique property, belongs to another resource.
    #[error("{message}")]
    AlreadyExists {
        /// The resource that has it.
        name: Subject,
        /// What collides.
        message: String,
    },
    /// The request violates rules, each with its field.
    #[error("{0}")]
    Invalid(Violations),
    /// The resource cannot be changed this way, or deleted, while another one uses it.
    #[error("{name} is in use by {user}: {remedy}")]
    InUse {
        /// The resource in use.
        name: Subject,
        /// Its user.
        user: Subject,
        /// How to free the resource.
        remedy: String,
    },
    /// The system's state does not allow the call.
    #[error("{message}")]
    FailedPrecondition {
        /// What is in the wrong state.
        subject: String,
        /// The state, and the right one.
        message: String,
    },
    /// The server does not support this.
    #[error("{0}")]
    Unimplemented(String),
    /// Memory, a table or the mailbox is full.
    #[error("{0}")]
    ResourceExhausted(String),
    /// A peer or SPDK does not answer; a retry may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// The deadline passed.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// The caller is not authenticated.
    #[error("{0}")]
    Unauthenticated(String),
    /// The caller is not allowed to do this.
    #[error("{0}")]
    PermissionDenied(String),
    /// The requested position is outside of the available range.
    #[error("{0}")]
    OutOfRange(String),
    /// A fault of the server.
    #[error("{operation} failed: {message}")]
    Internal {
        /// The failed operation.
        operation: String,
        /// Its error.
        message: String,
    },
    /// A fault of the server in the middle of an operation, whose effects are unknown.
    #[error("{operation} failed: it was cut off by a fault of the server")]
    CutOff {
        /// The operation.
        operation: String,
    },
    /// An operation failed and its effects are unknown: it goes on after a timeout, or could not be rolled back.
    #[error("{0}")]
    Unsettled(Box<Error>),
}

/// A field and the rule that it violates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path from the request: `nvme_subsystem.spec.nqn`.
    pub field: String,
    /// What is wrong with the value, and what would be right.
    pub description: String,
}

/// The violations of a request; empty if it is valid.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// Adds a violation of `field`.
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(Violation {
            field: field.into(),
            description: description.into(),
        });
    }

    /// Adds the violations of `other`, with their fields under `prefix`.
    pub fn extend_under(&mut self, prefix: &str, other: Violations) {
        self.0
            .extend(other.0.into_iter().map(|violation| Violation {
                field: format!("{prefix}.{}", violation.field),
                ..violation
            }));
    }

    /// Adds those violations of `other` whose fields have none yet.
    pub fn extend_new(&mut self, other: Violations) {
        let known = self.0.len();
        for violation in other.0 {
            if !self.0[..known].iter().any(|v| v.field == violation.field) {
                self.0.push(violation);
            }
        }
    }

    /// The violations, in the order of detection.
    pub fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.0.iter()
    }

    /// Whether the number reported to a client is reached, so that further checks are pointless.
    pub fn is_full(&self) -> bool {
        self.0.len() >= MAX_VIOLATIONS
    }

    /// `Ok` if there are no violations.
    pub fn into_result(self) -> Result<(), Error> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid(self))
        }
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, violation) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(
                f,
                "{separator}{}: {}",
                violation.field, violation.description
            )?;
        }
        Ok(())
    }
}

impl Error {
    /// An error for one field.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        let mut violations = Violations::default();
        violations.add(field, description);
        Error::Invalid(violations)
    }

    /// A field that cannot change after creation.
    pub fn immutable(field: impl Into<String>) -> Self {
        Error::invalid(
            field,
            "cannot change once it is made: delete the resource and create it with the other value",
        )
    }

    /// A resource that does not exist.
    pub fn not_found(name: impl Into<Subject>) -> Self {
        let name = name.into();
        Error::NotFound {
            message: format!("{name} was not found"),
            name,
        }
    }

    /// The state of `subject` does not allow the call.
    pub fn failed_precondition(subject: impl fmt::Display, message: impl Into<String>) -> Self {
        Error::FailedPrecondition {
            subject: subject.to_string(),
            message: message.into(),
        }
    }

    /// A volume of the configuration file, which is read-only.
    pub fn configured(name: &crate::resource::Name) -> Self {
        let what = format!(
            "{name} is a volume of the configuration file: change it there ([[volume]] name = {:?}) and \
             restart",
            name.id()
        );
        Error::failed_precondition(name, what)
    }

    /// The store of records refused a change, which is then rolled back.
    pub fn not_stored(name: &crate::resource::Name, error: &crate::state::Error) -> Self {
        let came_of_it = match error {
            crate::state::Error::Unknown(_) => {
                "whether the change is made is not known yet: it is undone once state-dir can be written, \
                 and a restart before that may find it made"
            }
            _ => "the change could not be stored, and was not made",
        };
        Self::of_store(name, came_of_it, error)
    }

    /// SPDK has removed an object, and the store of records did not take the end of the delete.
    pub fn delete_not_stored(name: &crate::resource::Name, error: &crate::state::Error) -> Self {
        let came_of_it = "it is being deleted: it is removed, and the end of the delete could not be \
                          stored yet, which is retried";
        Self::of_store(name, came_of_it, error)
    }

    fn of_store(
        name: &crate::resource::Name,
        came_of_it: &str,
        error: &crate::state::Error,
    ) -> Self {
        use crate::state::Error as Store;
        let what = |remedy: &str| format!("{name}: {came_of_it}: {error}{remedy}");
        match error {
            Store::Full(_) => Error::ResourceExhausted(what(": make room in state-dir")),
            Store::TooLarge(_) => Error::ResourceExhausted(what("")),
            Store::Conflict { .. } | Store::TooOld(_) => {
                Error::internal("storing a record", what(""))
            }
            Store::Io(_) | Store::Damaged(_) | Store::Unknown(_) => {
                Error::Unavailable(what(": look at the disk of state-dir"))
            }
            Store::Closed => Error::Unavailable(what("")),
        }
    }

    /// A fault of the server.
    pub fn internal(operation: impl Into<String>, message: impl fmt::Display) -> Self {
        Error::Internal {
            operation: operation.into(),
            message: message.to_string(),
        }
    }

    /// Prefixes the fields of the error with `prefix`: from a kind's view of its object to the sender's view of the
    /// request.
    #[must_use]
    pub fn under(self, prefix: &str) -> Self {
        match self {
            Error::Invalid(inner) => {
                let mut violations = Violations::default();
                violations.extend_under(prefix, inner);
                Error::Invalid(violations)
            }
            Error::Unsettled(inner) => inner.under(prefix).unsettled(),
            other => other,
        }
    }

    /// Marks the effects of the failed operation as unknown.
    #[must_use]
    pub fn unsettled(self) -> Self {
        match self.is_unsettled() {
            true => self,
            false => Error::Unsettled(Box::new(self)),
        }
    }

    /// Whether the effects of the failed operation are unknown.
    pub fn is_unsettled(&self) -> bool {
        matches!(self, Error::CutOff { .. } | Error::Unsettled(_))
    }

    /// Fills in the resource that an error is about, where whoever found the fault did not know the API's name.
    #[must_use]
    pub fn about(mut self, resource: &crate::resource::Name) -> Self {
        self.fill_in(resource);
        self
    }

    fn fill_in(&mut self, resource: &crate::resource::Name) {
        match self {
            Error::NotFound { name, .. } | Error::AlreadyExists { name, .. }
                if name.name().is_empty() =>
            {
                *name = resource.into();
            }
            Error::FailedPrecondition { subject, .. } if subject.is_empty() => {
                *subject = resource.to_string();
            }
            Error::Unsettled(inner) => inner.fill_in(resource),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_broken_rule_is_no_error() {
        assert_eq!(Violations::default().into_result(), Ok(()));
    }
}
