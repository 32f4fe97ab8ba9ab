//! Host keys: DH-HMAC-CHAP and TLS keys in interchange format, and the derivation of the TLS PSK
//! (NVMe/TCP transport specification).

use base64::Engine;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::md::Md;
use openssl::pkey::{Id, PKey};
use openssl::pkey_ctx::{HkdfMode, PkeyCtx};
use openssl::sign::Signer;
use openssl::ssl::{
    ConnectConfiguration, SslConnector, SslMethod, SslOptions, SslVerifyMode, SslVersion,
};

/// A TLS pre-shared key and its identity, derived with SHA-256.
pub struct Psk {
    /// The PSK identity in the ClientHello.
    pub identity: String,
    /// The derived TLS PSK.
    pub key: Vec<u8>,
}

impl Psk {
    /// Derives the PSK from a key in interchange format, for a host and a subsystem.
    pub fn new(interchange: &str, hostnqn: &str, subnqn: &str) -> Self {
        let encoded = interchange.split(':').nth(2).expect("an interchange form");
        let engine = base64::engine::general_purpose::STANDARD;
        let mut configured = engine.decode(encoded).expect("base64");
        configured.truncate(configured.len() - 4);
        let retained = expand(&configured, "tls13 HostNQN", hostnqn);
        let identity = format!("NVMe0R01 {hostnqn} {subnqn}");
        let key = expand(&retained, "tls13 nvme-tls-psk", &identity);
        Self { identity, key }
    }

    /// Replaces the identity; the key stays the same.
    pub fn called(mut self, identity: &str) -> Self {
        self.identity = identity.into();
        self
    }

    /// Returns an OpenSSL configuration for a connection with this PSK: TLS 1.3 only, as NVMe hosts use
    /// it.
    pub fn setup(&self) -> Result<ConnectConfiguration, ErrorStack> {
        self.setup_with(|_| {})
    }

    /// As [`Psk::setup`], with lines of OpenSSL's key log passed to `log`.
    pub fn setup_with(
        &self,
        log: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<ConnectConfiguration, ErrorStack> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        builder.set_verify(SslVerifyMode::NONE);
        builder.set_min_proto_version(Some(SslVersion::TLS1_3))?;
        builder.set_ciphersuites("TLS_AES_128_GCM_SHA256")?;
        builder.set_options(SslOptions::NO_TICKET);
        let (identity, key) = (self.identity.clone(), self.key.clone());
        builder.set_psk_client_callback(move |_, _, name, secret| {
            name[..identity.len()].copy_from_slice(identity.as_bytes());
            name[identity.len()] = 0;
            secret[..key.len()].copy_from_slice(&key);
            Ok(key.len())
        });
        builder.set_keylog_callback(move |_, line| log(line));
        let setup = builder.build().configure()?;
        let setup = setup.use_server_name_indication(false);
        Ok(setup.verify_hostname(false))
    }
}

/// HKDF-Extract without salt, then TLS 1.3's HKDF-Expand-Label to 32 bytes.
fn expand(key: &[u8], label: &str, context: &str) -> Vec<u8> {
    let byte = |text: &str| u8::try_from(text.len()).expect("a short text");
    let mut info = vec![0, 32, byte(label)];
    info.extend(label.bytes());
    info.push(byte(context));
    info.extend(context.bytes());
    let mut hkdf = PkeyCtx::new_id(Id::HKDF).expect("HKDF");
    hkdf.derive_init().expect("HKDF");
    hkdf.set_hkdf_mode(HkdfMode::EXTRACT_THEN_EXPAND)
        .expect("HKDF");
    hkdf.set_hkdf_md(Md::sha256()).expect("HKDF");
    hkdf.set_hkdf_key(key).expect("HKDF");
    hkdf.add_hkdf_info(&info).expect("HKDF");
    let mut derived = vec![0; 32];
    hkdf.derive(Some(&mut derived)).expect("HKDF");
    derived
}

/// Computes HMAC-SHA256 of the concatenated parts.
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let key = PKey::hmac(key).expect("a key");
    let mut signer = Signer::new(MessageDigest::sha256(), &key).expect("HMAC");
    for part in parts {
        signer.update(part).expect("HMAC");
    }
    signer.sign_to_vec().expect("HMAC")
}

/// TLS 1.3's HKDF-Expand-Label with SHA-256, for at most 32 bytes (RFC 8446, 7.1).
pub fn expand_label(secret: &[u8], label: &str, context: &[u8], length: u8) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let byte = |length: usize| [u8::try_from(length).expect("short")];
    let (label_length, context_length) = (byte(label.len()), byte(context.len()));
    let info: [&[u8]; 6] = [
        &[0, length],
        &label_length,
        label.as_bytes(),
        &context_length,
        context,
        &[1],
    ];
    let mut expanded = hmac(secret, &info);
    expanded.truncate(length.into());
    expanded
}

/// Returns a DH-HMAC-CHAP key in interchange format: 32 bytes of value `byte`, no hash.
pub fn dhchap_key(byte: u8) -> String {
    dhchap_of([byte; 32])
}

/// Returns the DH-HMAC-CHAP key of these bytes in interchange format, no hash.
pub fn dhchap_of(key: [u8; 32]) -> String {
    format!("DHHC-1:00:{}:", with_checksum(&key))
}

/// Returns a TLS pre-shared key in interchange format: 32 bytes of value `byte`, SHA-256.
pub fn psk_of(byte: u8) -> String {
    psk_with([byte; 32])
}

/// Returns the TLS pre-shared key of these bytes in interchange format, SHA-256.
pub fn psk_with(key: [u8; 32]) -> String {
    psk_form("01", &key)
}

/// Returns the TLS pre-shared key of these bytes in interchange format, with this hash: 00 none, 01 SHA-256, 02 SHA-384.
pub fn psk_form(hash: &str, key: &[u8]) -> String {
    format!("NVMeTLSkey-1:{hash}:{}:", with_checksum(key))
}

fn with_checksum(key: &[u8]) -> String {
    let crc = crc32fast::hash(key).to_le_bytes();
    base64::engine::general_purpose::STANDARD.encode([key, &crc].concat())
}
