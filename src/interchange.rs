//! Keys of hosts as clients give them: the interchange forms of the NVMe TCP transport specification
//! (`NVMeTLSkey-1:HASH:BASE64:`) and of DH-HMAC-CHAP in the NVMe base specification (`DHHC-1:HASH:BASE64:`), as
//! nvme-cli makes them. The base64 part is the key and a CRC-32 of it.

use aes_gcm_siv::aead::Generate;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

const CRC_LEN: usize = 4;

/// Most bytes of a host's and a subsystem's NQN together where they have a pre-shared key. `NVMe0R01 HOST SUBSYSTEM`
/// is its identity, which TLS 1.3 takes as the context of a derivation, with a length of one byte (RFC 8446, 7.1).
const IDENTITY_NQNS_MAX: usize = 255 - "NVMe0R01  ".len();

/// Bytes of a key that is made here.
const NEW_LEN: usize = 32;

/// One of the two forms.
struct Form {
    prefix: &'static str,
    /// Bytes of the key for each hash.
    lengths: &'static [(&'static str, &'static [usize])],
    /// What is right.
    right: &'static str,
}

/// Hashes: none (SPDK takes both lengths then), SHA-256, SHA-384.
const PSK: Form = Form {
    prefix: "NVMeTLSkey-1",
    lengths: &[("00", &[32, 48]), ("01", &[32]), ("02", &[48])],
    right: "NVMeTLSkey-1:01:BASE64: with 32 bytes of key, or NVMeTLSkey-1:02:BASE64: with 48, each followed by \
            its CRC-32, is needed",
};

/// Hashes: none (any length then), SHA-256, SHA-384, SHA-512.
const DHCHAP: Form = Form {
    prefix: "DHHC-1",
    lengths: &[
        ("00", &[32, 48, 64]),
        ("01", &[32]),
        ("02", &[48]),
        ("03", &[64]),
    ],
    right: "DHHC-1:00:BASE64: with 32, 48 or 64 bytes of key, or with the hash 01, 02 or 03 and 32, 48 or 64 \
            bytes, each followed by its CRC-32, is needed",
};

/// A new pre-shared key of TLS.
pub fn new_psk() -> Vec<u8> {
    PSK.make()
}

/// A new key of DH-HMAC-CHAP.
pub fn new_dhchap() -> Vec<u8> {
    DHCHAP.make()
}

/// Whether a host and a subsystem of these NQNs can have a pre-shared key.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check_identity(hostnqn: &str, subnqn: &str) -> Result<(), String> {
    let length = hostnqn.len() + subnqn.len();
    if length <= IDENTITY_NQNS_MAX {
        return Ok(());
    }
    Err(format!(
        "is for shorter names: the NQNs of host and subsystem have {length} bytes together, and the identity of a key \
         has room for {IDENTITY_NQNS_MAX}"
    ))
}

/// Whether SPDK can use a pre-shared key of TLS. The reason why not tells nothing of it.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check_psk(key: &[u8]) -> Result<(), String> {
    PSK.check(key)
}

/// The same for a key of DH-HMAC-CHAP.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check_dhchap(key: &[u8]) -> Result<(), String> {
    DHCHAP.check(key)
}

impl Form {
    /// A random key for the hash SHA-256.
    fn make(&self) -> Vec<u8> {
        let secret = Zeroizing::new(<[u8; NEW_LEN]>::generate());
        let crc = crc32fast::hash(&*secret).to_le_bytes();
        let mut bytes = Zeroizing::new(Vec::with_capacity(NEW_LEN + CRC_LEN));
        bytes.extend_from_slice(&*secret);
        bytes.extend_from_slice(&crc);
        let encoded = Zeroizing::new(STANDARD.encode(&*bytes));
        format!("{}:01:{}:", self.prefix, encoded.as_str()).into_bytes()
    }

