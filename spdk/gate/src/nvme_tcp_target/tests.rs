//! Exhaustive tests of small fields, and property tests of the rest against the rule of each check.

use std::vec;

use proptest::prelude::*;

use super::*;

const PHASES: [Phase; 6] = [
    Phase::New,
    Phase::Unadmitted,
    Phase::Authenticating,
    Phase::Discovering,
    Phase::Connected,
    Phase::Closed,
];

fn connection(phase: Phase, digests: u8) -> Connection {
    Connection {
        phase,
        is_admin: false,
        header_digest: digests & 1 != 0,
        data_digest: digests & 2 != 0,
        cpda: 0,
        in_capsule_max: 4096,
        transfer_max: 131_072,
    }
}

fn header(kind: u8, flags: u8, hlen: u8, pdo: u8, plen: u32) -> [u8; 8] {
    let [a, b, c, d] = plen.to_le_bytes();
    [kind, flags, hlen, pdo, a, b, c, d]
}

/// A valid header of each type; H2CData and capsules have `data` bytes.
fn right(connection: &Connection, kind: u8, data: u32) -> [u8; 8] {
    let digests = u8::from(connection.header_digest);
    let with_data = digests | u8::from(connection.data_digest) << 1;
    let tail = data + connection.data_digest_length();
    match kind {
        kind::IC_REQ => header(kind, 0, 128, 0, 128),
        kind::H2C_TERM_REQ => header(kind, 0, 24, 0, 48),
        kind::CAPSULE_CMD if data == 0 => {
            header(kind, digests, 72, 0, connection.header_end(CAPSULE_HEADER))
        }
        _ => {
            let hlen = if kind == kind::CAPSULE_CMD { 72 } else { 24 };
            let pdo = connection.header_end(hlen);
            header(kind, with_data, hlen as u8, pdo as u8, pdo + tail)
        }
    }
}

fn command(opcode: u8, fctype: u8, sgl: u8, length: u32) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = opcode;
    bytes[1] = 0x40;
    bytes[4] = fctype;
    bytes[32..36].copy_from_slice(&length.to_le_bytes());
    bytes[39] = sgl;
    bytes
}

fn data_header(pdo: u8, plen: u32, cccid: u16, offset: u32, length: u32, last: bool) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[1] = if last { 4 } else { 0 };
    bytes[3] = pdo;
    bytes[4..8].copy_from_slice(&plen.to_le_bytes());
    bytes[8..10].copy_from_slice(&cccid.to_le_bytes());
    bytes[12..16].copy_from_slice(&offset.to_le_bytes());
    bytes[16..20].copy_from_slice(&length.to_le_bytes());
    bytes
}

#[test]
fn each_phase_takes_its_own_pdus() {
    for digests in 0..4 {
        for phase in PHASES {
            let connection = connection(phase, digests);
            for kind in 0..=u8::MAX {
                let verdict = common_header(&connection, right(&connection, kind, 512));
                let expected = matches!(
                    (phase, kind),
                    (Phase::New, kind::IC_REQ)
                        | (
                            Phase::Unadmitted
                                | Phase::Authenticating
                                | Phase::Discovering
                                | Phase::Connected,
                            kind::H2C_TERM_REQ | kind::CAPSULE_CMD | kind::H2C_DATA,
                        )
                );
                assert_eq!(verdict.is_ok(), expected, "{phase:?} {kind} {verdict:?}");
            }
        }
    }
}

#[test]
fn header_lengths_are_those_of_the_type() {
    for (kind, phase) in [
        (kind::IC_REQ, Phase::New),
        (kind::H2C_TERM_REQ, Phase::Connected),
        (kind::CAPSULE_CMD, Phase::Connected),
        (kind::H2C_DATA, Phase::Connected),
    ] {
        let connection = connection(phase, 0);
        let right = right(&connection, kind, 512);
        for hlen in 0..=u8::MAX {
            let mut bytes = right;
            bytes[2] = hlen;
            assert_eq!(common_header(&connection, bytes).is_ok(), hlen == right[2]);
        }
    }
    let connection = connection(Phase::Connected, 0);
    for plen in 0..200 {
        let bytes = header(kind::H2C_TERM_REQ, 0, 24, 0, plen);
        let verdict = common_header(&connection, bytes);
        assert_eq!(verdict.is_ok(), (25..=152).contains(&plen), "{plen}");
    }
}

