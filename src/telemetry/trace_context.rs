//! The trace of a call: the header `traceparent` of W3C Trace Context.

use axum::http::HeaderMap;

/// Name of the header.
const TRACEPARENT: &str = "traceparent";

/// The calling span, in the header's hexadecimal form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent<'a> {
    /// Trace ID, 32 digits.
    pub trace: &'a str,
    /// ID of the caller's span, 16 digits.
    pub span: &'a str,
    /// Whether the caller records the trace.
    pub is_sampled: bool,
}

/// The parent in a request's headers. An invalid or repeated header counts as absent (W3C Trace Context 4.2).
pub(super) fn parent(headers: &HeaderMap) -> Option<Parent<'_>> {
    let mut all = headers.get_all(TRACEPARENT).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return None;
    };
    parse(value.to_str().ok()?)
}

/// Whether a request has a header that counts as absent.
pub(super) fn is_malformed(headers: &HeaderMap) -> bool {
    headers.contains_key(TRACEPARENT) && parent(headers).is_none()
}

/// Makes a new trace ID.
pub(super) fn new_trace_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn parse(text: &str) -> Option<Parent<'_>> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_zero = |text: &str| text.bytes().all(|b| b == b'0');
    // Later versions may append fields to those of version 00.
    let ends = version != "00" || parts.next().is_none();
    let good = hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && !is_zero(trace)
        && hex(span, 16)
        && !is_zero(span)
        && hex(flags, 2)
        && ends;
    let flags = u8::from_str_radix(flags, 16).ok().filter(|_| good)?;
    Some(Parent {
        trace,
        span,
        is_sampled: flags & 1 == 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_valid_header_gives_its_trace() {
        for (text, is_sampled) in [
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                true,
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
                false,
            ),
            (
                "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more-fields",
                true,
            ),
        ] {
            let parent = Parent {
                trace: TRACE,
                span: "00f067aa0ba902b7",
                is_sampled,
            };
            assert_eq!(parse(text), Some(parent), "{text}");
        }
    }

    #[test]
    fn an_invalid_header_is_as_none() {
        for text in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4\n36-00f067aa0ba902b7-01",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        let good =
            HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let mut headers = HeaderMap::new();
        assert_eq!(parent(&headers), None);
        headers.append(TRACEPARENT, good.clone());
        assert!(parent(&headers).is_some_and(|parent| parent.trace == TRACE));
        headers.append(TRACEPARENT, good);
        assert_eq!(parent(&headers), None, "two of them");
        let fresh = [new_trace_id(), new_trace_id()];
        assert!(fresh[0] != fresh[1] && fresh.iter().all(|id| id.len() == 32));
    }
}