    fn check(&self, key: &[u8]) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{what}: {}", self.right));
        let Ok(text) = std::str::from_utf8(key) else {
            return wrong("it is no text");
        };
        // It would be another identity to a host that reads the key from a file with care.
        if text.trim() != text {
            return wrong("it begins or ends with white space, such as the newline of a file");
        }
        let parts: Vec<&str> = text.split(':').collect();
        let [prefix, hash, encoded, ""] = parts.as_slice() else {
            return wrong("it has another form");
        };
        if *prefix != self.prefix {
            return wrong("it has another form");
        }
        let lengths =
            (self.lengths.iter()).find_map(|(name, lengths)| (name == hash).then_some(*lengths));
        let Some(lengths) = lengths else {
            let known: Vec<&str> = self.lengths.iter().map(|(name, _)| *name).collect();
            return wrong(&format!("its hash is none of {}", known.join(", ")));
        };
        let Ok(bytes) = STANDARD.decode(encoded) else {
            return wrong("its third part is not base64");
        };
        let at = bytes.len().checked_sub(CRC_LEN);
        let Some((key, crc)) = at.map(|at| bytes.split_at(at)) else {
            return wrong("it is too short");
        };
        if !lengths.contains(&key.len()) {
            return wrong("its key has another length than its hash says");
        }
        if crc != crc32fast::hash(key).to_le_bytes() {
            return wrong("its checksum does not match");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "NVMeTLSkey-1:01:MDAxMTIyMzM0NDU1NjY3Nzg4OTlhYWJiY2NkZGVlZmZwJEiQ:";

    fn dhchap(hash: &str, length: u8) -> String {
        let mut key: Vec<u8> = (0..length).collect();
        let crc = crc32fast::hash(&key).to_le_bytes();
        key.extend(crc);
        format!("DHHC-1:{hash}:{}:", STANDARD.encode(key))
    }

    #[test]
    fn a_key_is_whole_and_its_checksum_right() {
        assert_eq!(check_psk(KEY.as_bytes()), Ok(()));
        for (bad, why) in [
            (KEY.replace("-1:", "-2:"), "another form"),
            (KEY.replace("NVMeTLSkey", "DHHC"), "another form"),
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
            let error = check_psk(bad.as_bytes()).unwrap_err();
            assert!(
                error.starts_with("it") && error.contains(why),
                "{bad}: {error}"
            );
        }
        assert!(check_psk(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn keys_that_are_made_are_right_and_never_the_same() {
        for (make, check) in [
            (
                new_psk as fn() -> Vec<u8>,
                check_psk as fn(&[u8]) -> Result<(), String>,
            ),
            (new_dhchap, check_dhchap),
        ] {
            let made: std::collections::BTreeSet<_> = (0..100).map(|_| make()).collect();
            assert_eq!(made.len(), 100);
            assert!(made.iter().all(|key| check(key) == Ok(())));
        }
    }

    #[test]
    fn a_key_of_dhchap_has_the_length_of_its_hash() {
        for (hash, length) in [
            ("00", 32),
            ("00", 48),
            ("00", 64),
            ("01", 32),
            ("02", 48),
            ("03", 64),
        ] {
            assert_eq!(check_dhchap(dhchap(hash, length).as_bytes()), Ok(()));
        }
        for (bad, why) in [
            (dhchap("01", 48), "length"),
            (dhchap("03", 32), "length"),
            (dhchap("00", 33), "length"),
            (dhchap("04", 32), "hash"),
            (dhchap("1", 32), "hash"),
            (dhchap("00", 32).replace("AAEC", "AAED"), "checksum"),
            (KEY.to_owned(), "another form"),
            (dhchap("00", 32) + "x", "another form"),
        ] {
            let error = check_dhchap(bad.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_reason_shows_nothing_of_the_key() {
        let error = check_psk(KEY.replace("MDAx", "MDAy").as_bytes()).unwrap_err();
        assert!(!error.contains("MTIyMzM0"), "{error}");
    }
}
