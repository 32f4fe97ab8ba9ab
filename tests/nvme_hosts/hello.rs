//! TLS 1.3 ClientHellos made by hand, with several identities of pre-shared keys.

use openssl::sha::sha256;

use crate::common::{Psk, expand_label, hmac};

/// Second byte of a cipher suite: TLS_AES_128_GCM_SHA256.
pub const SHA256: u8 = 1;
/// Second byte of a cipher suite: TLS_AES_256_GCM_SHA384.
pub const SHA384: u8 = 2;

/// Length of a record's header.
const RECORD: usize = 5;

/// Encodes a length of `length` bytes followed by the data.
fn part(length: usize, bytes: &[u8]) -> Vec<u8> {
    let number = u32::try_from(bytes.len()).expect("short").to_be_bytes();
    [&number[4 - length..], bytes].concat()
}

/// Encodes a ClientHello that offers these identities, for one cipher suite, with binders that no key has.
pub fn hello(cipher: u8, identities: &[&str]) -> Vec<u8> {
    let binder = if cipher == SHA384 { 48 } else { 32 };
    let extension = |kind: u8, bytes: &[u8]| [&[0, kind][..], &part(2, bytes)].concat();
    let offered: Vec<u8> = identities
        .iter()
        .flat_map(|identity| [part(2, identity.as_bytes()), vec![0; 4]].concat())
        .collect();
    let binders = part(1, &vec![7; binder]).repeat(identities.len());
    let share = [&[0, 29][..], &part(2, &[9; 32])].concat();
    let extensions = [
        extension(43, &[2, 3, 4]),
        extension(10, &part(2, &[0, 29])),
        extension(51, &part(2, &share)),
        extension(45, &part(1, &[1])),
        extension(41, &[part(2, &offered), part(2, &binders)].concat()),
    ];
    let body = [
        [&[3, 3][..], &[7; 32]].concat(),
        part(1, &[1; 32]),
        part(2, &[0x13, cipher]),
        part(1, &[0]),
        part(2, &extensions.concat()),
    ];
    let message = [vec![1], part(3, &body.concat())].concat();
    [vec![22, 3, 1], part(2, &message)].concat()
}

/// Encodes a ClientHello that offers these identities, of which the last is that of the key, with its binder.
pub fn hello_with(identities: &[&str], key: &Psk) -> Vec<u8> {
    let all = [identities, &[&key.identity]].concat();
    let mut hello = hello(SHA256, &all);
    // RFC 8446, 4.2.11.2: the binders, with the length of their list, are not covered.
    let covered = hello.len() - 33 * all.len() - 2;
    let early = hmac(&[0; 32], &[&key.key]);
    let binder_key = expand_label(&early, "ext binder", &sha256(&[]), 32);
    let finished = expand_label(&binder_key, "finished", &[], 32);
    let binder = hmac(&finished, &[&sha256(&hello[RECORD..covered])]);
    let at = hello.len() - binder.len();
    hello[at..].copy_from_slice(&binder);
    hello
}
