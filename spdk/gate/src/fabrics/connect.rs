//! Validates the data of a Connect command: NVMe over Fabrics 1.1a, section 3.3 ("Connect Command and Response").

/// The exact size of a Connect command's data, in bytes.
pub const CONNECT_DATA: usize = 1024;

/// The longest NQN in bytes, without its terminator (NVMe base specification, "NVMe Qualified Names").
pub const NQN_MAX: usize = 223;

/// The shortest NQN in bytes: `nqn.yyyy-mm` alone is too short to be valid.
pub const NQN_MIN: usize = 11;

/// The prefix of every NQN.
const NQN_PREFIX: &[u8] = b"nqn.";

/// Offset and length of each field; both NQNs are NUL-terminated.
const SUBNQN: (usize, usize) = (256, 256);
const HOSTNQN: (usize, usize) = (512, 256);
const HOSTID: (usize, usize) = (0, 16);

/// The invalid field of a Connect command's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The data is not [`CONNECT_DATA`] bytes long.
    Length,
    /// All bytes are 0. That identifies no host, and SPDK would count it as a registrant of every reservation.
    HostId,
    /// Not a NUL-terminated NQN.
    SubNqn,
    /// Not a NUL-terminated NQN.
    HostNqn,
}

/// Valid data of a Connect command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// The host's ID.
    pub host_id: &'a [u8],
    /// The subsystem's NQN.
    pub subnqn: &'a [u8],
    /// The host's NQN; empty for a host that sends none, as some tools do. An empty name matches no host.
    pub hostnqn: &'a [u8],
}

impl<'a> Connect<'a> {
    /// Parses and validates the data, or returns the invalid field.
    pub fn parse(data: &'a [u8]) -> Result<Self, Fault> {
        if data.len() != CONNECT_DATA {
            return Err(Fault::Length);
        }
        let host_id = field(data, HOSTID).ok_or(Fault::Length)?;
        if host_id.iter().all(|byte| *byte == 0) {
            return Err(Fault::HostId);
        }
        Ok(Self {
            host_id,
            subnqn: field(data, SUBNQN).and_then(nqn).ok_or(Fault::SubNqn)?,
            hostnqn: field(data, HOSTNQN)
                .and_then(|field| nothing(field).or_else(|| nqn(field)))
                .ok_or(Fault::HostNqn)?,
        })
    }
}

fn field(data: &[u8], (offset, length): (usize, usize)) -> Option<&[u8]> {
    data.get(offset..offset.checked_add(length)?)
}

/// Returns the empty name for a field whose first byte is the terminator.
fn nothing(field: &[u8]) -> Option<&[u8]> {
    field.first().filter(|byte| **byte == 0)?;
    field.get(..0)
}

/// Returns the NQN before the terminator. Whitespace and control characters are valid UTF-8 but rejected: they
/// separate the parts of a PSK identity and the lines of a log.
fn nqn(field: &[u8]) -> Option<&[u8]> {
    let end = field.iter().position(|byte| *byte == 0)?;
    let nqn = field.get(..end)?;
    let known = nqn.starts_with(NQN_PREFIX) && (NQN_MIN..=NQN_MAX).contains(&nqn.len());
    let clean = core::str::from_utf8(nqn)
        .is_ok_and(|text| !text.chars().any(|c| c.is_control() || c.is_whitespace()));
    (known && clean).then_some(nqn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const SUBSYSTEM: &str = "nqn.2022-09.io.spdk:a";
    const HOST: &str = "nqn.2022-09.io.spdk:h";

    fn data(host_id: [u8; 16], subnqn: &[u8], hostnqn: &[u8]) -> Vec<u8> {
        let mut data = vec![0; CONNECT_DATA];
        data[..16].copy_from_slice(&host_id);
        data[256..256 + subnqn.len()].copy_from_slice(subnqn);
        data[512..512 + hostnqn.len()].copy_from_slice(hostnqn);
        data
    }

    fn fault(subnqn: &[u8], hostnqn: &[u8]) -> Option<Fault> {
        Connect::parse(&data([1; 16], subnqn, hostnqn)).err()
    }

    #[test]
    fn right_data_names_host_and_subsystem() {
        let data = data([7; 16], SUBSYSTEM.as_bytes(), HOST.as_bytes());
        let connect = Connect::parse(&data).expect("it is right");
        assert_eq!(connect.host_id, [7; 16]);
        assert_eq!(connect.subnqn, SUBSYSTEM.as_bytes());
        assert_eq!(connect.hostnqn, HOST.as_bytes());
    }

    #[test]
    fn any_other_length_is_refused() {
        let right = data([7; 16], SUBSYSTEM.as_bytes(), HOST.as_bytes());
        for length in (0..CONNECT_DATA).chain([CONNECT_DATA + 1, 128 << 10]) {
            let mut bytes = right.clone();
            bytes.resize(length, 0);
            assert_eq!(Connect::parse(&bytes), Err(Fault::Length), "{length}");
        }
    }

    #[test]
    fn names_that_are_no_nqn_are_refused() {
        let (sub, host) = (SUBSYSTEM.as_bytes(), HOST.as_bytes());
        assert_eq!(fault(sub, host), None);
        let longest = [b"nqn.".as_slice(), &[b'x'; NQN_MAX - 4]].concat();
        assert_eq!(fault(sub, &longest), None);
        assert_eq!(fault(b"", host), Some(Fault::SubNqn));
        assert_eq!(fault(sub, b""), None, "a host that does not tell its name");
        for wrong in [
            b"nqn.".as_slice(),
            b"iqn.2022-09.io.spdk:h",
            b"nqn.2022-09.io.spdk:a b",
            b"nqn.2022-09.io.spdk:a\nb",
            b"nqn.2022-09.io.spdk:\x1b[2J",
            b"nqn.2022-09.io.spdk:\xff\xfe",
            "nqn.2022-09.io.spdk:a\u{85}b".as_bytes(),
            &[&longest[..], b"x"].concat(),
            &[b'n'; 256],
        ] {
            assert_eq!(fault(wrong, host), Some(Fault::SubNqn), "{wrong:?}");
            assert_eq!(fault(sub, wrong), Some(Fault::HostNqn), "{wrong:?}");
        }
    }

    #[test]
    fn a_host_id_of_zeroes_is_refused() {
        let data = data([0; 16], SUBSYSTEM.as_bytes(), HOST.as_bytes());
        assert_eq!(Connect::parse(&data), Err(Fault::HostId));
    }

    proptest! {
        #[test]
        fn what_passes_is_terminated_and_clean(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
            if let Ok(connect) = Connect::parse(&bytes) {
                for nqn in [connect.subnqn, connect.hostnqn] {
                    prop_assert!(nqn.len() <= NQN_MAX);
                    prop_assert!(!nqn.iter().any(|byte| *byte <= b' '));
                }
            }
        }

        #[test]
        fn a_terminated_nqn_passes_as_it_is(name in "[!-~]{7,219}", tail in any::<u8>()) {
            let nqn = std::format!("nqn.{name}");
            let mut data = data([1; 16], nqn.as_bytes(), HOST.as_bytes());
            // Bytes after the terminator are ignored.
            data[256 + 255] = tail;
            let connect = Connect::parse(&data).expect("it is right");
            prop_assert_eq!(connect.subnqn, nqn.as_bytes());
        }
    }
}
