//! Values of samples as text. A scrape has about ten per volume, so they bypass the costly formatting machinery.

use std::fmt::Write;
use std::time::Duration;

/// The value of a sample.
pub(super) trait Value {
    /// Appends the value.
    fn write(&self, text: &mut String);
}

macro_rules! natural {
    ($($of:ty),*) => {$(
        impl Value for $of {
            fn write(&self, text: &mut String) {
                // Lossless: none of these types is wider than u64.
                digits(text, *self as u64);
            }
        }
    )*};
}

natural!(u8, u16, u32, u64, usize);

impl Value for f64 {
    fn write(&self, text: &mut String) {
        if *self == 0.0 {
            text.push('0');
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "{self}");
        }
    }
}

/// Exact seconds.
impl Value for Duration {
    fn write(&self, text: &mut String) {
        digits(text, self.as_secs());
        let mut rest = self.subsec_nanos();
        if rest == 0 {
            return;
        }
        text.push('.');
        let mut place = 100_000_000;
        while rest > 0 {
            digits(text, (rest / place).into());
            rest %= place;
            place /= 10;
        }
    }
}

fn digits(text: &mut String, mut number: u64) {
    // As many digits as u64::MAX has.
    let mut all = [b'0'; 20];
    let mut used = 0;
    for digit in all.iter_mut().rev() {
        // The remainder is below 10, so the cast is lossless.
        *digit += (number % 10) as u8;
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    let from = all.len() - used;
    text.push_str(std::str::from_utf8(&all[from..]).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: impl Value) -> String {
        let mut text = String::new();
        value.write(&mut text);
        text
    }

    proptest::proptest! {
        #[test]
        fn numbers_are_written_as_they_display(number: u64, float: f64) {
            assert_eq!(text(number), number.to_string());
            assert_eq!(text(float).parse(), Ok(float));
        }

        #[test]
        fn seconds_are_written_exactly(seconds: u64, nanos in 0_u32..1_000_000_000) {
            let written = text(Duration::new(seconds, nanos));
            let (whole, rest) = written.split_once('.').unwrap_or((&written, ""));
            assert_eq!(whole, seconds.to_string());
            assert_eq!(format!("{rest:0<9}"), format!("{nanos:09}"));
            assert!(!rest.ends_with('0'), "{written}");
        }
    }

    #[test]
    fn the_least_and_the_greatest() {
        assert_eq!(
            [text(0_u64), text(u64::MAX)],
            ["0".to_owned(), u64::MAX.to_string()]
        );
        assert_eq!([text(0.0), text(-0.0), text(0.25)], ["0", "0", "0.25"]);
        let short = [
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_millis(1500),
        ];
        assert_eq!(short.map(text), ["0", "0.000000001", "1.5"]);
    }
}
