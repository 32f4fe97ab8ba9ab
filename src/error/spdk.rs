//! Converts SPDK's errors: the one place where an errno gets its API meaning.
//!
//! A kind that knows more about a failure (such as the field with an address in use) converts it itself; this is the
//! default for all others. SPDK does not know the API's names: the resource is left open, for
//! [`Error::about`] to fill in where the object of the call is known.

use std::io::ErrorKind;

use super::{Error, Subject};

impl Error {
    /// Joins both errors of a step in SPDK: of the call, and of the step.
    pub(crate) fn joined<T>(
        answer: Result<Result<T, spdk::Error>, spdk::CallError>,
    ) -> Result<T, Self> {
        Ok(answer??)
    }

    /// Converts an error as `into` says, which knows more about it; whether its effects are known stays.
    pub(crate) fn of(error: spdk::Error, into: impl FnOnce(spdk::Error) -> Self) -> Self {
        if error.is_cut_off {
            return Error::CutOff {
                operation: error.operation.to_owned(),
            };
        }
        match error.is_unsettled {
            true => into(error).unsettled(),
            false => into(error),
        }
    }
}

impl From<spdk::Error> for Error {
    fn from(error: spdk::Error) -> Self {
        Self::of(error, by_errno)
    }
}

fn by_errno(error: spdk::Error) -> Error {
    let message = error.to_string();
    let not_found = || Error::NotFound {
        name: Subject::default(),
        message: message.clone(),
    };
    // std::io::ErrorKind has no variant for ENODEV.
    if error.errno.0 == spdk::errno::ENODEV {
        return not_found();
    }
    match std::io::Error::from_raw_os_error(error.errno.0).kind() {
        ErrorKind::NotFound => not_found(),
        ErrorKind::AlreadyExists => Error::AlreadyExists {
            name: Subject::default(),
            message,
        },
        ErrorKind::ResourceBusy
        | ErrorKind::PermissionDenied
        | ErrorKind::AddrInUse
        | ErrorKind::AddrNotAvailable
        | ErrorKind::ReadOnlyFilesystem => Error::failed_precondition("", message),
        ErrorKind::OutOfMemory | ErrorKind::StorageFull | ErrorKind::WouldBlock => {
            Error::ResourceExhausted(message)
        }
        ErrorKind::Unsupported => Error::Unimplemented(message),
        ErrorKind::TimedOut => Error::DeadlineExceeded(message),
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::NotConnected
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable => Error::Unavailable(message),
        _ => Error::internal(error.operation, message),
    }
}

impl From<spdk::CallError> for Error {
    fn from(error: spdk::CallError) -> Self {
        match error {
            spdk::CallError::Full => Error::ResourceExhausted(
                "SPDK's request ring is full: try again when the calls under way are done".into(),
            ),
            spdk::CallError::Stopped => {
                Error::Unavailable("SPDK is stopping and takes no more requests".into())
            }
            spdk::CallError::Panicked => Error::CutOff {
                operation: "a step in SPDK".to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_becomes_the_status_that_a_client_can_act_on() {
        let of = |errno: i32| Error::from(spdk::Error::new("create bdev", -errno)).code();
        assert_eq!(of(17), tonic::Code::AlreadyExists);
        assert_eq!(of(19), tonic::Code::NotFound);
        assert_eq!(of(16), tonic::Code::FailedPrecondition);
        assert_eq!(of(12), tonic::Code::ResourceExhausted);
        assert_eq!(of(98), tonic::Code::FailedPrecondition);
        assert_eq!(of(111), tonic::Code::Unavailable);
        assert_eq!(of(5), tonic::Code::Internal);
    }

    #[test]
    fn an_operation_that_a_panic_cut_off_has_unknown_effects() {
        for errno in [5, 17, 19, 125] {
            let mut error = spdk::Error::new("create bdev", -errno);
            error.is_cut_off = true;
            let error = Error::from(error);
            assert!(matches!(error, Error::CutOff { .. }), "{error:?}");
            assert_eq!(error.code(), tonic::Code::Internal);
        }
    }

    #[test]
    fn the_resource_of_an_error_is_the_object_of_the_call_and_no_sentence() {
        use tonic_types::StatusExt;
        let name = crate::resource::Name::new("nullVolumes/a".into(), Some("volumes/a".into()));
        for errno in [17, 19, 16] {
            let error = spdk::Error::new("create bdev", -errno).with_detail("a sentence about it");
            let status = tonic::Status::from(Error::from(error).about(&name));
            let details = status.get_error_details();
            let info = details.error_info().expect("each error has one");
            let named = (info.metadata.get("name")).or_else(|| info.metadata.get("subject"));
            assert_eq!(named.map(String::as_str), Some("volumes/a"), "{status:?}");
            assert!(status.message().contains("a sentence"), "{status:?}");
        }
        // A kind's own word stays.
        let other = Error::not_found(&crate::resource::Key::from("nvmeSubsystems/s")).about(&name);
        assert!(other.to_string().contains("nvmeSubsystems/s"));
    }
}
