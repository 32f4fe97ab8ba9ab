//! Converts SPDK's errors: the one place where an errno gets its API meaning.
//!
//! A kind that knows more about a failure (such as the field with an address in use) converts it itself; this is the
//! default for all others.

use std::io::ErrorKind;

use super::Error;

impl From<spdk::Error> for Error {
    fn from(error: spdk::Error) -> Self {
        let message = error.to_string();
        let subject = error.detail.unwrap_or_else(|| error.operation.to_owned());
        let not_found = |name: String| Error::NotFound {
            name: name.into(),
            message: message.clone(),
        };
        // std::io::ErrorKind has no variant for ENODEV.
        if error.errno.0 == spdk::errno::ENODEV {
            return not_found(subject);
        }
        match std::io::Error::from_raw_os_error(error.errno.0).kind() {
            ErrorKind::NotFound => not_found(subject),
            ErrorKind::AlreadyExists => Error::AlreadyExists {
                name: subject.into(),
                message,
            },
            ErrorKind::ResourceBusy
            | ErrorKind::PermissionDenied
            | ErrorKind::AddrInUse
            | ErrorKind::AddrNotAvailable
            | ErrorKind::ReadOnlyFilesystem => Error::FailedPrecondition { subject, message },
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
            spdk::CallError::Panicked => {
                Error::internal("a step in SPDK", "it was cut off by a fault of the server")
            }
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
}
