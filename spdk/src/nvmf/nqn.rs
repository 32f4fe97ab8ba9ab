//! Validation of NVMe qualified names (NVMe base specification, "NVMe Qualified Names"). SPDK checks them too, but
//! only here the reason is known.

/// The NQN of the discovery service.
pub const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";
const MIN_LEN: usize = 11;
const MAX_LEN: usize = 223;
const MAX_LABEL_LEN: usize = 63;

/// Checks whether a host can have connected under this NQN; the error is the reason. Connect accepts more forms than
/// [`check`], as hosts in the field use them.
pub fn check_connected(nqn: &str) -> Result<(), String> {
    let wrong = |reason: &str| Err(format!("NQN {nqn:?}: {reason}"));
    if nqn.contains('\0') {
        return wrong("it has a NUL byte");
    }
    // They separate the parts of a PSK identity and the lines of a log, so Connect refuses them.
    if nqn.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return wrong("it has a space or a control character");
    }
    if !(MIN_LEN..=MAX_LEN).contains(&nqn.len()) {
        return wrong(&format!(
            "it has {} bytes, and must have {MIN_LEN} to {MAX_LEN}",
            nqn.len()
        ));
    }
    if !nqn.starts_with("nqn.") {
        return wrong("it must begin with \"nqn.\"");
    }
    Ok(())
}

/// Validates an NQN; the error is the reason.
///
/// There are two forms: `nqn.yyyy-mm.reverse.domain:name`, and the specification's own prefix followed by a UUID.
pub fn check(nqn: &str) -> Result<(), String> {
    let wrong = |reason: &str| Err(format!("NQN {nqn:?}: {reason}"));
    check_connected(nqn)?;
    if nqn == DISCOVERY {
        return Ok(());
    }
    if let Some(uuid) = nqn.strip_prefix(UUID_PREFIX) {
        return if is_uuid(uuid) {
            Ok(())
        } else {
            wrong("what follows \"uuid:\" is not a UUID")
        };
    }
    let rest = nqn.strip_prefix("nqn.");
    let Some(domain_and_name) = rest.and_then(after_date) else {
        return wrong("after \"nqn.\" must come a date, yyyy-mm, and a dot");
    };
    let Some((domain, name)) = domain_and_name.split_once(':') else {
        return wrong("after the domain must come a colon and a name");
    };
    if name.is_empty() {
        return wrong("the name after the colon is empty");
    }
    match domain.split('.').find(|label| !is_label(label)) {
        None => Ok(()),
        Some(label) => wrong(&format!(
            "{label:?} is no domain label: a letter, then letters, digits and hyphens, not ending \
             in a hyphen, at most {MAX_LABEL_LEN}"
        )),
    }
}

fn after_date(text: &str) -> Option<&str> {
    let (date, rest) = text.split_once('.')?;
    let (year, month) = date.split_once('-')?;
    let digits = |part: &str, len| part.len() == len && part.bytes().all(|b| b.is_ascii_digit());
    let month_exists = matches!(month.parse::<u8>(), Ok(1..=12));
    (digits(year, 4) && digits(month, 2) && month_exists).then_some(rest)
}

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    bytes.len() <= MAX_LABEL_LEN
        && bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.concat().bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_use_are_accepted() {
        for nqn in [
            DISCOVERY,
            "nqn.2016-06.io.spdk:cnode1",
            "nqn.2022-09.io.spdk:opi1",
            "nqn.2014-08.org.nvmexpress:uuid:feb98abe-d51f-40c8-b348-2753f3571d3c",
            "nqn.2014-08.org.nvmexpress:uuid:FEB98ABE-D51F-40C8-B348-2753F3571D3C",
            "nqn.2014-08.com.example-host.a1:grün",
        ] {
            assert_eq!(check(nqn), Ok(()), "{nqn}");
        }
    }

    #[test]
    fn each_broken_rule_is_named() {
        let too_long = format!("nqn.2016-06.io.spdk:{}", "x".repeat(204));
        for (nqn, reason) in [
            ("nqn.2016-0", "10 bytes"),
            (too_long.as_str(), "224 bytes"),
            ("iqn.2016-06.io.spdk:cnode1", "begin with"),
            ("nqn.201606.io.spdk:cnode1", "a date"),
            ("nqn.2016-13.io.spdk:cnode1", "a date"),
            ("nqn.2016-06.io.spdk-cnode1", "a colon"),
            ("nqn.2016-06.io.spdk:", "is empty"),
            ("nqn.2016-06.io..spdk:a", "no domain label"),
            ("nqn.2016-06.io.spdk-:a", "no domain label"),
            ("nqn.2016-06.io.1spdk:a", "no domain label"),
            ("nqn.2014-08.org.nvmexpress:uuid:feb98abe", "not a UUID"),
            ("nqn.2016-06.io.spdk:a\0b", "NUL"),
            ("nqn.2016-06.io.spdk:a b", "a space"),
            ("nqn.2016-06.io.spdk:a\nb", "a space or a control"),
            (
                "nqn.2014-08.org.nvmexpress:uuid:feb98abed51f40c8b3482753f3571d3c",
                "not a UUID",
            ),
        ] {
            let error = check(nqn).expect_err(nqn);
            assert!(error.contains(reason), "{error}");
        }
    }
}
