//! Certificates for TLS tests.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType,
    SerialNumber,
};
use time::{Duration, OffsetDateTime};
use tokio_rustls::rustls::pki_types::CertificateDer;

/// A certificate authority.
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Creates an authority with a new key.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        // The CA's subject must differ from those of the certificates that it signs, or verifiers take
        // them for self-signed.
        (params.distinguished_name).push(DnType::CommonName, "authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        let issuer = Issuer::new(params, key);
        Self {
            certificate,
            issuer,
        }
    }

    /// Issues a server certificate for this DNS name or IP address; returns it with its key.
    pub fn sign(&self, name: &str) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer);
        (certificate.expect("a certificate"), key)
    }

    /// Issues a client certificate with this common name; returns it with its key.
    pub fn sign_as(&self, common_name: &str) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        (params.distinguished_name).push(DnType::CommonName, common_name);
        let certificate = params.signed_by(&key, &self.issuer);
        (certificate.expect("a certificate"), key)
    }

    /// Issues a certificate with this subject, in the order given, and these subject alternative names; returns it with
    /// its key.
    pub fn sign_names(
        &self,
        subject: &[(DnType, &str)],
        names: Vec<SanType>,
    ) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (part, text) in subject {
            (params.distinguished_name).push(part.clone(), *text);
        }
        params.subject_alt_names = names;
        let certificate = params.signed_by(&key, &self.issuer);
        (certificate.expect("a certificate"), key)
    }

    /// Issues a certificate with this serial number that expires in `days`; returns it with its key.
    pub fn sign_numbered(&self, name: &str, number: u64, days: i64) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.serial_number = Some(SerialNumber::from(number));
        params.not_after = OffsetDateTime::now_utc() + Duration::days(days);
        let certificate = params.signed_by(&key, &self.issuer);
        (certificate.expect("a certificate"), key)
    }

    /// Returns a revocation list (CRL) of these serial numbers as PEM.
    pub fn revoke(&self, numbers: &[u64]) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: now - Duration::days(1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now - Duration::days(1),
            next_update: now + Duration::days(1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("a list");
        list.pem().expect("text")
    }

    /// Returns the CA certificate as PEM.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Returns the CA certificate as DER.
    pub fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }
}

/// Sets mode 0600: the server rejects a private key that others may read.
pub fn keep_private(file: &Path) {
    std::fs::set_permissions(file, Permissions::from_mode(0o600))
        .expect("the permissions can be set");
}
