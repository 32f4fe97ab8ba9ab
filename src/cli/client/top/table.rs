//! Rows of values, sorted and filtered alike for every view.

use std::cmp::Ordering;

use super::super::failure::plain;

/// A column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub(super) header: &'static str,
    /// Width in characters; 0 for a share of the remaining width.
    pub(super) width: u16,
}

/// Content of a cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Unknown, or no activity.
    Absent,
    Text(String),
    /// A number, or a rate per second.
    Count(f64),
    /// Bytes per second.
    Bytes(f64),
    Seconds(f64),
    /// A fraction of 1.
    Share(f64),
}

impl Value {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(plain(text))
    }

    pub(super) fn of(value: Option<f64>, kind: fn(f64) -> Self) -> Self {
        value.map_or(Self::Absent, kind)
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Absent | Self::Text(_) => None,
            Self::Count(n) | Self::Bytes(n) | Self::Seconds(n) | Self::Share(n) => Some(*n),
        }
    }

    /// The displayed text.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Absent => "-".to_owned(),
            Self::Text(text) => text.clone(),
            Self::Count(n) => scaled(*n, 1000.0, &["", "k", "M", "G", "T"]),
            Self::Bytes(n) => scaled(*n, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"]),
            Self::Seconds(n) if *n < 1e-3 => format!("{:.0}us", n * 1e6),
            Self::Seconds(n) if *n < 1.0 => format!("{:.1}ms", n * 1e3),
            Self::Seconds(n) => format!("{n:.1}s"),
            Self::Share(n) => format!("{:.1}%", n * 100.0),
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(one), Self::Text(other)) => one.cmp(other),
            _ => {
                let of = |value: &Self| value.number().unwrap_or(-1.0);
                of(self).total_cmp(&of(other))
            }
        }
    }
}

fn scaled(number: f64, step: f64, units: &[&str]) -> String {
    let mut number = number;
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    while number >= step {
        let Some(next) = units.next() else { break };
        number /= step;
        unit = next;
    }
    match number {
        n if n < 10.0 && n.fract() != 0.0 => format!("{n:.2}{unit}"),
        n if n < 100.0 && n.fract() != 0.0 => format!("{n:.1}{unit}"),
        n => format!("{n:.0}{unit}"),
    }
}

/// A row.
pub(super) type Row = Vec<Value>;

/// The rows that contain the filter text, sorted by a column; numbers in descending order.
pub(super) fn arranged(rows: &[Row], filter: &str, column: usize, reverse: bool) -> Vec<Row> {
    let filter = filter.to_lowercase();
    let has = |row: &&Row| {
        let texts = row.iter().filter_map(|value| match value {
            Value::Text(text) => Some(text.to_lowercase()),
            _ => None,
        });
        filter.is_empty() || texts.into_iter().any(|text| text.contains(&filter))
    };
    let mut found: Vec<Row> = rows.iter().filter(has).cloned().collect();
    found.sort_by(|one, other| {
        let (Some(a), Some(b)) = (one.get(column), other.get(column)) else {
            return Ordering::Equal;
        };
        let order = match a {
            Value::Text(_) => a.compare(b),
            _ => b.compare(a),
        };
        // Ties keep the order of the names.
        let order = if reverse { order.reverse() } else { order };
        order.then_with(|| match (one.first(), other.first()) {
            (Some(one), Some(other)) => one.compare(other),
            _ => Ordering::Equal,
        })
    });
    found
}

/// The columns that fit, each with its width.
pub(super) fn fitting(columns: &[Column], room: u16) -> Vec<(usize, u16)> {
    /// Minimum width of a name.
    const NAME: u16 = 14;
    let mut left = room;
    let mut found = Vec::new();
    for (at, column) in columns.iter().enumerate() {
        let needed = match column.width {
            0 => NAME,
            width => width,
        };
        let between = u16::from(at > 0);
        let Some(rest) = left.checked_sub(needed.saturating_add(between)) else {
            break;
        };
        left = rest;
        found.push((at, needed));
    }
    let wide = columns.iter().filter(|column| column.width == 0).count();
    let wide = u16::try_from(wide).unwrap_or(1).max(1);
    for (at, width) in &mut found {
        if columns.get(*at).is_some_and(|column| column.width == 0) {
            *width = width.saturating_add(left / wide);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, iops: f64) -> Row {
        vec![Value::text(name), Value::Count(iops)]
    }

    #[test]
    fn rows_are_filtered_by_texts_and_sorted_by_a_column_either_way() {
        let rows = [
            row("volumes/a", 1.0),
            row("volumes/B", 3.0),
            row("other", 2.0),
        ];
        let names = |filter: &str, column, reverse| {
            let rows = arranged(&rows, filter, column, reverse);
            rows.iter()
                .map(|row| row[0].shown())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(names("", 1, false), "volumes/B other volumes/a");
        assert_eq!(names("", 1, true), "volumes/a other volumes/B");
        assert_eq!(names("", 0, false), "other volumes/B volumes/a");
        assert_eq!(names("VOLUMES/b", 1, false), "volumes/B");
        assert_eq!(names("none", 1, false), "");
    }

    #[test]
    fn numbers_are_shown_in_few_places() {
        let all = [
            Value::Count(999.0),
            Value::Count(12_345.0),
            Value::Bytes(1536.0 * 1024.0),
            Value::Seconds(42e-6),
            Value::Seconds(0.0042),
            Value::Share(0.123),
            Value::Absent,
            Value::text("a\u{1b}b"),
        ];
        let shown: Vec<String> = all.iter().map(Value::shown).collect();
        assert_eq!(
            shown,
            [
                "999", "12.3k", "1.50MiB", "42us", "4.2ms", "12.3%", "-", "a b"
            ]
        );
    }

    #[test]
    fn columns_that_do_not_fit_are_left_out() {
        let column = |width| Column { header: "", width };
        let columns = [column(0), column(8), column(8)];
        assert_eq!(fitting(&columns, 80), [(0, 62), (1, 8), (2, 8)]);
        assert_eq!(fitting(&columns, 30), [(0, 21), (1, 8)]);
        assert_eq!(fitting(&columns, 5), []);
    }
}
