//! Regular expressions for integers in a range. JSON has 64-bit integers as strings, whose range a schema can only
//! express as a pattern.

/// An expression for all integers from `least` to `most`, without leading zeros.
pub fn range(least: i64, most: i64) -> String {
    let mut parts = Vec::new();
    if least < 0 {
        let nearest = if most < 0 { most.unsigned_abs() } else { 1 };
        let digits = natural(nearest, least.unsigned_abs()).join("|");
        parts.push(format!("-(?:{digits})"));
    }
    if let Ok(most) = u64::try_from(most) {
        parts.extend(natural(u64::try_from(least).unwrap_or(0), most));
    }
    parts.join("|")
}

/// One expression per number of digits.
fn natural(least: u64, most: u64) -> Vec<String> {
    let (shortest, longest) = (least.to_string().len(), most.to_string().len());
    let parts = (shortest..=longest).flat_map(|length| {
        let (lowest, highest) = (lowest(length), highest(length));
        let first = if length == shortest {
            least.to_string()
        } else {
            lowest
        };
        let last = if length == longest {
            most.to_string()
        } else {
            highest
        };
        same_length(first.as_bytes(), last.as_bytes())
    });
    parts.collect()
}

fn lowest(length: usize) -> String {
    if length == 1 {
        return "0".to_owned();
    }
    format!("1{}", "0".repeat(length - 1))
}

fn highest(length: usize) -> String {
    "9".repeat(length)
}

/// Expressions for the numbers between two of equal length.
fn same_length(first: &[u8], last: &[u8]) -> Vec<String> {
    let ([low, after_low @ ..], [high, after_high @ ..]) = (first, last) else {
        return vec![String::new()];
    };
    let with = |digit: u8, rest: Vec<String>| {
        let digit = char::from(digit);
        rest.into_iter().map(move |rest| format!("{digit}{rest}"))
    };
    if low == high {
        return with(*low, same_length(after_low, after_high)).collect();
    }
    let rest = after_low.len();
    let (zeros, nines) = (vec![b'0'; rest], vec![b'9'; rest]);
    let (mut from, mut to) = (*low, *high);
    let mut parts = Vec::new();
    if after_low != zeros {
        parts.extend(with(*low, same_length(after_low, &nines)));
        from += 1;
    }
    if after_high != nines {
        parts.extend(with(*high, same_length(&zeros, after_high)));
        to -= 1;
    }
    if from <= to {
        let any = match rest {
            0 => String::new(),
            1 => "[0-9]".to_owned(),
            _ => format!("[0-9]{{{rest}}}"),
        };
        let digits = if from == to {
            char::from(from).to_string()
        } else {
            format!("[{}-{}]", char::from(from), char::from(to))
        };
        parts.push(format!("{digits}{any}"));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(least: i64, most: i64, number: i128) -> bool {
        let pattern = format!("^(?:{})$", range(least, most));
        let schema = serde_json::json!({ "pattern": pattern });
        let validator = jsonschema::validator_for(&schema).unwrap();
        validator.is_valid(&serde_json::json!(number.to_string()))
    }

    #[test]
    fn the_numbers_of_a_range_and_no_others_match() {
        for (least, most) in [
            (0, 0),
            (1, 65_535),
            (0, 1_000_000_000),
            (2, 10),
            (19, 21),
            (95, 1234),
            (-128, 127),
            (-70, -3),
            (1, (1 << 54) - 1),
            (i64::MIN, i64::MAX),
        ] {
            let (low, high) = (i128::from(least), i128::from(most));
            let mut numbers = vec![
                low - 1,
                low,
                low + 1,
                high - 1,
                high,
                high + 1,
                0,
                -1,
                9,
                10,
            ];
            numbers.extend([low * 10, high * 10, high / 10, high / 2, (low + high) / 2]);
            if high - low < 2000 {
                numbers.extend(low - 50..high + 50);
            }
            for number in numbers {
                let inside = (low..=high).contains(&number);
                assert_eq!(
                    matches(least, most, number),
                    inside,
                    "{number} of {least}..={most}"
                );
            }
        }
        assert!(!matches(1, 9, 1) || !range(1, 9).starts_with('0'));
    }
}
