//! The only translation of [`Error`] into a gRPC status, with its details.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{DOMAIN, Error};

impl Error {
    pub(super) fn code(&self) -> Code {
        match self {
            Error::NotFound { .. } => Code::NotFound,
            Error::AlreadyExists { .. } => Code::AlreadyExists,
            Error::Invalid(_) => Code::InvalidArgument,
            Error::InUse { .. } | Error::FailedPrecondition { .. } => Code::FailedPrecondition,
            Error::Unimplemented(_) => Code::Unimplemented,
            Error::ResourceExhausted(_) => Code::ResourceExhausted,
            Error::Unavailable(_) => Code::Unavailable,
            Error::DeadlineExceeded(_) => Code::DeadlineExceeded,
            Error::Unauthenticated(_) => Code::Unauthenticated,
            Error::PermissionDenied(_) => Code::PermissionDenied,
            Error::OutOfRange(_) => Code::OutOfRange,
            Error::Internal { .. } | Error::CutOff { .. } => Code::Internal,
            Error::Unsettled(inner) => inner.code(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Error::NotFound { .. } => "RESOURCE_NOT_FOUND",
            Error::AlreadyExists { .. } => "RESOURCE_ALREADY_EXISTS",
            Error::Invalid(_) => "FIELD_INVALID",
            Error::InUse { .. } => "RESOURCE_IN_USE",
            Error::FailedPrecondition { .. } => "WRONG_STATE",
            Error::Unimplemented(_) => "NOT_IMPLEMENTED",
            Error::ResourceExhausted(_) => "RESOURCE_EXHAUSTED",
            Error::Unavailable(_) => "UNAVAILABLE",
            Error::DeadlineExceeded(_) => "DEADLINE_EXCEEDED",
            Error::Unauthenticated(_) => "NOT_KNOWN",
            Error::PermissionDenied(_) => "NOT_ALLOWED",
            Error::OutOfRange(_) => "OUT_OF_RANGE",
            Error::Internal { .. } | Error::CutOff { .. } => "INTERNAL",
            Error::Unsettled(inner) => inner.reason(),
        }
    }

    fn details(&self) -> ErrorDetails {
        if let Error::Unsettled(inner) = self {
            return inner.details();
        }
        let mut details = ErrorDetails::new();
        let mut metadata = HashMap::new();
        let mut note = |key: &str, value: &str| {
            metadata.insert(key.to_owned(), short(value));
        };
        match self {
            Error::NotFound { name, message } | Error::AlreadyExists { name, message } => {
                note("name", name.name());
                let (kind, name) = (name.resource_type(), short(name.name()));
                details.set_resource_info(kind, name, "", short(message));
            }
            Error::Invalid(violations) => {
                for violation in violations.iter().take(MAX_VIOLATIONS) {
                    details.add_bad_request_violation(
                        short(&violation.field),
                        short(&violation.description),
                    );
                }
            }
            Error::InUse { name, user, .. } => {
                note("name", name.name());
                note("user", user.name());
                let message = short(&self.to_string());
                details.add_precondition_failure_violation(
                    "IN_USE",
                    short(name.name()),
                    message.clone(),
                );
                let (kind, user) = (name.resource_type(), short(user.name()));
                details.set_resource_info(kind, short(name.name()), user, message);
            }
            Error::FailedPrecondition { subject, message } => {
                note("subject", subject);
                details.add_precondition_failure_violation("STATE", short(subject), short(message));
            }
            Error::Internal { operation, .. } | Error::CutOff { operation } => {
                note("operation", operation);
            }
            Error::Unimplemented(_)
            | Error::ResourceExhausted(_)
            | Error::Unavailable(_)
            | Error::DeadlineExceeded(_)
            | Error::Unauthenticated(_)
            | Error::PermissionDenied(_)
            | Error::OutOfRange(_)
            | Error::Unsettled(_) => {}
        }
        details.set_error_info(self.reason(), DOMAIN, metadata);
        details
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = cut(&error.to_string(), MAX_MESSAGE);
        Status::with_error_details(error.code(), message, error.details())
    }
}

/// Limits of a status: bytes of the message, bytes of each text in its details, and number of violations. A status
/// travels in HTTP/2 headers, partly three times, and clients accept about 16 KiB of them.
const MAX_MESSAGE: usize = 1024;
const MAX_DETAIL: usize = 320;
pub(super) const MAX_VIOLATIONS: usize = 8;

fn short(text: &str) -> String {
    cut(text, MAX_DETAIL)
}

fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max - "...".len());
    format!("{}...", &text[..end])
}

/// The name of a code in gRPC's documentation.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Violations;

    #[test]
    fn every_broken_field_is_named_in_the_message_and_the_details() {
        let mut violations = Violations::default();
        violations.add("spec.nqn", "is empty");
        violations.add("spec.psk", "is too short");
        let status = Status::from(Error::Invalid(violations).under("nvme_subsystem"));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.message(),
            "nvme_subsystem.spec.nqn: is empty; nvme_subsystem.spec.psk: is too short"
        );
        let details = status.get_error_details();
        let fields: Vec<_> = details
            .bad_request()
            .unwrap()
            .field_violations
            .iter()
            .collect();
        assert_eq!(fields[0].field, "nvme_subsystem.spec.nqn");
        assert_eq!(fields[1].description, "is too short");
        assert_eq!(details.error_info().unwrap().reason, "FIELD_INVALID");
        assert_eq!(details.error_info().unwrap().domain, DOMAIN);
    }

    #[test]
    fn what_is_in_use_is_answered_with_its_user() {
        let status = Status::from(Error::InUse {
            name: "volumes/a".into(),
            user: "nvmeSubsystems/s/nvmeNamespaces/n".into(),
            remedy: "delete that first".into(),
        });
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(
            status.message(),
            "volumes/a is in use by nvmeSubsystems/s/nvmeNamespaces/n: delete that first"
        );
        let details = status.get_error_details();
        assert_eq!(
            details.error_info().unwrap().metadata["user"],
            "nvmeSubsystems/s/nvmeNamespaces/n"
        );
        assert_eq!(
            details.precondition_failure().unwrap().violations[0].subject,
            "volumes/a"
        );
    }

    #[test]
    fn a_status_fits_into_the_headers_that_clients_take() {
        let mut violations = Violations::default();
        for _ in 0..100 {
            violations.add("field", "\u{fc}".repeat(1 << 20));
        }
        let status = Status::from(Error::Invalid(violations));
        assert!(status.message().len() <= MAX_MESSAGE && status.message().ends_with("..."));
        assert!(status.message().len() * 3 + status.details().len() * 4 / 3 < 12 << 10);
    }
}
