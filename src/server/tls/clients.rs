//! Verification of client certificates, with bounds on the work that a stranger can cause.

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
};

use crate::server::limits::{CHAIN, CHAIN_BYTES};

/// Refuses long chains before path building, whose cost grows with the orders of certificates of the same name.
#[derive(Debug)]
pub(super) struct ShortChains(pub Arc<dyn ClientCertVerifier>);

/// Checks the length of a chain.
fn check_length(
    end_entity: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
) -> Result<(), String> {
    let bytes: usize = end_entity.len()
        + above
            .iter()
            .map(|certificate| certificate.len())
            .sum::<usize>();
    if above.len() > CHAIN || bytes > CHAIN_BYTES {
        return Err(format!(
            "the client's chain has {} certificates above its own and {bytes} bytes: at most {CHAIN} \
             and {CHAIN_BYTES}",
            above.len()
        ));
    }
    Ok(())
}

/// Replaces an error of the verifier that only its authors understand.
fn explained(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other))
            if other.to_string().contains("UnsupportedCertVersion") =>
        {
            let what =
                "the client's certificate, or one above it, has X.509 version 1 or 2: 3 is needed";
            Error::General(what.to_owned())
        }
        other => other,
    }
}

impl ClientCertVerifier for ShortChains {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_length(end_entity, intermediates).map_err(Error::General)?;
        let verified = self.0.verify_client_cert(end_entity, intermediates, now);
        verified.map_err(explained)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_bounded_in_number_and_bytes() {
        let of = |bytes: usize| CertificateDer::from(vec![0; bytes]);
        assert_eq!(check_length(&of(1000), &vec![of(1000); CHAIN]), Ok(()));
        let long = check_length(&of(1000), &vec![of(1000); CHAIN + 1]);
        assert!(long.unwrap_err().contains("has 5 certificates"));
        assert!(check_length(&of(CHAIN_BYTES + 1), &[]).is_err());
    }
}
