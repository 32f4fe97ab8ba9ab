//! Subject alternative names of certificates, with their types: a URI is never taken for the DNS name of the same text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use x509_parser::extensions::GeneralName;

/// A name of a type that a grant can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum San {
    Dns(String),
    Uri(String),
    Email(String),
    Ip(IpAddr),
}

impl San {
    /// Reads the name of a grant: `dns:NAME`, `uri:NAME`, `email:NAME`, `ip:ADDRESS`, or a DNS name without its type.
    ///
    /// # Errors
    /// What is wrong with it, and what would be right.
    pub fn read(text: &str) -> Result<Self, String> {
        let typed = text.split_once(':').and_then(|(of, name)| {
            let of: fn(&str) -> Option<Self> = match &*of.to_ascii_lowercase() {
                "dns" => |name| Some(Self::Dns(name.to_owned())),
                "uri" => |name| Some(Self::Uri(name.to_owned())),
                "email" => |name| Some(Self::Email(name.to_owned())),
                "ip" => |address| address.parse().ok().map(Self::Ip),
                _ => return None,
            };
            Some((of, name))
        });
        if let Some((of, name)) = typed {
            let san = of(name).filter(|_| !name.is_empty());
            return san.ok_or_else(|| format!("san {text:?}: {name:?} is no such name or address"));
        }
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._*".contains(&byte);
        let is_dns = !text.is_empty() && text.bytes().all(is_part);
        if is_dns && text.parse::<IpAddr>().is_err() {
            return Ok(Self::Dns(text.to_owned()));
        }
        Err(format!(
            "san {text:?} is no DNS name: write uri:NAME, email:NAME, ip:ADDRESS or dns:NAME"
        ))
    }

    fn of(name: &GeneralName<'_>) -> Option<Self> {
        match name {
            GeneralName::DNSName(text) => Some(Self::Dns((*text).to_owned())),
            GeneralName::URI(text) => Some(Self::Uri((*text).to_owned())),
            GeneralName::RFC822Name(text) => Some(Self::Email((*text).to_owned())),
            GeneralName::IPAddress(bytes) => match **bytes {
                [a, b, c, d] => Some(Self::Ip(Ipv4Addr::from([a, b, c, d]).into())),
                _ => <[u8; 16]>::try_from(*bytes)
                    .ok()
                    .map(|bytes| Self::Ip(Ipv6Addr::from(bytes).into())),
            },
            _ => None,
        }
    }
}

impl fmt::Display for San {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Uri(name) => write!(f, "uri:{name}"),
            Self::Email(name) => write!(f, "email:{name}"),
            Self::Ip(address) => write!(f, "ip:{address}"),
        }
    }
}

/// The names of a certificate.
pub(super) fn sans(certificate: &[u8]) -> Vec<San> {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else {
        return Vec::new();
    };
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = extension.value.general_names.iter();
    names.filter_map(San::of).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::SanType;

    use super::*;

    #[test]
    fn names_of_a_certificate_are_read_with_their_types() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let name = |text: &str| text.try_into().expect("a name");
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::DnsName(name("a.example")),
            SanType::URI(name("a.example")),
            SanType::Rfc822Name(name("a@b.example")),
            SanType::IpAddress("192.0.2.7".parse().expect("an address")),
            SanType::IpAddress("::1".parse().expect("an address")),
        ];
        let certificate = params.self_signed(&key).expect("a certificate");
        let read: Vec<String> = sans(certificate.der()).iter().map(San::to_string).collect();
        assert_eq!(
            read,
            [
                "dns:a.example",
                "uri:a.example",
                "email:a@b.example",
                "ip:192.0.2.7",
                "ip:::1"
            ]
        );
        for (given, read) in read.iter().zip(sans(certificate.der())) {
            assert_eq!(San::read(given), Ok(read));
        }
        assert!(sans(b"nothing").is_empty());
    }

    #[test]
    fn a_name_without_a_type_is_a_dns_name_and_nothing_else() {
        for (given, dns) in [
            ("admin.example.com", "admin.example.com"),
            ("dns:admin", "admin"),
            ("DNS:a", "a"),
        ] {
            assert_eq!(San::read(given), Ok(San::Dns(dns.to_owned())));
        }
        for other in [
            "",
            "spiffe://a/b",
            "a@b.example",
            "192.0.2.7",
            "::1",
            "dns:",
            "ip:a",
            "rid:1.2",
        ] {
            assert!(San::read(other).is_err(), "{other}");
        }
    }
}
