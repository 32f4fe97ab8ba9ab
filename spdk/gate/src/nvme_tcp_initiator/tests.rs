use super::*;
use proptest::prelude::*;

const NONE: Digests = Digests {
    header: false,
    data: false,
};
const BOTH: Digests = Digests {
    header: true,
    data: true,
};

const READ: Command = Command {
    admin: false,
    opcode: 2,
    transfer: Transfer::FromPeer,
    size: 1024,
    in_capsule: false,
    requested: 0,
    received: 0,
    r2t_waits: false,
    ended: false,
};
const WRITE: Command = Command {
    opcode: 1,
    transfer: Transfer::ToPeer,
    ..READ
};

fn pdu(kind: u8, flags: u8, hlen: u8, pdo: u8, plen: u32) -> Header {
    Header {
        kind,
        flags,
        hlen,
        pdo,
        plen,
    }
}

#[test]
fn headers_have_the_lengths_of_their_type() {
    for (one, digests, fits) in [
        (pdu(1, 0, 128, 0, 128), NONE, true),
        (pdu(1, 0, 128, 0, 132), BOTH, false),
        (pdu(5, 0, 24, 0, 24), NONE, true),
        (pdu(5, 1, 24, 0, 28), BOTH, true),
        (pdu(5, 0, 24, 0, 28), BOTH, false),
        (pdu(5, 1, 24, 0, 28), NONE, false),
        (pdu(5, 1, 24, 0, 24), NONE, false),
        (pdu(5, 0, 23, 0, 24), NONE, false),
        (pdu(9, 0, 24, 0, 24), NONE, true),
        (pdu(9, 0, 24, 0, 25), NONE, false),
        (pdu(7, 0, 24, 24, 25), NONE, true),
        (pdu(7, 0, 24, 24, 24), NONE, false),
        (pdu(7, 0, 24, 20, 512), NONE, false),
        (pdu(7, 0, 24, 25, 512), NONE, false),
        (pdu(7, 0, 24, 128, 512), NONE, true),
        (pdu(7, 0, 24, 250, 512), NONE, false),
        (pdu(7, 3, 24, 28, 540), BOTH, true),
        (pdu(7, 3, 24, 24, 540), BOTH, false),
        (pdu(7, 1, 24, 28, 540), BOTH, false),
        (pdu(7, 2, 24, 24, 540), NONE, false),
        (pdu(3, 0, 24, 0, 25), NONE, true),
        (pdu(3, 0, 24, 0, 24), NONE, false),
        (pdu(3, 0, 24, 0, 153), NONE, false),
        (pdu(0, 0, 128, 0, 128), NONE, false),
        (pdu(4, 0, 72, 0, 72), NONE, false),
        (pdu(255, 0, 24, 0, 24), NONE, false),
    ] {
        assert_eq!(header(one, digests).is_ok(), fits, "{one:?} {digests:?}");
    }
}

#[test]
fn a_connection_opens_with_what_was_asked_for() {
    let good = IcResp {
        pfv: 0,
        cpda: 31,
        digests: BOTH,
        maxh2cdata: 4096,
    };
    assert_eq!(ic_resp(good, BOTH), Ok(()));
    let bad = [
        IcResp { pfv: 1, ..good },
        IcResp { cpda: 32, ..good },
        IcResp {
            maxh2cdata: 4095,
            ..good
        },
        IcResp {
            maxh2cdata: 4098,
            ..good
        },
    ];
    for answer in bad {
        assert!(ic_resp(answer, BOTH).is_err(), "{answer:?}");
    }
    for asked in [
        NONE,
        Digests {
            header: true,
            ..NONE
        },
        Digests { data: true, ..NONE },
    ] {
        assert!(ic_resp(good, asked).is_err(), "{asked:?}");
    }
    let none = IcResp {
        digests: NONE,
        ..good
    };
    assert_eq!(ic_resp(none, BOTH), Ok(()));
}

#[test]
fn the_way_of_data_is_in_the_opcode() {
    let ways: std::vec::Vec<_> = [0x00, 0x01, 0x02, 0x03, 0x06, 0x0c, 0x7d]
        .map(Transfer::of)
        .into();
    use Transfer::{Both, FromPeer, None, ToPeer};
    assert_eq!(ways, [None, ToPeer, FromPeer, Both, FromPeer, None, ToPeer]);
}

#[test]
fn r2t_is_for_the_next_bytes_of_a_command_that_sends() {
    assert_eq!(r2t(&WRITE, 0, 1024), Ok(()));
    assert_eq!(r2t(&WRITE, 0, 512), Ok(()));
    let half = Command {
        requested: 512,
        ..WRITE
    };
    assert_eq!(r2t(&half, 512, 512), Ok(()));
    let fatal = |command: &Command, offset, length| match r2t(command, offset, length) {
        Err(refusal) => refusal.fatal,
        Ok(()) => panic!("{command:?} {offset} {length}"),
    };
    // The sum of both overflows to 512 in 32 bits.
    assert_eq!(fatal(&half, 512, 0xffff_fe00), Fatal::OutOfRange);
    assert_eq!(fatal(&half, 512, 513), Fatal::OutOfRange);
    assert_eq!(fatal(&WRITE, 0, 0), Fatal::OutOfRange);
    assert_eq!(fatal(&half, 0, 512), Fatal::InvalidHeaderField);
    assert_eq!(fatal(&WRITE, 512, 512), Fatal::InvalidHeaderField);
    assert_eq!(fatal(&READ, 0, 512), Fatal::PduSequence);
    for command in [
        Command {
            in_capsule: true,
            ..WRITE
        },
        Command { size: 0, ..WRITE },
        Command {
            ended: true,
            ..WRITE
        },
        Command {
            transfer: Transfer::None,
            ..WRITE
        },
    ] {
        assert_eq!(fatal(&command, 0, 512), Fatal::PduSequence);
    }
    let waits = Command {
        r2t_waits: true,
        ..half
    };
    assert_eq!(fatal(&waits, 512, 512), Fatal::LimitExceeded);
}