#[test]
fn data_begins_after_the_header_and_aligned() {
    for kind in [kind::CAPSULE_CMD, kind::H2C_DATA] {
        for digests in 0..4 {
            for cpda in 0..32 {
                let mut connection = connection(Phase::Connected, digests);
                connection.cpda = cpda;
                let hlen = if kind == kind::CAPSULE_CMD { 72 } else { 24 };
                let end = connection.header_end(hlen);
                for pdo in 0..=u8::MAX {
                    let tail = 512 + connection.data_digest_length();
                    let plen = u32::from(pdo) + tail;
                    let bytes = header(kind, digests, hlen as u8, pdo, plen);
                    let wide = u32::from(pdo);
                    let fits = wide >= end && wide <= 128;
                    let expected = fits && wide % ((u32::from(cpda) + 1) * 4) == 0;
                    let verdict = common_header(&connection, bytes);
                    assert_eq!(verdict.is_ok(), expected, "{kind} {pdo} {cpda} {digests}");
                }
            }
        }
    }
}

#[test]
fn digests_are_there_as_negotiated() {
    for kind in [kind::CAPSULE_CMD, kind::H2C_DATA] {
        for digests in 0..4 {
            let connection = connection(Phase::Connected, digests);
            for flags in 0..4 {
                let mut bytes = right(&connection, kind, 512);
                bytes[1] = flags;
                let verdict = common_header(&connection, bytes);
                assert_eq!(
                    verdict.is_ok(),
                    flags == digests,
                    "{kind} {digests} {flags}"
                );
            }
        }
    }
}

#[test]
fn before_admission_there_is_one_connect_of_1_kib() {
    let connection = connection(Phase::Unadmitted, 0);
    let connect = command(0x7f, 1, 0x01, 1024);
    assert_eq!(capsule(&connection, &connect, 1024), Ok(()));
    assert_eq!(
        capsule(&connection, &command(0x7f, 1, 0x5a, 1024), 0),
        Ok(())
    );
    for length in [0, 1, 1023, 1025, 4096, u32::MAX] {
        assert!(capsule(&connection, &command(0x7f, 1, 0x01, length), length).is_err());
        assert!(capsule(&connection, &command(0x7f, 1, 0x5a, length), 0).is_err());
    }
    for opcode in 0..=u8::MAX {
        for fctype in 0..=u8::MAX {
            let verdict = capsule(&connection, &command(opcode, fctype, 0x5a, 1024), 0);
            assert_eq!(verdict.is_ok(), (opcode, fctype) == (0x7f, 1));
        }
    }
    let too_long = right(&connection, kind::CAPSULE_CMD, 1025);
    assert!(common_header(&connection, too_long).is_err());
    for phase in [Phase::New, Phase::Closed] {
        assert!(capsule(&super::tests::connection(phase, 0), &connect, 1024).is_err());
    }
}

#[test]
fn until_the_host_has_authenticated_a_command_moves_one_small_buffer_at_most() {
    let connection = connection(Phase::Authenticating, 0);
    for (fctype, opcode) in [(5, 0x7f), (2, 0x7f), (6, 6), (0, 1), (0, 2)] {
        for length in [0, 1, 4095, 4096, 4097, 8192, 131_072, u32::MAX] {
            let sent = capsule(&connection, &command(opcode, fctype, 0x5a, length), 0);
            assert_eq!(sent.is_ok(), length <= 4096, "{opcode} {fctype} {length}");
        }
    }
    for length in [1, 4096, 4097, 8192] {
        let sent = capsule(&connection, &command(0x7f, 5, 0x01, length), length);
        assert_eq!(sent.is_ok(), length <= 4096, "{length}");
        for kind in [kind::CAPSULE_CMD, kind::H2C_DATA] {
            let verdict = common_header(&connection, right(&connection, kind, length));
            assert_eq!(verdict.is_ok(), length <= 4096, "{kind} {length}");
        }
    }
}

