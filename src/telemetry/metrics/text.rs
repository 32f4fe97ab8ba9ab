//! The Prometheus text format, converted from OpenMetrics text.

/// Text formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    OpenMetrics,
    Prometheus,
}

impl Form {
    /// Chooses the format by the values of Accept: Prometheus unless OpenMetrics is named. Scrapers that accept both
    /// prefer OpenMetrics.
    pub(super) fn of<'a>(mut accept: impl Iterator<Item = &'a str>) -> Self {
        match accept.any(|value| value.contains("application/openmetrics-text")) {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Converts OpenMetrics text to Prometheus format: the declared name of a counter includes `_total`, and there are
/// neither units nor an end marker.
pub(super) fn prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    let mut help = None;
    for line in open_metrics.lines() {
        if line.starts_with("# HELP ") {
            help = Some(line);
            continue;
        }
        if line.starts_with("# UNIT ") || line == "# EOF" {
            continue;
        }
        let declared = line.strip_prefix("# TYPE ");
        let Some((name, kind)) = declared.and_then(|of| of.split_once(' ')) else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let suffix = if kind == "counter" { "_total" } else { "" };
        let about = help
            .take()
            .and_then(|help| help.strip_prefix("# HELP ")?.strip_prefix(name));
        if let Some(about) = about {
            text.push_str(&format!("# HELP {name}{suffix}{about}\n"));
        }
        text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_declared_as_they_are_written() {
        let text = "# HELP a_b Help.\n# TYPE a_b counter\na_b_total{c=\"d\"} 1\n# HELP e E.\n# TYPE e gauge\n\
                    # UNIT e seconds\ne 2\n# EOF\n";
        let expected = "# HELP a_b_total Help.\n# TYPE a_b_total counter\na_b_total{c=\"d\"} 1\n\
                        # HELP e E.\n# TYPE e gauge\ne 2\n";
        assert_eq!(prometheus(text), expected);
    }

    #[test]
    fn the_form_is_what_the_scraper_accepts() {
        let of = |accept: &[&str]| Form::of(accept.iter().copied());
        let both =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4";
        assert_eq!(of(&[both]), Form::OpenMetrics);
        assert_eq!(of(&["text/plain"]), Form::Prometheus);
        assert_eq!(of(&["*/*"]), Form::Prometheus);
        assert_eq!(of(&[]), Form::Prometheus);
    }
}
