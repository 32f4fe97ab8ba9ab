//! Authenticated encryption of stored values: AES-256-GCM-SIV (RFC 8452) with the record's key as associated
//! data, so that without the state's key a value can neither be read nor moved to another record.

use aes_gcm_siv::aead::{Aead, Generate, KeyInit, Payload};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use zeroize::Zeroizing;

use super::{Error, StateKey};

const NONCE_LEN: usize = 12;

/// Encrypts and decrypts. The key schedule is zeroized on drop.
pub(super) struct Sealer(Aes256GcmSiv);

impl Sealer {
    /// Creates a sealer with this key.
    pub fn new(key: &StateKey) -> Self {
        Self(Aes256GcmSiv::new(key.bytes().into()))
    }

    /// Encrypts a value for this place; returns the nonce and the ciphertext, which only [`open`](Self::open)
    /// with the same `place` decrypts.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn seal(&self, place: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let nonce = Nonce::generate();
        let payload = Payload {
            msg: plain,
            aad: place.as_bytes(),
        };
        let text = self.0.encrypt(&nonce, payload).map_err(|_| {
            Error::TooLarge(format!(
                "{place} has {} bytes: too many to seal",
                plain.len()
            ))
        })?;
        let mut sealed = Vec::with_capacity(NONCE_LEN + text.len());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&text);
        Ok(sealed)
    }

    /// Decrypts a value that was sealed for this place with this key; `None` for anything else.
    pub fn open(&self, place: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let payload = Payload {
            msg: text,
            aad: place.as_bytes(),
        };
        let nonce: [u8; NONCE_LEN] = nonce.try_into().ok()?;
        let plain = self.0.decrypt(&nonce.into(), payload).ok()?;
        Some(Zeroizing::new(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_and_place_open_what_was_sealed_and_no_bit_may_differ() {
        let sealer = Sealer::new(&StateKey::from([7; 32]));
        let sealed = sealer.seal("nullVolumes/a", b"secret").unwrap();
        let opened = |sealer: &Sealer, place, sealed: &[u8]| {
            sealer.open(place, sealed).map(|plain| plain.to_vec())
        };
        let plain = Some(b"secret".to_vec());
        assert_eq!(opened(&sealer, "nullVolumes/a", &sealed), plain);
        assert_eq!(opened(&sealer, "nullVolumes/b", &sealed), None);
        let other = Sealer::new(&StateKey::from([8; 32]));
        assert_eq!(opened(&other, "nullVolumes/a", &sealed), None);
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                opened(&sealer, "nullVolumes/a", &changed),
                None,
                "bit {bit}"
            );
        }
        for length in 0..sealed.len() {
            let cut = &sealed[..length];
            assert_eq!(
                opened(&sealer, "nullVolumes/a", cut),
                None,
                "{length} bytes"
            );
        }
    }

    #[test]
    fn the_same_record_never_looks_the_same_twice() {
        let sealer = Sealer::new(&StateKey::from([7; 32]));
        let seal = || sealer.seal("a", b"secret").unwrap();
        assert_ne!(seal(), seal());
    }
}
