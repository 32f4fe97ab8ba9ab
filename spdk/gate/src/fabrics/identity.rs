//! Parses the identity of a pre-shared key: NVMe/TCP transport specification 1.0c, section 3.6.1.3 ("PSK Identity"):
//! `NVMe<version><type><hash> <host NQN> <subsystem NQN>[ <digest>]`.

use super::connect::NQN_MAX;

/// Bytes of `NVMe`, one version digit, `R` or `G`, and two hash digits.
const PREFIX: usize = 8;

/// The longest digest (48 bytes), in base64 characters.
const DIGEST_MAX: usize = 64;

/// The longest identity in bytes, without a terminator.
pub const PSK_IDENTITY_MAX: usize = PREFIX + 3 + 2 * NQN_MAX + DIGEST_MAX;

/// Returns whether bytes of a ClientHello can be a PSK identity: printable UTF-8 without an embedded NUL, 1 to
/// [`PSK_IDENTITY_MAX`] bytes.
pub fn is_well_formed(identity: &[u8]) -> bool {
    let graphic = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ' || *byte >= 0x80;
    (1..=PSK_IDENTITY_MAX).contains(&identity.len())
        && identity.iter().all(graphic)
        && core::str::from_utf8(identity).is_ok()
}

/// Returns whether the identity is that of this host's key for this subsystem.
pub fn names(identity: &[u8], hostnqn: &[u8], subnqn: &[u8]) -> bool {
    let mut parts = identity.split(|byte| *byte == b' ');
    let (Some(prefix), Some(host), Some(subsystem)) = (parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    // Version 1 includes a digest of the key. The handshake has verified the key by now, so the digest is not
    // compared.
    let digest = parts.next();
    let version = prefix.get(..5);
    let complete = match version {
        Some(b"NVMe0") => digest.is_none(),
        Some(b"NVMe1") => digest.is_some_and(|digest| !digest.is_empty()),
        _ => false,
    };
    let whole = prefix.len() == PREFIX && parts.next().is_none();
    whole && complete && !host.is_empty() && host == hostnqn && subsystem == subnqn
}

/// Returns the host NQN and the subsystem NQN in an identity; empty where missing.
pub fn nqns(identity: &[u8]) -> (&[u8], &[u8]) {
    let mut parts = identity.split(|byte| *byte == b' ').skip(1);
    let host = parts.next().unwrap_or_default();
    (host, parts.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::format;
    use std::string::String;

    const HOST: &str = "nqn.2022-09.io.spdk:h";
    const SUBSYSTEM: &str = "nqn.2022-09.io.spdk:s";

    fn of(identity: &str) -> bool {
        names(identity.as_bytes(), HOST.as_bytes(), SUBSYSTEM.as_bytes())
    }

    #[test]
    fn an_identity_names_its_host_and_subsystem() {
        assert!(of(&format!("NVMe0R01 {HOST} {SUBSYSTEM}")));
        assert!(of(&format!("NVMe0R02 {HOST} {SUBSYSTEM}")));
        assert!(of(&format!("NVMe1R01 {HOST} {SUBSYSTEM} digest=")));
    }

    #[test]
    fn what_an_identity_names_is_told_as_far_as_it_goes() {
        let whole = format!("NVMe0R01 {HOST} {SUBSYSTEM}");
        assert_eq!(
            nqns(whole.as_bytes()),
            (HOST.as_bytes(), SUBSYSTEM.as_bytes())
        );
        let host = format!("x {HOST}");
        assert_eq!(nqns(host.as_bytes()), (HOST.as_bytes(), &b""[..]));
        assert_eq!(nqns(b"nothing"), (&b""[..], &b""[..]));
    }

    #[test]
    fn another_or_broken_identity_does_not() {
        for other in [
            String::new(),
            format!("NVMe0R01 {SUBSYSTEM} {HOST}"),
            format!("NVMe0R01 {HOST}x {SUBSYSTEM}"),
            format!("NVMe0R01 {HOST} {SUBSYSTEM}x"),
            format!("NVMe0R01 {HOST}"),
            format!("NVMe0R01 {HOST} {SUBSYSTEM} digest"),
            format!("NVMe1R01 {HOST} {SUBSYSTEM}"),
            format!("NVMe1R01 {HOST} {SUBSYSTEM} "),
            format!("NVMe1R01 {HOST} {SUBSYSTEM} a b"),
            format!("NVMe2R01 {HOST} {SUBSYSTEM}"),
            format!("NVMe0R0 {HOST} {SUBSYSTEM}"),
            format!("NVMe0R01  {HOST} {SUBSYSTEM}"),
            format!("{HOST} {SUBSYSTEM}"),
        ] {
            assert!(!of(&other), "{other:?}");
        }
        assert!(!names(b"NVMe0R01  ", b"", b""), "names of nobody");
    }

    #[test]
    fn bytes_that_are_no_text_are_no_identity() {
        assert!(is_well_formed(
            format!("NVMe0R01 {HOST} {SUBSYSTEM}").as_bytes()
        ));
        assert!(is_well_formed(&[b'x'; PSK_IDENTITY_MAX]));
        for wrong in [
            b"".as_slice(),
            b"a\0b",
            b"a\nb",
            b"\xff",
            &[b'x'; PSK_IDENTITY_MAX + 1],
        ] {
            assert!(!is_well_formed(wrong), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn only_the_very_names_match(host in "[!-~]{1,30}", sub in "[!-~]{1,30}", other in "[!-~]{1,30}") {
            let identity = format!("NVMe0R01 {host} {sub}");
            let matches = |h: &str, s: &str| names(identity.as_bytes(), h.as_bytes(), s.as_bytes());
            prop_assert!(matches(&host, &sub));
            prop_assert_eq!(matches(&other, &sub), other == host);
            prop_assert_eq!(matches(&host, &other), other == sub);
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = is_well_formed(&bytes);
            let _ = names(&bytes, HOST.as_bytes(), SUBSYSTEM.as_bytes());
        }
    }
}
