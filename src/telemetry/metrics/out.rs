//! Writes metric families as text, in either format.

use std::fmt::Write;

use super::text::Form;
use super::value::Value;

/// Type of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Labels of a sample, formatted once for all families that share them: `a="b",c="d"`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Labels(String);

impl Labels {
    /// Formats these names and values.
    pub(super) fn of<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        let mut labels = Self::default();
        for (name, value) in pairs {
            labels.add(name, value);
        }
        labels
    }

    /// Appends a label, escaping its value, which clients may have chosen.
    fn add(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(name);
        self.0.push_str("=\"");
        let mut rest = value;
        while let Some(at) = rest.find(['\\', '"', '\n']) {
            let (plain, special) = rest.split_at(at);
            self.0.push_str(plain);
            let (special, after) = special.split_at(1);
            self.0.push('\\');
            self.0.push_str(if special == "\n" { "n" } else { special });
            rest = after;
        }
        self.0.push_str(rest);
        self.0.push('"');
    }
}

/// The output so far.
pub(super) struct Out {
    text: String,
    form: Form,
}

impl Out {
    /// Empty output with this capacity, in bytes.
    pub(super) fn new(form: Form, room: usize) -> Self {
        Self {
            text: String::with_capacity(room),
            form,
        }
    }

    /// Completes the output.
    pub(super) fn end(mut self) -> String {
        if self.form == Form::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    /// Appends families that are already encoded.
    pub(super) fn written(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Starts a family. In Prometheus format the declared name of a counter includes `_total`.
    pub(super) fn family(&mut self, name: &str, help: &str, kind: Kind) {
        let suffix = match (self.form, kind) {
            (Form::Prometheus, Kind::Counter) => "_total",
            _ => "",
        };
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.line(format_args!("# HELP {name}{suffix} {help}."));
        self.line(format_args!("# TYPE {name}{suffix} {kind}"));
    }

    /// Writes a sample: name suffix, labels and value.
    pub(super) fn sample(&mut self, name: &str, suffix: &str, labels: &Labels, value: impl Value) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        if !labels.0.is_empty() {
            self.text.push('{');
            self.text.push_str(&labels.0);
            self.text.push('}');
        }
        self.value(value);
    }

    /// Writes a sample with one more label, whose value must not need escaping.
    pub(super) fn sample_of(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &Labels,
        (label, of): (&str, &str),
        value: impl Value,
    ) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        self.text.push('{');
        if !labels.0.is_empty() {
            self.text.push_str(&labels.0);
            self.text.push(',');
        }
        self.text.push_str(label);
        self.text.push_str("=\"");
        self.text.push_str(of);
        self.text.push_str("\"}");
        self.value(value);
    }

    /// Writes a histogram bucket: upper bound as text, and cumulative count.
    pub(super) fn bucket(&mut self, name: &str, labels: &Labels, bound: &str, count: u64) {
        self.sample_of(name, "_bucket", labels, ("le", bound), count);
    }

    fn value(&mut self, value: impl Value) {
        self.text.push(' ');
        value.write(&mut self.text);
        self.text.push('\n');
    }

    /// Writes a family of counters.
    pub(super) fn counters<'v, V: Value>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (&'v Labels, V)>,
    ) {
        self.family(name, help, Kind::Counter);
        for (labels, value) in values {
            self.sample(name, "_total", labels, value);
        }
    }

    /// Writes a family of gauges.
    pub(super) fn gauges<'v, V: Value>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (&'v Labels, V)>,
    ) {
        self.family(name, help, Kind::Gauge);
        for (labels, value) in values {
            self.sample(name, "", labels, value);
        }
    }

    /// Writes a single counter.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Value) {
        self.counters(name, help, [(&Labels::default(), value)]);
    }

    /// Writes a single gauge.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Value) {
        self.gauges(name, help, [(&Labels::default(), value)]);
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.text.write_fmt(text);
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_labels_cannot_end_them() {
        assert_eq!(Labels::of([("a", "b")]).0, "a=\"b\"");
        let labels = Labels::of([("a", "x\"}\n\\y"), ("b", "")]);
        assert_eq!(labels.0, "a=\"x\\\"}\\n\\\\y\",b=\"\"");
    }

    #[test]
    fn each_form_declares_counters_in_its_way() {
        let text = |form| {
            let mut out = Out::new(form, 0);
            let labels = Labels::of([("c", "d")]);
            out.counters("a", "Help", [(&labels, 1_u64)]);
            out.gauge("b", "More", 0.25);
            out.family("h", "Times", Kind::Histogram);
            out.bucket("h", &labels, "+Inf", 3);
            out.bucket("h", &Labels::default(), "0.1", 2);
            out.end()
        };
        let samples = "a_total{c=\"d\"} 1\n";
        let rest = "# HELP b More.\n# TYPE b gauge\nb 0.25\n# HELP h Times.\n# TYPE h histogram\n\
                    h_bucket{c=\"d\",le=\"+Inf\"} 3\nh_bucket{le=\"0.1\"} 2\n";
        assert_eq!(
            text(Form::OpenMetrics),
            format!("# HELP a Help.\n# TYPE a counter\n{samples}{rest}# EOF\n")
        );
        assert_eq!(
            text(Form::Prometheus),
            format!("# HELP a_total Help.\n# TYPE a_total counter\n{samples}{rest}")
        );
    }
}
