//! Resource IDs, the last segment of a name: given by the client or generated.

use uuid::Uuid;

/// Maximum length of an ID given by a client.
pub const MAX_LEN: usize = 63;

const RULE: &str = "lower-case letters, digits and hyphens, beginning with a letter and not ending \
                    with a hyphen, at most 63 characters, and not a UUID";

/// Generates an ID.
pub fn generate() -> String {
    Uuid::new_v4().to_string()
}

/// Checks whether a client may give this ID (AIP-122, AIP-133).
///
/// # Errors
/// What is wrong with the ID.
pub fn check(id: &str) -> Result<(), String> {
    let first_is_letter = id.starts_with(|c: char| c.is_ascii_lowercase());
    let all_allowed = id
        .bytes()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    let is_uuid = Uuid::try_parse(id).is_ok();
    if first_is_letter && all_allowed && !id.ends_with('-') && id.len() <= MAX_LEN && !is_uuid {
        Ok(())
    } else {
        Err(format!("{id:?} is not an ID that can be given: {RULE}"))
    }
}

/// Returns the maximum ID length of a resource by its request field: SPDK limits the names of remote controllers
/// further, because it derives bdev names from them.
pub fn longest(field: &str) -> usize {
    match field {
        "nvme_remote_controller" => spdk::bdev::nvme::MAX_NAME_LEN,
        _ => MAX_LEN,
    }
}

/// Checks whether a client may give this ID to a resource with this request field.
pub fn check_for(field: &str, id: &str) -> Result<(), String> {
    check(id)?;
    let (most, length) = (longest(field), id.len());
    if length <= most {
        return Ok(());
    }
    let kind = field.replace('_', " ");
    Err(format!(
        "{id:?} has {length} characters, and the ID of an {kind} may have {most}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_ids_are_lower_case_letters_digits_and_hyphens() {
        for good in ["a", "opi-null9", "namespace-test-ss", &"x".repeat(63)] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let too_long = "x".repeat(64);
        for bad in [
            "",
            "A",
            "9a",
            "-a",
            "a-",
            "a_b",
            "a/b",
            "ä",
            "a\0",
            "a b",
            "feb98abe-d51f-40c8-b348-2753f3571d3c",
            too_long.as_str(),
        ] {
            assert!(
                check(bad).unwrap_err().contains(bad) || bad.contains('\0'),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_servers_ids_are_uuids_of_version_4() {
        let id = Uuid::parse_str(&generate()).unwrap();
        assert_eq!(id.get_version_num(), 4);
    }

    #[test]
    fn an_id_of_a_remote_controller_is_shorter() {
        let check = |field: &str, length: usize| check_for(field, &"c".repeat(length));
        assert!(check("nvme_remote_controller", 49).is_ok());
        let refused = check("nvme_remote_controller", 50).unwrap_err();
        assert!(
            refused.ends_with("of an nvme remote controller may have 49"),
            "{refused}"
        );
        assert!(check("null_volume", 63).is_ok() && check("null_volume", 64).is_err());
    }
}
