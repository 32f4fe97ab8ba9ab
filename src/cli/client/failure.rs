//! Why a command failed: the printed message and the exit status.

use std::fmt;
use std::process::ExitCode;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Offset of the exit status from the gRPC code.
const OF_CODE: u8 = 10;

/// The exit statuses, for the help.
pub(super) const EXIT_STATUS: &str = "Exit status: 0; 1 for what is wrong here (a file, the connection's settings); \
     2 for a wrong command line; 10 and the number of the gRPC code for what the server refuses or does not \
     answer: 13 INVALID_ARGUMENT, 14 DEADLINE_EXCEEDED, 15 NOT_FOUND, 16 ALREADY_EXISTS, 17 PERMISSION_DENIED, \
     18 RESOURCE_EXHAUSTED, 19 FAILED_PRECONDITION, 21 OUT_OF_RANGE, 22 UNIMPLEMENTED, 24 UNAVAILABLE.";

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// A local fault: a file, a setting.
    Here(String),
    /// A wrong command line.
    Usage(String),
    /// No server answers at the address.
    Unreachable {
        /// The address.
        address: String,
        /// The reason.
        reason: String,
    },
    /// The server refused a call.
    Refused {
        /// The status.
        status: Box<Status>,
        /// The request's field that holds the object. Removed from field paths, since the user did not write it.
        object: Option<String>,
    },
}

impl Failure {
    /// A refused call.
    pub fn refused(status: Status, object: Option<&str>) -> Self {
        Self::Refused {
            status: Box::new(status),
            object: object.map(str::to_owned),
        }
    }

    /// The exit status of the process.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Here(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => OF_CODE + Code::Unavailable as u8,
            Self::Refused { status, .. } => OF_CODE + status.code() as u8,
        }
    }

    /// Prints the failure and returns the exit status.
    pub fn report(&self) -> ExitCode {
        eprintln!("opi-spdk: {self}");
        ExitCode::from(self.exit_status())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(what) => f.write_str(what),
            Self::Usage(what) => write!(f, "{what}; --help tells what there is"),
            Self::Unreachable { address, reason } => {
                write!(f, "no opi-spdk answers at {address}: {reason}")
            }
            Self::Refused { status, object } => {
                let code = crate::error::code_name(status.code());
                let details = status.get_error_details();
                let violations = details.bad_request().map(|bad| &bad.field_violations);
                let Some(violations) = violations.filter(|fields| !fields.is_empty()) else {
                    return write!(f, "{}: {}", code, plain(status.message()));
                };
                write!(f, "{code}")?;
                for violation in violations {
                    let field = match object {
                        Some(object) => under(&violation.field, object),
                        None => &violation.field,
                    };
                    write!(f, "\n  {}: {}", plain(field), plain(&violation.description))?;
                }
                Ok(())
            }
        }
    }
}

/// A field path as the user writes it: without the request's field for the object.
fn under<'a>(field: &'a str, object: &str) -> &'a str {
    let inside = field.strip_prefix(object);
    let inside = inside.and_then(|rest| rest.strip_prefix('.'));
    inside.unwrap_or(field)
}

/// Text from a server with control characters replaced, so that it cannot steer the terminal.
pub(super) fn plain(text: &str) -> String {
    let shown = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_field_at_fault_is_named_as_the_user_wrote_it() {
        let status = Status::from(Error::invalid(
            "null_volume.block_size",
            "100 is wrong\u{1b}",
        ));
        let failure = Failure::refused(status, Some("null_volume"));
        let shown = failure.to_string();
        assert_eq!(shown, "INVALID_ARGUMENT\n  block_size: 100 is wrong ");
        assert_eq!(failure.exit_status(), 13);
    }

    #[test]
    fn each_code_has_an_exit_status_of_its_own() {
        let of = |code| Failure::refused(Status::new(code, ""), None).exit_status();
        assert_eq!([of(Code::NotFound), of(Code::Unavailable)], [15, 24]);
        assert_eq!(Failure::Usage(String::new()).exit_status(), 2);
    }
}
