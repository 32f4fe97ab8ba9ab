//! Distinguished names of certificates as text that can be compared: RFC 4514 with its escapes, in the certificate's own
//! order of RDNs, with a space after each comma. Two names with the same text have the same RDNs.

use std::str::FromStr;

use x509_parser::asn1_rs::{Any, Class, FromDer, Oid, Tag, ToDer};
use x509_parser::objects::oid_registry;
use x509_parser::x509::X509Name;

/// Names of attribute types, and further names that a grant may use for one, which follow the first name of the type.
/// Other types are written as dotted decimals.
const TYPES: [(&str, &str); 26] = [
    ("CN", "2.5.4.3"),
    ("O", "2.5.4.10"),
    ("OU", "2.5.4.11"),
    ("C", "2.5.4.6"),
    ("ST", "2.5.4.8"),
    ("L", "2.5.4.7"),
    ("DC", "0.9.2342.19200300.100.1.25"),
    ("uid", "0.9.2342.19200300.100.1.1"),
    ("Email", "1.2.840.113549.1.9.1"),
    ("emailAddress", "1.2.840.113549.1.9.1"),
    ("unstructuredName", "1.2.840.113549.1.9.2"),
    ("surname", "2.5.4.4"),
    ("serialNumber", "2.5.4.5"),
    ("streetAddress", "2.5.4.9"),
    ("STREET", "2.5.4.9"),
    ("title", "2.5.4.12"),
    ("description", "2.5.4.13"),
    ("businessCategory", "2.5.4.15"),
    ("postalAddress", "2.5.4.16"),
    ("postalCode", "2.5.4.17"),
    ("name", "2.5.4.41"),
    ("givenName", "2.5.4.42"),
    ("initials", "2.5.4.43"),
    ("generationQualifier", "2.5.4.44"),
    ("uniqueIdentifier", "2.5.4.45"),
    ("dnQualifier", "2.5.4.46"),
];

/// Characters that a value has only with a backslash before them.
const SPECIAL: [char; 7] = [',', '+', '"', '\\', '<', '>', ';'];

/// Formats a name: `CN=orchestrator, O=Acme\, Inc.`; `None` for one that cannot be encoded again, or of which a part could
/// not be read.
pub fn text(name: &X509Name<'_>) -> Option<String> {
    if !is_whole(name) {
        return None;
    }
    let rdns = name.iter().map(|rdn| {
        let attributes = rdn.iter();
        attributes
            .map(|attribute| {
                let value = value_text(attribute.attr_value())?;
                Some(format!("{}={value}", type_name(attribute.attr_type())))
            })
            .collect::<Option<Vec<_>>>()
    });
    rdns.collect::<Option<Vec<_>>>().map(joined)
}

/// Whether the parsed name has all that its encoding has: the parser ends a list at the first element that it cannot read.
fn is_whole(name: &X509Name<'_>) -> bool {
    let mut rdns = name.iter();
    let walked = elements(name.as_raw()).and_then(|names| {
        let [rdns_of] = names.try_into().ok()?;
        for rdn in elements(rdns_of)? {
            let attributes = elements(rdn)?;
            let is_same = rdns.next()?.iter().count() == attributes.len();
            (is_same && !attributes.is_empty()).then_some(())?;
        }
        Some(())
    });
    walked.is_some() && rdns.next().is_none()
}

/// Returns the contents of the elements that these bytes consist of; `None` if they are anything else.
fn elements(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (rest, element) = Any::from_der(bytes).ok()?;
        all.push(element.data);
        bytes = rest;
    }
    Some(all)
}

/// Reads a name as text, such as that of a grant, and formats it as [`text`] does.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub fn canonical(given: &str) -> Result<String, String> {
    let mut rdns = vec![Vec::new()];
    let mut rest = given;
    loop {
        let (attribute, separator, after) = attribute(rest)?;
        if let Some(rdn) = rdns.last_mut() {
            rdn.push(attribute);
        }
        match separator {
            None => return Ok(joined(rdns)),
            Some(',') => rdns.push(Vec::new()),
            Some(_) => {}
        }
        rest = after;
    }
}

