//! DH-HMAC-CHAP: the hashes and DH groups that this machine accepts, of hosts as of peers.

use std::str::FromStr;

use spdk_sys as sys;

/// A hash function, by its number in the exchange (NVMe Base Specification 2.1, 8.3.5.5), weakest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hash {
    /// SHA-256.
    #[default]
    Sha256 = 1,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// A Diffie-Hellman group (RFC 7919), by its number in the exchange, weakest first. That of 8,192 bits is not accepted: it
/// would take a reactor 30 ms in each exchange.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// None: the key alone protects the exchange.
    #[default]
    Null,
    /// 2,048 bits.
    Ffdhe2048,
    /// 3,072 bits.
    Ffdhe3072,
    /// 4,096 bits.
    Ffdhe4096,
    /// 6,144 bits.
    Ffdhe6144,
}

impl Hash {
    /// All, with the names that nvme-cli and SPDK use.
    const NAMES: [(&'static str, Self); 3] = [
        ("sha256", Self::Sha256),
        ("sha384", Self::Sha384),
        ("sha512", Self::Sha512),
    ];
}

impl Group {
    /// All, with the names that nvme-cli and SPDK use.
    const NAMES: [(&'static str, Self); 5] = [
        ("null", Self::Null),
        ("ffdhe2048", Self::Ffdhe2048),
        ("ffdhe3072", Self::Ffdhe3072),
        ("ffdhe4096", Self::Ffdhe4096),
        ("ffdhe6144", Self::Ffdhe6144),
    ];
}

/// Returns the value of this name; the names there are if it is none of them.
fn named<T: Copy>(name: &str, names: &[(&str, T)]) -> Result<T, String> {
    let found = names.iter().find(|(of, _)| *of == name);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let all: Vec<&str> = names.iter().map(|(of, _)| *of).collect();
        format!("{name:?} is none of {}", all.join(", "))
    })
}

impl FromStr for Hash {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        named(name, &Self::NAMES)
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        named(name, &Self::NAMES)
    }
}

/// The weakest hash and group that are accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weakest {
    /// The hash.
    pub hash: Hash,
    /// The group.
    pub group: Group,
}

impl Weakest {
    /// As SPDK's options have it: a bit for each hash and group that is accepted.
    pub(crate) fn accepted(self) -> sys::opi_dhchap_accepted {
        sys::opi_dhchap_accepted {
            hashes: bits(self.hash as u32, Hash::Sha512 as u32),
            groups: bits(self.group as u32, Group::Ffdhe6144 as u32),
        }
    }
}

/// The bits of `first` to `last`.
fn bits(first: u32, last: u32) -> u32 {
    (first..=last).fold(0, |bits, bit| bits | 1 << bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_weaker_is_not_accepted() {
        let accepted = |hash, group| {
            let accepted = Weakest { hash, group }.accepted();
            (accepted.hashes, accepted.groups)
        };
        assert_eq!(accepted(Hash::Sha256, Group::Null), (0b1110, 0b1_1111));
        assert_eq!(accepted(Hash::Sha384, Group::Ffdhe2048), (0b1100, 0b1_1110));
        assert_eq!(accepted(Hash::Sha512, Group::Ffdhe6144), (0b1000, 0b1_0000));
    }

    #[test]
    fn names_are_those_of_the_list() {
        assert_eq!("sha384".parse(), Ok(Hash::Sha384));
        assert_eq!("ffdhe6144".parse(), Ok(Group::Ffdhe6144));
        let error = "md5".parse::<Hash>().expect_err("no such hash");
        assert_eq!(error, "\"md5\" is none of sha256, sha384, sha512");
        assert!("ffdhe8192".parse::<Group>().is_err());
    }
}
