use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

use crate::vhost_user::message::{HEADER, Header, MAX_PAYLOAD, Message, config_changed};

fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER] {
    let words = [request, flags, size].map(u32::to_le_bytes);
    words.concat().try_into().unwrap()
}

/// Every known request with its least and largest payload.
const KNOWN: [(u32, u32, u32); 23] = [
    (1, 0, 0),
    (2, 8, 8),
    (3, 0, 0),
    (4, 0, 0),
    (5, 8, 264),
    (6, 16, 16),
    (7, 0, 8),
    (8, 8, 8),
    (9, 40, 40),
    (10, 8, 8),
    (11, 8, 8),
    (12, 8, 8),
    (13, 8, 8),
    (14, 8, 8),
    (15, 0, 0),
    (16, 8, 8),
    (17, 0, 0),
    (18, 8, 8),
    (21, 0, 8),
    (24, 12, 268),
    (25, 12, 268),
    (31, 20, 24),
    (32, 20, 24),
];

#[test]
fn every_request_and_size_is_known_or_refused() {
    for request in 0..64 {
        let known = KNOWN.iter().find(|(number, ..)| *number == request);
        for size in (0..300).chain([4096, u32::MAX]) {
            let fits = known.is_some_and(|(_, least, most)| (*least..=*most).contains(&size));
            let parsed = Header::parse(&header(request, 1, size));
            assert_eq!(parsed.is_ok(), fits, "request {request} of {size} bytes");
        }
    }
    assert_eq!(
        KNOWN.iter().map(|(.., most)| *most as usize).max(),
        Some(MAX_PAYLOAD)
    );
}

#[test]
fn every_flag_but_version_and_need_reply_is_refused() {
    for flags in (0..64).chain([1 << 31, u32::MAX]) {
        let parsed = Header::parse(&header(1, flags, 0));
        assert_eq!(parsed.is_ok(), matches!(flags, 1 | 9), "{flags:#x}");
        if let Ok(parsed) = parsed {
            assert_eq!(parsed.needs_reply, flags == 9);
        }
    }
}

#[test]
fn a_reply_and_a_notice_are_well_formed() {
    let parsed = Header::parse(&header(11, 1, 8)).unwrap();
    assert_eq!(parsed.reply(8), header(11, 5, 8));
    assert_eq!(config_changed(), header(2, 1, 0));
}

fn parse(request: u32, payload: &[u8], fds: usize) -> Result<Message, &'static str> {
    let size = u32::try_from(payload.len()).unwrap();
    let header = Header::parse(&header(request, 1, size)).map_err(|fault| fault.what)?;
    Message::parse(&header, payload, fds).map_err(|fault| fault.what)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn a_message_brings_the_fds_of_its_request_alone() {
    let ring_fd = |bits: u32| words(&[bits, 0]);
    for (request, payload, expected) in [
        (1, vec![], 0),
        (2, words(&[0, 0]), 0),
        (
            5,
            [words(&[1, 0]), words(&[0, 0, 1, 0, 0, 0, 0, 0])].concat(),
            1,
        ),
        (6, vec![0; 16], 1),
        (7, vec![], 1),
        (12, ring_fd(3), 1),
        (12, ring_fd(3 | 256), 0),
        (13, ring_fd(0), 1),
        (14, ring_fd(127 | 256), 0),
        (21, vec![], 1),
        (32, vec![0; 24], 1),
    ] {
        for fds in 0..9 {
            let parsed = parse(request, &payload, fds);
            assert_eq!(
                parsed.is_ok(),
                fds == expected,
                "request {request}, {fds} fds"
            );
        }
    }
}

#[test]
fn fields_out_of_range_are_refused() {
    for (request, payload) in [
        (8, words(&[128, 64])),
        (10, words(&[u32::MAX, 0])),
        (12, words(&[128 | 256, 0])),
        (12, words(&[512 | 256, 0])),
        (13, words(&[256, 1])),
        (18, words(&[0, 2])),
        (24, words(&[0, 0, 0])),
        (24, [words(&[256, 1, 0]), vec![0; 1]].concat()),
        (24, [words(&[u32::MAX, 2, 0]), vec![0; 2]].concat()),
        (24, [words(&[0, 8, 0]), vec![0; 7]].concat()),
        (24, [words(&[0, u32::MAX, 0]), vec![0; 7]].concat()),
    ] {
        assert!(
            parse(request, &payload, 0).is_err(),
            "request {request} {payload:?}"
        );
    }
    let whole = [words(&[0, 256, 5]), vec![0; 256]].concat();
    assert!(matches!(parse(24, &whole, 0), Ok(Message::GetConfig(span)) if span.flags == 5));
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_refused(
        request in 0..40_u32,
        flags in any::<u32>(),
        payload in prop::collection::vec(any::<u8>(), 0..300),
        fds in 0..10_usize,
    ) {
        let size = u32::try_from(payload.len()).unwrap();
        for flags in [1, 9, flags] {
            if let Ok(parsed) = Header::parse(&header(request, flags, size)) {
                prop_assert!(parsed.size <= MAX_PAYLOAD);
                let _ = Message::parse(&parsed, &payload, fds);
            }
        }
    }
}