/// The attributes of an RDN are a set.
fn joined(mut rdns: Vec<Vec<String>>) -> String {
    rdns.iter_mut().for_each(|rdn| rdn.sort_unstable());
    let rdns: Vec<String> = rdns.iter().map(|rdn| rdn.join(" + ")).collect();
    rdns.join(", ")
}

fn type_name(oid: &Oid<'_>) -> String {
    let oid = oid.to_id_string();
    match TYPES.iter().find(|(_, of)| *of == oid) {
        Some((name, _)) => (*name).to_owned(),
        None => oid,
    }
}

/// The text of a string, escaped, else `#` and the value's DER in hexadecimal.
fn value_text(value: &Any<'_>) -> Option<String> {
    if let Some(text) = string(value) {
        return Some(escaped(&text));
    }
    let der = value.to_der_vec().ok()?;
    let digits: String = der.iter().map(|byte| format!("{byte:02X}")).collect();
    Some(format!("#{digits}"))
}

fn string(value: &Any<'_>) -> Option<String> {
    if value.class() != Class::Universal || value.header.is_constructed() {
        return None;
    }
    match value.tag() {
        Tag::BmpString => {
            let (units, rest) = value.data.as_chunks::<2>();
            let units = units.iter().map(|unit| u16::from_be_bytes(*unit));
            let text = char::decode_utf16(units).collect::<Result<_, _>>().ok()?;
            rest.is_empty().then_some(text)
        }
        Tag::NumericString
        | Tag::VisibleString
        | Tag::PrintableString
        | Tag::GeneralString
        | Tag::T61String
        | Tag::Utf8String
        | Tag::Ia5String => String::from_utf8(value.data.to_vec()).ok(),
        _ => None,
    }
}

fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (index, character) in value.chars().enumerate() {
        let is_edge =
            index == 0 && character == '#' || (index == 0 || index == last) && character == ' ';
        if character.is_control() {
            let mut bytes = [0; 4];
            for byte in character.encode_utf8(&mut bytes).bytes() {
                text.push_str(&format!("\\{byte:02X}"));
            }
            continue;
        }
        if is_edge || SPECIAL.contains(&character) {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

/// Reads one attribute; returns it formatted, the separator after it, and what follows.
fn attribute(text: &str) -> Result<(String, Option<char>, &str), String> {
    let typed = text.split_once('=');
    let typed = typed.filter(|(of, _)| !of.contains(SPECIAL) && !of.trim_matches(' ').is_empty());
    let Some((of, value)) = typed else {
        return Err(format!(
            "{:?} is no TYPE=VALUE, such as CN=orchestrator; a comma or plus sign within a value is written \\, or \\+",
            text.trim_matches(' ')
        ));
    };
    let of = type_name(&oid(of.trim_matches(' '))?);
    let value = value.trim_start_matches(' ');
    let (value, separator, after) = match value.strip_prefix('#') {
        Some(digits) => encoded(digits)?,
        None => unescaped(value)?,
    };
    Ok((format!("{of}={value}"), separator, after))
}

fn oid(name: &str) -> Result<Oid<'static>, String> {
    let unknown = || {
        format!("{name:?} is no known type of an attribute, such as CN, O and OU: write its OID")
    };
    let known = TYPES.iter().find(|(of, _)| of.eq_ignore_ascii_case(name));
    let dotted = match known {
        Some((_, oid)) => oid,
        // As x509-parser writes the types without a name.
        None => name
            .strip_prefix("OID(")
            .and_then(|name| name.strip_suffix(')'))
            .unwrap_or(name),
    };
    if let Ok(oid) = Oid::from_str(dotted) {
        return Ok(oid.to_owned());
    }
    let mut registered = oid_registry().iter();
    let registered = registered.find(|(_, entry)| entry.sn() == name);
    registered
        .map(|(oid, _)| oid.to_owned())
        .ok_or_else(unknown)
}

type Value<'a> = (String, Option<char>, &'a str);

