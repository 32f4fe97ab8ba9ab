//! Pre-shared keys of NVMe/TCP, as clients give them: the interchange form of the NVMe TCP transport
//! specification, `NVMeTLSkey-1:HASH:BASE64:`, whose base64 part is the key and a CRC-32 of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Bytes of the key for each hash: none (SPDK takes both lengths then), SHA-256, SHA-384.
const LENGTHS: [(&str, &[usize]); 3] = [("00", &[32, 48]), ("01", &[32]), ("02", &[48])];

const CRC_LEN: usize = 4;

/// Whether SPDK can use the key. The reason why not tells nothing of it.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check(key: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(key).map_err(|_| wrong("it is no text"))?;
    // It would be another identity to a host that reads the key from a file with care.
    if text.trim() != text {
        return Err(wrong(
            "it begins or ends with white space, such as the newline of a file",
        ));
    }
    let parts: Vec<&str> = text.split(':').collect();
    let ["NVMeTLSkey-1", hash, encoded, ""] = parts.as_slice() else {
        return Err(wrong("it has another form"));
    };
    let lengths = LENGTHS
        .iter()
        .find_map(|(name, lengths)| (name == hash).then_some(*lengths));
    let lengths = lengths.ok_or_else(|| wrong("its hash is not 00, 01 or 02"))?;
    let bytes = STANDARD
        .decode(encoded)
        .map_err(|_| wrong("its third part is not base64"))?;
    let Some((key, crc)) = bytes
        .len()
        .checked_sub(CRC_LEN)
        .map(|at| bytes.split_at(at))
    else {
        return Err(wrong("it is too short"));
    };
    if !lengths.contains(&key.len()) {
        return Err(wrong("its key has another length than its hash says"));
    }
    if crc != crc32fast::hash(key).to_le_bytes() {
        return Err(wrong("its checksum does not match"));
    }
    Ok(())
}

fn wrong(what: &str) -> String {
    format!(
        "{what}: NVMeTLSkey-1:01:BASE64: with 32 bytes of key, or NVMeTLSkey-1:02:BASE64: with 48, \
         each followed by its CRC-32, is needed"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "NVMeTLSkey-1:01:MDAxMTIyMzM0NDU1NjY3Nzg4OTlhYWJiY2NkZGVlZmZwJEiQ:";

    #[test]
    fn a_key_is_whole_and_its_checksum_right() {
        assert_eq!(check(KEY.as_bytes()), Ok(()));
        for (bad, why) in [
            (KEY.replace("-1:", "-2:"), "another form"),
            (KEY.replace(":01:", ":03:"), "hash"),
            (KEY.replace(":01:", ":02:"), "length"),
            (KEY.replace("MDAx", "MDAy"), "checksum"),
            (KEY.replace("MDAx", "!!!!"), "base64"),
            (KEY[..KEY.len() - 1].to_owned(), "another form"),
            ("NVMeTLSkey-1:01:AA==:".into(), "too short"),
            (String::new(), "another form"),
            (format!("{KEY}\n"), "newline"),
            (format!(" {KEY}"), "white space"),
        ] {
            let error = check(bad.as_bytes()).unwrap_err();
            assert!(
                error.starts_with("it") && error.contains(why),
                "{bad}: {error}"
            );
        }
        assert!(check(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn a_reason_shows_nothing_of_the_key() {
        let error = check(KEY.replace("MDAx", "MDAy").as_bytes()).unwrap_err();
        assert!(!error.contains("MTIyMzM0"), "{error}");
    }
}