#[test]
fn the_discovery_service_sends_much_and_takes_4_kib_inside_a_capsule() {
    let mut connection = connection(Phase::Discovering, 0);
    connection.is_admin = true;
    let later = capsule(&connection, &command(0x21, 0, 0x5a, 4096), 0);
    assert!(later.is_err(), "data that it would ask for");
    for (opcode, fctype) in [(2, 0), (6, 0), (0x7f, 4)] {
        let sent = capsule(&connection, &command(opcode, fctype, 0x5a, 131_072), 0);
        assert!(sent.is_ok(), "{opcode}");
        let sent = capsule(&connection, &command(opcode, fctype, 0x5a, 131_073), 0);
        assert_eq!(sent.is_ok(), opcode == 0x7f, "{opcode}");
    }
    for length in [1, 4096, 4097, 8192] {
        let sent = capsule(&connection, &command(9, 0, 0x01, length), length);
        assert_eq!(sent.is_ok(), length <= 4096, "{length}");
        let verdict = common_header(&connection, right(&connection, kind::CAPSULE_CMD, length));
        assert_eq!(verdict.is_ok(), length <= 4096, "{length}");
    }
}

#[test]
fn a_host_may_allocate_any_length_for_an_authentication_message() {
    for (phase, is_admitted) in [
        (Phase::New, false),
        (Phase::Unadmitted, false),
        (Phase::Authenticating, true),
        (Phase::Discovering, true),
        (Phase::Connected, true),
        (Phase::Closed, false),
    ] {
        let connection = connection(phase, 0);
        for length in [1, 4096, 4097, 131_072, 131_073, u32::MAX] {
            let asked = capsule(&connection, &command(0x7f, 6, 0x5a, length), 0);
            assert_eq!(asked.is_ok(), is_admitted, "{phase:?} {length}");
            let inside = capsule(&connection, &command(0x7f, 6, 0x01, length), 0);
            assert!(inside.is_err(), "{phase:?} {length}");
        }
    }
}

#[test]
fn fused_bits_are_for_io_commands() {
    let mut connection = connection(Phase::Connected, 0);
    for is_admin in [false, true] {
        connection.is_admin = is_admin;
        for fuse in 0..4 {
            let mut write = command(1, 0, 0x5a, 512);
            write[1] |= fuse;
            let expected = fuse == 0 || (!is_admin && fuse < 3);
            assert_eq!(capsule(&connection, &write, 0).is_ok(), expected);
        }
    }
    let mut property = command(0x7f, 4, 0x5a, 0);
    property[1] |= 1;
    assert!(capsule(&connection, &property, 0).is_err());
}

#[test]
fn control_commands_take_8_kib_inside_and_io_what_was_announced() {
    let mut connection = connection(Phase::Connected, 0);
    for (is_admin, opcode, limit) in [(true, 0x19, 8192), (false, 0x7f, 8192), (false, 1, 4096)] {
        connection.is_admin = is_admin;
        for length in [1, 4096, 4097, 8192, 8193, 16384] {
            let verdict = capsule(&connection, &command(opcode, 5, 0x01, length), length);
            assert_eq!(verdict.is_ok(), length <= limit, "{opcode} {length}");
        }
    }
}

#[test]
fn h2c_data_for_nothing_asked_is_out_of_sequence() {
    let connection = connection(Phase::Connected, 0);
    let expected = Expected {
        asked: false,
        cid: 7,
        next: 0,
        length: 512,
    };
    let header = data_header(24, 536, 7, 0, 512, true);
    let refused = h2c_data(&connection, &expected, &header).unwrap_err();
    assert_eq!(refused.fatal, Fatal::Sequence);
    let asked = Expected {
        asked: true,
        ..expected
    };
    assert_eq!(h2c_data(&connection, &asked, &header), Ok(512));
    let closed = super::tests::connection(Phase::Closed, 0);
    assert!(h2c_data(&closed, &asked, &header).is_err());
}

#[test]
fn the_same_part_comes_once() {
    let connection = connection(Phase::Connected, 2);
    let mut expected = Expected {
        asked: true,
        cid: 1,
        next: 0,
        length: 1024,
    };
    let first = data_header(24, 24 + 1024 + 4, 1, 0, 1024, true);
    expected.next = h2c_data(&connection, &expected, &first).unwrap();
    assert!(h2c_data(&connection, &expected, &first).is_err());
}