/// Reads a value in hexadecimal, after its `#`.
fn encoded(text: &str) -> Result<Value<'_>, String> {
    let (digits, separator, after) = match text.find([',', '+']) {
        Some(at) => (&text[..at], text[at..].chars().next(), &text[at + 1..]),
        None => (text, None, ""),
    };
    let digits = digits.trim_end_matches(' ');
    let wrong = || {
        format!(
            "\"#{digits}\" is no value in DER, in hexadecimal; a value that begins with # is written \\#"
        )
    };
    let der = bytes(digits).ok_or_else(wrong)?;
    let value = match Any::from_der(&der) {
        Ok(([], value)) => value_text(&value),
        _ => None,
    };
    Ok((value.ok_or_else(wrong)?, separator, after))
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| byte(*high, *low));
    bytes.collect::<Option<_>>().filter(|_| rest.is_empty())
}

fn byte(high: u8, low: u8) -> Option<u8> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// Reads a value with escapes, and formats it.
fn unescaped(text: &str) -> Result<Value<'_>, String> {
    let mut value = Vec::new();
    // Without the spaces at the end that have no backslash.
    let mut length = 0;
    let mut rest = text.chars();
    let separator = loop {
        match rest.next() {
            None => break None,
            Some(separator @ (',' | '+')) => break Some(separator),
            Some('\\') => {
                value.extend_from_slice(&escape(&mut rest)?);
                length = value.len();
            }
            Some(character) if SPECIAL.contains(&character) => {
                return Err(format!(
                    "{character} within a value is written \\{character}"
                ));
            }
            Some(character) => {
                value.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                if character != ' ' {
                    length = value.len();
                }
            }
        }
    };
    value.truncate(length);
    let value = String::from_utf8(value);
    let value = value.map_err(|_| "the bytes of its escapes are no UTF-8".to_owned())?;
    Ok((escaped(&value), separator, rest.as_str()))
}