#[test]
fn data_comes_in_order_to_a_command_that_reads() {
    let at = |received| Command { received, ..READ };
    assert_eq!(c2h_data(&READ, 0, 1024, 0, 1024), Ok(()));
    assert_eq!(c2h_data(&READ, 0, 1024, 0b1100, 1024), Ok(()));
    assert_eq!(c2h_data(&at(512), 512, 512, 0b1100, 512), Ok(()));
    assert_eq!(c2h_data(&READ, 0, 512, 0b0100, 512), Ok(()));
    for (command, offset, length, flags, room) in [
        (READ, 0, 1025, 0, 1025),
        (at(512), 512, 0xffff_fe00, 0, 0xffff_fe00),
        (at(512), 0, 512, 0, 512),
        (READ, 512, 512, 0, 512),
        (READ, 0, 0, 0, 0),
        (READ, 0, 512, 0, 516),
        (READ, 0, 512, 0b1000, 512),
        (READ, 0, 512, 0b1100, 512),
        (WRITE, 0, 512, 0, 512),
        (
            Command {
                ended: true,
                ..READ
            },
            0,
            512,
            0,
            512,
        ),
        (Command { size: 0, ..READ }, 0, 512, 0, 512),
        (
            Command {
                opcode: 8,
                transfer: Transfer::None,
                ..READ
            },
            0,
            512,
            0,
            512,
        ),
    ] {
        let verdict = c2h_data(&command, offset, length, flags, room);
        assert!(
            verdict.is_err(),
            "{command:?} {offset} {length} {flags} {room}"
        );
    }
    // A log page may be shorter than its buffer.
    let log = Command {
        admin: true,
        ..READ
    };
    assert_eq!(c2h_data(&log, 0, 512, 0b1100, 512), Ok(()));
}

#[test]
fn success_means_that_the_data_was_moved() {
    let moved = Command {
        received: 1024,
        ..READ
    };
    let sent = Command {
        requested: 1024,
        ..WRITE
    };
    let in_capsule = Command {
        in_capsule: true,
        ..WRITE
    };
    let report = Command {
        opcode: 0x0e,
        ..READ
    };
    let identify = Command {
        admin: true,
        opcode: 6,
        ..READ
    };
    let log = Command {
        admin: true,
        ..READ
    };
    let flush = Command {
        opcode: 0,
        transfer: Transfer::None,
        ..READ
    };
    let both = Command {
        opcode: 1,
        transfer: Transfer::Both,
        ..READ
    };
    let message = Command {
        opcode: 0x7f,
        ..READ
    };
    assert_eq!(c2h_data(&message, 0, 512, 0b1100, 512), Ok(()));
    for command in [moved, sent, in_capsule, log, flush, both, message] {
        assert_eq!(response(&command, true), Ok(()), "{command:?}");
    }
    for command in [READ, WRITE, report, identify] {
        assert!(response(&command, true).is_err(), "{command:?}");
        assert_eq!(response(&command, false), Ok(()), "{command:?}");
    }
    for success in [false, true] {
        let again = Command {
            ended: true,
            ..moved
        };
        assert!(response(&again, success).is_err());
    }
}

proptest! {
    /// Invariant for any input: accepted data never exceeds the buffer, nor reaches a command that has ended.
    #[test]
    fn nothing_beyond_the_buffer_is_taken(
        size in any::<u32>(),
        steps in prop::collection::vec((any::<bool>(), any::<u32>(), any::<u32>(), any::<u8>()), 0..16),
    ) {
        for transfer in [Transfer::None, Transfer::ToPeer, Transfer::FromPeer, Transfer::Both] {
            let mut command = Command { size, transfer, ..READ };
            for (next, offset, length, flags) in &steps {
                let at = |done: u64| if *next { u32::try_from(done).unwrap_or(*offset) } else { *offset };
                let offset = at(command.requested);
                if r2t(&command, offset, *length).is_ok() {
                    prop_assert_eq!(u64::from(offset), command.requested);
                    command.requested += u64::from(*length);
                    prop_assert!(command.requested <= u64::from(size));
                    prop_assert!(transfer == Transfer::ToPeer);
                }
                let offset = at(command.received);
                if c2h_data(&command, offset, *length, *flags, *length).is_ok() {
                    prop_assert_eq!(u64::from(offset), command.received);
                    command.received += u64::from(*length);
                    prop_assert!(command.received <= u64::from(size));
                    prop_assert!(transfer == Transfer::FromPeer);
                }
            }
        }
    }

    /// Invariant: no accepted header makes SPDK read more than its 152 bytes of room, in which data begins at 128 at
    /// most.
    #[test]
    fn a_header_that_is_taken_fits(kind in 0_u8..12, flags: u8, hlen: u8, pdo: u8, plen: u32, of_header: bool, of_data: bool) {
        let digests = Digests { header: of_header, data: of_data };
        let one = Header { kind, flags, hlen, pdo, plen };
        if header(one, digests).is_ok() {
            prop_assert!(hlen == 24 || (kind == 1 && hlen == 128));
            prop_assert!(kind != 7 || (24..=128).contains(&pdo));
            prop_assert!(plen >= u32::from(hlen));
        }
    }
}
