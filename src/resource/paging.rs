//! Pagination (AIP-158): page sizes and page tokens.
//!
//! A token holds the name after which the next page starts, so that it stays valid across creates and deletes,
//! and a checksum, so that a corrupt token is refused. Opaque to clients.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::Error;

const DEFAULT_SIZE: usize = 50;
const MAX_SIZE: usize = 250;
const CHECKSUM_LEN: usize = 8;

/// Returns the page size.
///
/// # Errors
/// INVALID_ARGUMENT for a negative size.
pub fn size(requested: i32) -> Result<usize, Error> {
    match usize::try_from(requested) {
        Ok(0) => Ok(DEFAULT_SIZE),
        Ok(size) => Ok(size.min(MAX_SIZE)),
        Err(_) => Err(Error::invalid(
            "page_size",
            format!("{requested} is negative: 1 to {MAX_SIZE}, or 0 for {DEFAULT_SIZE}"),
        )),
    }
}

/// Encodes the token of a page whose last item has this name.
pub fn token(last: &str) -> String {
    let mut bytes = checksum(last.as_bytes()).to_vec();
    bytes.extend_from_slice(last.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes a token to the name after which the page starts; `None` for the first page. `prefix` is the common
/// prefix of all names of the list.
///
/// # Errors
/// INVALID_ARGUMENT for a token that was not issued for such a list.
pub fn resume(token: &str, prefix: &str) -> Result<Option<String>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    let last = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| {
        let (sum, last) = bytes.split_at_checked(CHECKSUM_LEN)?;
        (sum == checksum(last)).then(|| String::from_utf8(last.to_vec()).ok())?
    });
    match last {
        Some(last) if last.starts_with(prefix) => Ok(Some(last)),
        _ => Err(Error::invalid(
            "page_token",
            format!("{token:?} is not a token that this list gave: send next_page_token unchanged"),
        )),
    }
}

/// FNV-1a, 64 bits: detects corruption, not forgery; a forged token only skips items.
fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    sum.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_50_items_by_default_and_250_at_most() {
        assert_eq!(size(0), Ok(50));
        assert_eq!(size(1), Ok(1));
        assert_eq!(size(251), Ok(250));
        assert_eq!(size(i32::MAX), Ok(250));
        assert!(size(-1).unwrap_err().to_string().contains("-1 is negative"));
    }

    #[test]
    fn a_token_brings_back_the_name_that_it_was_made_of() {
        let token = token("nullVolumes/a");
        assert!(!token.contains("nullVolumes"), "opaque");
        assert_eq!(
            resume(&token, "nullVolumes/"),
            Ok(Some("nullVolumes/a".into()))
        );
        assert_eq!(resume("", "nullVolumes/"), Ok(None));
    }

    #[test]
    fn a_token_of_another_list_or_a_mangled_one_is_refused() {
        let good = token("nullVolumes/a");
        assert!(resume(&good, "aioVolumes/").is_err());
        for at in 0..good.len() {
            let mut bad = good.clone().into_bytes();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            let bad = String::from_utf8(bad).unwrap();
            assert!(
                resume(&bad, "nullVolumes/").is_err() || bad == good,
                "{bad}"
            );
        }
        for bad in [
            "x",
            "todo",
            "ä",
            "AAAAAAAAAAA",
            &good[..good.len() - 1],
            "%%%",
        ] {
            assert!(resume(bad, "nullVolumes/").is_err(), "{bad}");
        }
    }
}
