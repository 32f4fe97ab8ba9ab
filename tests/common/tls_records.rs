//! TLS 1.3 records made by hand after a handshake of OpenSSL (TLS_AES_128_GCM_SHA256), for messages that OpenSSL's API
//! does not send.

use std::sync::{Arc, Mutex};

use openssl::symm::{Cipher, encrypt_aead};

use super::expand_label;

/// Length of the authentication tag of a record.
const TAG: usize = 16;

/// Content types (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

/// A key log of OpenSSL, which holds the secrets of one connection.
#[derive(Debug, Clone, Default)]
pub struct KeyLog(Arc<Mutex<String>>);

impl KeyLog {
    /// Returns the callback that adds a line.
    pub fn writer(&self) -> impl Fn(&str) + Send + Sync + 'static {
        let log = self.clone();
        move |line| {
            let mut log = log.0.lock().expect("no panic");
            log.push_str(line);
            log.push('\n');
        }
    }

    /// Returns the secret with this label.
    fn secret(&self, label: &str) -> Vec<u8> {
        let log = self.0.lock().expect("no panic");
        let line = log.lines().find(|line| line.starts_with(label));
        let hex = line.and_then(|line| line.rsplit(' ').next());
        let hex = hex.expect("the handshake is over").as_bytes().chunks(2);
        hex.map(|byte| {
            let byte = str::from_utf8(byte).expect("hexadecimal");
            u8::from_str_radix(byte, 16).expect("hexadecimal")
        })
        .collect()
    }

    /// Returns the records of the client after the handshake.
    pub fn client(&self) -> Records {
        Records::new(self.secret("CLIENT_TRAFFIC_SECRET_0 "))
    }

    /// Returns the records of the server after the handshake.
    pub fn server(&self) -> Records {
        Records::new(self.secret("SERVER_TRAFFIC_SECRET_0 "))
    }
}

/// The records of one side of a connection.
#[derive(Debug)]
pub struct Records {
    secret: Vec<u8>,
    sequence: u64,
}

impl Records {
    fn new(secret: Vec<u8>) -> Self {
        Self {
            secret,
            sequence: 0,
        }
    }

    /// Makes a record with data.
    pub fn data(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.record(DATA, bytes)
    }

    /// Makes a record with a KeyUpdate that asks for none; the next record has the next key.
    pub fn key_update(&mut self) -> Vec<u8> {
        let record = self.record(HANDSHAKE, &[24, 0, 0, 1, 0]);
        self.secret = expand_label(&self.secret, "traffic upd", &[], 32);
        self.sequence = 0;
        record
    }

    /// Encrypts one record (RFC 8446, 5.2).
    fn record(&mut self, content: u8, bytes: &[u8]) -> Vec<u8> {
        let key = expand_label(&self.secret, "key", &[], 16);
        let mut nonce = expand_label(&self.secret, "iv", &[], 12);
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        let inner = [bytes, &[content]].concat();
        let length = u16::try_from(inner.len() + TAG).expect("one record");
        let header = [&[DATA, 3, 3][..], &length.to_be_bytes()].concat();
        let mut tag = [0; TAG];
        let cipher = Cipher::aes_128_gcm();
        let sealed = encrypt_aead(cipher, &key, Some(&nonce), &header, &inner, &mut tag);
        [header, sealed.expect("AES"), tag.to_vec()].concat()
    }
}
