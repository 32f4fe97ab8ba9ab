//! The cores for reactors.

use spdk::cores::CoreSet;

/// Parses what `--cores` takes: a list, a mask, or `last:N`, the highest N cores of this process's cpuset. The error is for
/// the operator.
pub fn parse(text: &str) -> Result<CoreSet, String> {
    let Some(count) = text.trim().strip_prefix("last:") else {
        return text.parse().map_err(|error| format!("{error}"));
    };
    let permitted = CoreSet::permitted().map_err(|error| error.to_string())?;
    let last = count.parse().ok().and_then(|count| permitted.last(count));
    last.ok_or_else(|| {
        format!(
            "{text:?} is not a number of cores of the cpuset ({permitted}); write last:1 to last:{}",
            permitted.iter().count()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cores_are_those_of_the_cpuset() {
        let permitted = CoreSet::permitted().expect("asked");
        let count = permitted.iter().count();
        assert_eq!(parse(&format!("last:{count}")), Ok(permitted.clone()));
        let one = parse("last:1").expect("there is one");
        assert_eq!(one.iter().next(), permitted.iter().last());
        for text in [
            "last:",
            "last:0",
            "last:-1",
            "last:x",
            &format!("last:{}", count + 1),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(&format!("last:{count}")), "{error}");
        }
        assert_eq!(parse("0x5").expect("a mask").to_string(), "0,2");
    }
}