proptest! {
    #[test]
    fn accepted_headers_have_data_of_1_byte_to_the_limit(
        bytes: [u8; 8], kind in 0_u8..8, digests in 0_u8..4, cpda in 0_u8..32,
        small in 0_u32..10_000, is_small: bool,
    ) {
        for phase in PHASES {
            let mut connection = connection(phase, digests);
            connection.cpda = cpda;
            let mut bytes = bytes;
            bytes[0] = kind;
            bytes[2] = if kind == kind::CAPSULE_CMD { 72 } else { 24 };
            if is_small {
                bytes[4..].copy_from_slice(&small.to_le_bytes());
            }
            if common_header(&connection, bytes).is_ok() && kind != kind::H2C_TERM_REQ {
                let plen = u64::from(u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]));
                let end = u64::from(connection.header_end(u32::from(bytes[2])));
                if !(kind == kind::CAPSULE_CMD && plen == end) {
                    let pdo = u64::from(bytes[3]);
                    prop_assert!(pdo >= end && pdo <= 128);
                    let data = plen.checked_sub(pdo + u64::from(connection.data_digest_length()));
                    let most = match phase {
                        Phase::Unadmitted => 1024,
                        Phase::Authenticating => 4096,
                        _ => 131_072,
                    };
                    prop_assert!((1..=most).contains(&data.unwrap()));
                }
            }
        }
    }

    #[test]
    fn data_inside_iff_the_sgl_says_so_and_the_command_takes_it(
        bytes in prop::collection::vec(any::<u8>(), 64), sgl in prop::sample::select(vec![0x01, 0x5a, 0x00, 0x40]),
        length in prop_oneof![0_u32..9000, any::<u32>()], inside in 0_u32..9000, same: bool, is_admin: bool,
    ) {
        let mut connection = connection(Phase::Connected, 0);
        connection.is_admin = is_admin;
        let mut command: [u8; 64] = bytes.try_into().unwrap();
        let inside = if same { length.min(9000) } else { inside };
        command[32..36].copy_from_slice(&length.to_le_bytes());
        command[39] = sgl;
        let bits = if command[0] == 0x7f { command[4] } else { command[0] } & 3;
        if capsule(&connection, &command, inside).is_ok() {
            prop_assert!(inside == 0 || (bits == 1 && sgl == 0x01 && length == inside));
            if length > 0 && (bits == 1 || bits == 2) {
                prop_assert!(sgl == 0x5a || (sgl == 0x01 && inside > 0));
                let is_auth_receive = command[0] == 0x7f && command[4] == 6;
                prop_assert!(length <= 131_072 || is_auth_receive);
            }
        }
    }

    #[test]
    fn accepted_data_lies_inside_what_was_asked_for(
        header in prop::collection::vec(any::<u8>(), 24), next in 0_u32..5000, length in 0_u32..5000,
        offset in prop_oneof![0_u32..5000, any::<u32>()], datal in prop_oneof![0_u32..5000, any::<u32>()],
        right_plen: bool, right_offset: bool, digests in 0_u8..4,
    ) {
        let connection = connection(Phase::Connected, digests);
        let mut header: [u8; 24] = header.try_into().unwrap();
        let offset = if right_offset { next } else { offset };
        header[8..10].copy_from_slice(&[1, 0]);
        header[12..16].copy_from_slice(&offset.to_le_bytes());
        header[16..20].copy_from_slice(&datal.to_le_bytes());
        if right_plen {
            let plen = u32::from(header[3]).wrapping_add(datal).wrapping_add(connection.data_digest_length());
            header[4..8].copy_from_slice(&plen.to_le_bytes());
        }
        let expected = Expected { asked: true, cid: 1, next, length };
        if let Ok(end) = h2c_data(&connection, &expected, &header) {
            prop_assert_eq!(u64::from(offset) + u64::from(datal), u64::from(end));
            prop_assert!(offset == next && datal > 0 && end <= length);
            prop_assert_eq!(header[1] & 4 != 0, end == length);
        }
    }

    #[test]
    fn an_r2t_answered_in_any_parts_is_accepted_once(
        cuts in prop::collection::vec(1_u32..3000, 1..8), digests in 0_u8..4,
    ) {
        let connection = connection(Phase::Connected, digests);
        let length = cuts.iter().sum();
        let mut expected = Expected { asked: true, cid: 3, next: 0, length };
        for (n, part) in cuts.iter().enumerate() {
            let plen = 28 + part + connection.data_digest_length();
            let header = data_header(28, plen, 3, expected.next, *part, n + 1 == cuts.len());
            expected.next = h2c_data(&connection, &expected, &header).unwrap();
        }
        prop_assert_eq!(expected.next, length);
    }
}