/// Reads what follows a backslash: a character, or a byte in hexadecimal.
fn escape(rest: &mut std::str::Chars<'_>) -> Result<Vec<u8>, String> {
    let wrong = || {
        "a backslash stands before one of , + \" \\ < > ; # = and space, or two hexadecimal digits"
            .to_owned()
    };
    let first = rest.next().ok_or_else(wrong)?;
    if SPECIAL.contains(&first) || matches!(first, '#' | '=' | ' ') {
        return Ok(vec![u8::try_from(first).map_err(|_| wrong())?]);
    }
    let second = rest.next().ok_or_else(wrong)?;
    let digits = u8::try_from(first).ok().zip(u8::try_from(second).ok());
    let byte = digits.and_then(|(high, low)| byte(high, low));
    byte.map(|byte| vec![byte]).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{DistinguishedName, DnType, DnValue};

    use super::*;

    /// The text of the subject of a certificate with these attributes, each an RDN.
    fn of(attributes: &[(DnType, DnValue)]) -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (of, value) in attributes {
            params.distinguished_name.push(of.clone(), value.clone());
        }
        let certificate = params.self_signed(&key).expect("a certificate");
        let parsed = x509_parser::parse_x509_certificate(certificate.der());
        text(parsed.expect("a certificate").1.subject()).expect("a name")
    }

    #[test]
    fn a_value_with_separators_is_another_name_than_the_attributes_that_it_imitates() {
        let common = |name: &str| (DnType::CommonName, DnValue::from(name));
        let organization = (DnType::OrganizationName, DnValue::from("Acme"));
        let plain = of(&[common("orchestrator"), organization]);
        assert_eq!(plain, "CN=orchestrator, O=Acme");
        for (imitation, written) in [
            ("orchestrator, O=Acme", "CN=orchestrator\\, O=Acme"),
            ("orchestrator + O=Acme", "CN=orchestrator \\+ O=Acme"),
            ("orchestrator\\, O=Acme", "CN=orchestrator\\\\\\, O=Acme"),
            ("a\n,\u{85}", "CN=a\\0A\\,\\C2\\85"),
            (" #a ", "CN=\\ #a\\ "),
            ("#0C0161", "CN=\\#0C0161"),
        ] {
            let text = of(&[common(imitation)]);
            assert_eq!(text, written);
            assert_eq!(canonical(&text).as_deref(), Ok(written));
        }
        let other = DnType::CustomDnType(vec![1, 2, 3, 4]);
        assert_eq!(of(&[(other, "a".into())]), "1.2.3.4=a");
        let wide = rcgen::string::BmpString::try_from("ä, b").expect("text");
        let wide = of(&[(DnType::CommonName, DnValue::BmpString(wide))]);
        assert_eq!(wide, "CN=ä\\, b");
    }

    #[test]
    fn a_name_of_which_a_part_cannot_be_read_has_no_text() {
        let der = |tag: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).expect("short");
            [&[tag, length], content].concat()
        };
        let attribute = |of: u8, value: &[u8]| {
            let of = der(6, &[0x55, 4, of]);
            der(0x30, &[of, der(12, value)].concat())
        };
        let (common, organization) = (attribute(3, b"a"), attribute(10, b"b"));
        let set = |attributes: &[u8]| der(0x31, attributes);
        let name = |rdns: &[Vec<u8>]| {
            let bytes = der(0x30, &rdns.concat());
            let parsed = X509Name::from_der(&bytes);
            parsed.ok().and_then(|(_, name)| text(&name))
        };
        let whole = [set(&common), set(&organization)];
        assert_eq!(name(&whole).as_deref(), Some("CN=a, O=b"));
        assert_eq!(name(&[]).as_deref(), Some(""));
        let both = [common.clone(), organization.clone()].concat();
        assert_eq!(name(&[set(&both)]).as_deref(), Some("CN=a + O=b"));
        let nothing = der(0x30, &[]);
        for rdns in [
            vec![set(&common), set(&[]), set(&organization)],
            vec![set(&common), nothing.clone(), set(&organization)],
            vec![set(&[common.clone(), nothing.clone()].concat())],
            vec![set(&[common.clone(), nothing, organization].concat())],
            vec![set(&common), vec![0x31]],
        ] {
            assert_eq!(name(&rdns), None, "{rdns:x?}");
        }
    }

    #[test]
    fn names_are_read_as_they_are_written_by_the_log_and_by_openssl() {
        for (given, text) in [
            ("CN=orchestrator, O=Acme", "CN=orchestrator, O=Acme"),
            ("cn = orchestrator,O=Acme ", "CN=orchestrator, O=Acme"),
            ("OU=b + CN=a, O=c", "CN=a + OU=b, O=c"),
            ("CN=a\\2Cb\\C3\\A4", "CN=a\\,bä"),
            ("CN=#0C0161", "CN=a"),
            ("CN=#0303000102, O=x", "CN=#0303000102, O=x"),
            ("2.5.4.3=a, OID(1.2.3.4)=b", "CN=a, 1.2.3.4=b"),
            ("emailAddress=a@b.example", "Email=a@b.example"),
            ("msJurisdictionCountry=DE", "1.3.6.1.4.1.311.60.2.1.3=DE"),
            ("CN=a=b", "CN=a=b"),
            ("CN=", "CN="),
        ] {
            assert_eq!(canonical(given).as_deref(), Ok(text), "{given}");
        }
        for (given, why) in [
            ("", "TYPE=VALUE"),
            ("orchestrator", "TYPE=VALUE"),
            ("CN=Acme, Inc.", "\"Inc.\" is no TYPE=VALUE"),
            ("CN=a,", "TYPE=VALUE"),
            ("=a", "TYPE=VALUE"),
            ("colour=a", "no known type"),
            ("CN=\"a, b\"", "\" within a value is written \\\""),
            ("CN=a;O=b", "; within"),
            ("CN=a\\", "a backslash"),
            ("CN=a\\x", "a backslash"),
            ("CN=a\\C3", "no UTF-8"),
            ("CN=#0C", "DER"),
            ("CN=#xy", "DER"),
        ] {
            let error = canonical(given).expect_err(given);
            assert!(error.contains(why), "{given}: {error}");
        }
    }

    proptest! {
        #[test]
        fn each_value_has_a_text_of_its_own(value in ".*", other in "[a,+\\\\ #=\"\\n]{0,6}") {
            for value in [&value, &other] {
                let text = format!("CN={}, O=b", escaped(value));
                prop_assert_eq!(canonical(&text), Ok(text.clone()));
                let Ok((read, Some(','), " O=b")) = unescaped(&text[3..]) else {
                    return Err(TestCaseError::fail(text));
                };
                prop_assert_eq!(&read, &escaped(value));
                prop_assert!(!text.contains('\n'));
            }
            let same = value == other;
            prop_assert_eq!(escaped(&value) == escaped(&other), same);
        }
    }
}
