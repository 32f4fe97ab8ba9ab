//! The cores for reactors.

use spdk::cores::CoreSet;

/// Parses what `--cores` takes: a list, a mask, or `last:N`, the highest N cores of this process's cpuset. The error is for
/// the operator.
pub fn parse(text: &str) -> Result<CoreSet, String> {
    match available(text)? {
        (cores, None) => Ok(cores),
        (_, Some(shortage)) => Err(shortage),
    }
}

/// As [`parse`], but `last:N` of more cores than the cpuset has is all of the cpuset, with the reason why it cannot be more.
pub fn available(text: &str) -> Result<(CoreSet, Option<String>), String> {
    let Some(count) = text.trim().strip_prefix("last:") else {
        let listed = text.parse().map_err(|error| format!("{error}"));
        return listed.map(|cores| (cores, None));
    };
    let permitted = CoreSet::permitted().map_err(|error| error.to_string())?;
    let most = permitted.iter().count();
    let reason = format!(
        "{text:?} is not a number of cores of the cpuset ({permitted}); write last:1 to last:{most}"
    );
    match count.parse() {
        Ok(count) if count > most => Ok((permitted, Some(reason))),
        Ok(count) => permitted.last(count).map(|last| (last, None)).ok_or(reason),
        Err(_) => Err(reason),
    }
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
