//! Request types by verb, independent of the kind: the generated request types are converted to these before a
//! [`Collection`](super::Collection) handles them.

use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;

use super::Scope;

/// Default deadline of a change that waits for a peer, a guest or a lock, when the client sets none.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Header with the client's timeout.
pub const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Create request.
#[derive(Debug, Clone, Default)]
pub struct Create<T> {
    /// Name of the parent; empty for flat kinds.
    pub parent: String,
    /// Last segment of the name; empty lets the server generate one.
    pub id: String,
    /// Object to create.
    pub object: Option<T>,
}

/// Update request.
#[derive(Debug, Clone, Default)]
pub struct Update<T> {
    /// New values, with the name of the object to update.
    pub object: Option<T>,
    /// Field mask; absent or empty selects the fields that are set.
    pub mask: Option<Vec<String>>,
    /// Create the object if it is missing.
    pub allow_missing: bool,
}

/// Delete request.
#[derive(Debug, Clone, Default)]
pub struct Delete {
    /// Name of the object to delete.
    pub name: String,
    /// Succeed if the object is missing.
    pub allow_missing: bool,
}

/// List request.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// Parent whose children are listed; `None` where the request has no such field.
    pub parent: Option<String>,
    /// Maximum number of items; 0 leaves the number to the server.
    pub page_size: i32,
    /// Token from the page before; empty for the first page.
    pub page_token: String,
    /// The objects that the caller may know of: a page is filled from these alone.
    pub scope: Scope,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// Items ordered by name.
    pub items: Vec<T>,
    /// Token of the next page; empty on the last one.
    pub next_page_token: String,
}

/// What a change needs to know of the call that requested it.
#[derive(Debug, Clone, Copy)]
pub struct CallContext {
    /// When the client stops waiting. Work in SPDK is not cancelled then (a late change is better than a
    /// half-made one), but waits for a peer are.
    pub deadline: Instant,
}

impl CallContext {
    /// Creates a call with a deadline `timeout` from now.
    pub fn within(timeout: Duration) -> Self {
        Self {
            deadline: Instant::now() + timeout,
        }
    }

    /// Reads the client's deadline from the gRPC metadata.
    pub fn of(metadata: &MetadataMap) -> Self {
        let timeout = metadata
            .get(GRPC_TIMEOUT)
            .and_then(|value| value.to_str().ok())
            .and_then(grpc_timeout);
        Self::within(timeout.unwrap_or(DEFAULT_TIMEOUT))
    }

    /// Deadline of waits: early enough before the client's deadline for the client to receive the reason.
    pub fn answer_by(&self) -> Instant {
        let now = Instant::now();
        now + self.deadline.saturating_duration_since(now).mul_f64(0.9)
    }
}

impl Default for CallContext {
    fn default() -> Self {
        Self::within(DEFAULT_TIMEOUT)
    }
}

/// Parses a `grpc-timeout` value (gRPC over HTTP/2): at most eight digits and a unit. Longer timeouts are capped
/// to a day.
pub fn grpc_timeout(value: &str) -> Option<Duration> {
    let (unit_at, unit) = value.char_indices().next_back()?;
    let digits = &value[..unit_at];
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let timeout = match unit {
        'H' => Duration::from_secs(count * 3600),
        'M' => Duration::from_secs(count * 60),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return None,
    };
    Some(timeout.min(Duration::from_secs(86_400)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_comes_before_the_deadline() {
        let call = CallContext::within(Duration::from_secs(10));
        assert!(call.answer_by() < call.deadline - Duration::from_millis(900));
        let late = CallContext {
            deadline: Instant::now() - Duration::from_secs(1),
        };
        assert!(late.answer_by() <= Instant::now());
    }

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        assert_eq!(grpc_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(grpc_timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(grpc_timeout("99999999H"), Some(Duration::from_secs(86_400)));
        for bad in ["", "S", "1", "1x", "-1S", "123456789S", "1µ"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
