//! Locates the binder of a pre-shared key in a TLS ClientHello. With the binder the sender proves which key it holds
//! (RFC 8446, 4.2.11).

/// Handshake type of a ClientHello.
const CLIENT_HELLO: usize = 1;
/// Type of the pre_shared_key extension, which must be the last one.
const PRE_SHARED_KEY: usize = 41;
/// Bytes of the version and the random field.
const FIXED: usize = 2 + 32;
/// Bytes of obfuscated_ticket_age, which follows each identity.
const AGE: usize = 4;

/// The position of a binder in its ClientHello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binder {
    /// Length of the prefix of the ClientHello that the binder authenticates, in bytes.
    pub covered: usize,
    /// Offset of the binder.
    pub at: usize,
    /// Length of the binder, in bytes.
    pub length: usize,
}

/// A cursor over bytes; those before `at` are consumed.
#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    /// Reads a big-endian number of `bytes` bytes.
    fn number(&mut self, bytes: usize) -> Option<usize> {
        let taken = self.take(bytes)?;
        let number = taken
            .iter()
            .fold(0_u32, |all, byte| all << 8 | u32::from(*byte));
        usize::try_from(number).ok()
    }

    /// Reads a length field of `length` bytes, and returns a reader over the vector that follows.
    fn part(&mut self, length: usize) -> Option<Self> {
        let length = self.number(length)?;
        let at = self.at;
        self.take(length)?;
        let bytes = self.bytes.get(..self.at)?;
        Some(Self { bytes, at })
    }

    fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }
}

/// Finds the binder for `identity` in a ClientHello that includes its handshake header.
pub fn binder_of(hello: &[u8], identity: &[u8]) -> Option<Binder> {
    let mut message = Reader {
        bytes: hello,
        at: 0,
    };
    if message.number(1)? != CLIENT_HELLO {
        return None;
    }
    let mut body = message.part(3)?;
    if !message.is_at_end() {
        return None;
    }
    body.take(FIXED)?;
    // legacy_session_id, cipher_suites, legacy_compression_methods.
    body.part(1)?;
    body.part(2)?;
    body.part(1)?;
    let mut extensions = body.part(2)?;
    loop {
        let is_it = extensions.number(2)? == PRE_SHARED_KEY;
        let extension = extensions.part(2)?;
        if is_it {
            return extensions
                .is_at_end()
                .then(|| binder_in(extension, identity))?;
        }
    }
}

fn binder_in(mut extension: Reader<'_>, identity: &[u8]) -> Option<Binder> {
    let mut identities = extension.part(2)?;
    let covered = extension.at;
    let mut binders = extension.part(2)?;
    if !extension.is_at_end() {
        return None;
    }
    loop {
        let offered = identities.part(2)?;
        identities.take(AGE)?;
        let binder = binders.part(1)?;
        if offered.bytes.get(offered.at..) == Some(identity) {
            let length = binder.bytes.len().checked_sub(binder.at)?;
            let at = binder.at;
            return Some(Binder {
                covered,
                at,
                length,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    /// Prefixes `bytes` with their length.
    fn part(length: usize, bytes: &[u8]) -> Vec<u8> {
        let number = u32::try_from(bytes.len()).expect("short").to_be_bytes();
        [&number[4 - length..], bytes].concat()
    }

    fn hello(offers: &[(&[u8], &[u8])], last: &[u8]) -> Vec<u8> {
        let identities: Vec<u8> = offers
            .iter()
            .flat_map(|(identity, _)| [part(2, identity), [0; AGE].to_vec()].concat())
            .collect();
        let binders: Vec<u8> = offers
            .iter()
            .flat_map(|(_, binder)| part(1, binder))
            .collect();
        let psk = [part(2, &identities), part(2, &binders)].concat();
        let other = [&[0, 43][..], &part(2, &[2, 3, 4])].concat();
        let extensions = [&other[..], &[0, 41], &part(2, &psk), last].concat();
        let body = [
            &[7; FIXED][..],
            &part(1, &[1; 32]),
            &part(2, &[0x13, 1]),
            &part(1, &[0]),
            &part(2, &extensions),
        ];
        [&[1][..], &part(3, &body.concat())].concat()
    }

    #[test]
    fn the_binder_of_an_identity_is_found_and_what_it_covers() {
        let offers: [(&[u8], &[u8]); 2] = [(b"first", &[1; 32]), (b"second", &[2; 48])];
        let hello = hello(&offers, &[]);
        // Not covered: the length of the binder list (2 bytes), and each binder with its length byte.
        let covered = hello.len() - (1 + 32 + 1 + 48 + 2);
        for (identity, binder) in offers {
            let found = binder_of(&hello, identity).expect("it is there");
            assert_eq!(found.covered, covered);
            assert_eq!(&hello[found.at..found.at + found.length], binder);
        }
        assert_eq!(binder_of(&hello, b"third"), None);
        assert_eq!(binder_of(&hello, b"firs"), None);
    }

    #[test]
    fn a_hello_that_is_cut_or_goes_on_has_none() {
        let offers: [(&[u8], &[u8]); 1] = [(b"it", &[1; 32])];
        let whole = hello(&offers, &[]);
        for end in 0..whole.len() {
            assert_eq!(binder_of(&whole[..end], b"it"), None, "{end}");
        }
        assert_eq!(binder_of(&[&whole[..], &[0]].concat(), b"it"), None);
        assert_eq!(
            binder_of(&hello(&offers, &[0, 1, 0, 0]), b"it"),
            None,
            "not the last"
        );
        let mut other = whole;
        other[0] = 2;
        assert_eq!(binder_of(&other, b"it"), None, "no ClientHello");
    }

    proptest! {
        #[test]
        fn a_binder_is_inside_of_its_hello(at in 0_usize..150, byte: u8, cut in 0_usize..200) {
            let mut hello = hello(&[(b"it", &[1; 32])], &[]);
            if let Some(to) = hello.get_mut(at) {
                *to = byte;
            }
            hello.truncate(cut);
            if let Some(binder) = binder_of(&hello, b"it") {
                prop_assert!(binder.covered < binder.at);
                prop_assert!(binder.at + binder.length <= hello.len());
            }
        }
    }
}
