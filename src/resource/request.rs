//! The shapes of the calls, one a verb, whatever the kind: what the generated request types are
//! turned into before a [`Collection`](super::Collection) looks at them.

use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;

/// How long a change that waits for others (a peer, a guest) may take when the client does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The header in which a client says how long it waits.
pub const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Make an object.
#[derive(Debug, Clone, Default)]
pub struct Create<T> {
    /// The name of the parent; empty for kinds that have none.
    pub parent: String,
    /// The last part of the name; empty lets the server choose.
    pub id: String,
    /// What to make.
    pub object: Option<T>,
}

/// Change an object.
#[derive(Debug, Clone, Default)]
pub struct Update<T> {
    /// The new values; its name says which object is meant.
    pub object: Option<T>,
    /// Which fields count; absent or empty means those that are set.
    pub mask: Option<Vec<String>>,
    /// Make the object when it is not there.
    pub allow_missing: bool,
}

/// Remove an object.
#[derive(Debug, Clone, Default)]
pub struct Delete {
    /// Its name.
    pub name: String,
    /// An object that is not there is a success.
    pub allow_missing: bool,
}

/// One page of the objects of a kind.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// Whose children; `None` where the request has no such field.
    pub parent: Option<String>,
    /// How many; 0 leaves it to the server.
    pub page_size: i32,
    /// Where the page before it ended; empty for the first.
    pub page_token: String,
}

/// One page, and the way to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// In the order of their names.
    pub items: Vec<T>,
    /// Empty on the last page.
    pub next_page_token: String,
}

/// What a change knows of the call that asked for it.
#[derive(Debug, Clone, Copy)]
pub struct CallContext {
    /// When the client stops waiting. A change is not cut off then (half-made is worse than late),
    /// but one that waits for a peer gives up.
    pub deadline: Instant,
}

impl CallContext {
    /// A call that may take `timeout` from now.
    pub fn within(timeout: Duration) -> Self {
        Self {
            deadline: Instant::now() + timeout,
        }
    }

    /// Reads the client's deadline off its header.
    pub fn of(metadata: &MetadataMap) -> Self {
        let timeout = metadata
            .get(GRPC_TIMEOUT)
            .and_then(|value| value.to_str().ok())
            .and_then(grpc_timeout);
        Self::within(timeout.unwrap_or(DEFAULT_TIMEOUT))
    }

    /// When to give up on a peer, so that the client hears why before it stops listening.
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

/// gRPC over HTTP/2: at most eight digits and a unit. A day is as good as for ever.
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
