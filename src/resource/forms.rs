//! Formats of text fields, used by [`bounds`](super::bounds).

use std::net::IpAddr;

use spdk::nvmf::nqn;

use super::id;
use super::volume_ref::VolumeRef;

/// A text format.
#[derive(Debug)]
pub struct Form {
    /// ECMA-262 regular expression that matches the whole text.
    pub pattern: &'static str,
    /// ECMA-262 regular expression that must match nowhere in the text.
    pub never: Option<&'static str>,
    /// Maximum length in bytes.
    pub most: usize,
    /// Exact check; returns what is wrong with a text. The expressions may be stricter about texts beyond ASCII.
    pub check: fn(&str) -> Result<(), String>,
}

/// Character class of the control characters, forbidden in every text because it may reach C code, a log or a
/// path.
pub const CONTROL: &str = r"[\u0000-\u001f\u007f-\u009f]";

/// ID given by a client.
pub static ID: Form = Form {
    pattern: "[a-z](?:[a-z0-9-]*[a-z0-9])?",
    never: Some("^(?:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32})$"),
    most: id::MAX_LEN,
    check: id::check,
};

pub(super) static A_UUID: Form = Form {
    pattern: "[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}|[0-9A-Fa-f]{32}",
    never: Some("^[0-]+$"),
    most: 36,
    check: |text| {
        let words =
            "a UUID: 32 hexadecimal digits, with hyphens (8-4-4-4-12) or without, not all 0";
        form(text, crate::backend::parse_uuid(text).is_some(), words)
    },
};

macro_rules! nqn_pattern {
    () => {
        "nqn\\.[0-9]{4}-(?:0[1-9]|1[0-2])(?:\\.[A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?)+:[!-~]+"
    };
}

/// Matches the NQN prefix of a UUID that is not followed by a UUID.
const NO_UUID: &str = "^nqn\\.2014-08\\.org\\.nvmexpress:uuid:(?![0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}$)";

/// NQN of a discovery service: the well-known one or its own.
pub(super) static SERVICE_NQN: Form = Form {
    pattern: concat!(
        nqn_pattern!(),
        "|nqn\\.2014-08\\.org\\.nvmexpress\\.discovery"
    ),
    never: Some(NO_UUID),
    most: 223,
    check: nqn::check,
};

pub(super) static NQN: Form = Form {
    pattern: nqn_pattern!(),
    never: Some(NO_UUID),
    most: 223,
    check: |text| match text {
        nqn::DISCOVERY => Err(format!("{text:?} is the discovery service's own name")),
        _ => nqn::check(text),
    },
};

pub(super) static SERIAL: Form = Form {
    pattern: "[ -~]*",
    never: None,
    most: 20,
    check: |text| form(text, is_ascii(text), "printable ASCII characters"),
};

pub(super) static MODEL: Form = Form {
    pattern: "[ -~]*",
    never: None,
    most: 40,
    check: |text| form(text, is_ascii(text), "printable ASCII characters"),
};

/// PATH_MAX without its terminator.
const PATH_LEN: usize = 4095;

pub(super) static PATH: Form = Form {
    pattern: "/[^\\u0000-\\u001f\\u007f-\\u009f]*",
    never: None,
    most: PATH_LEN,
    check: |text| form(text, text.starts_with('/'), "an absolute path"),
};

/// IPv4 address other than multicast.
macro_rules! ipv4 {
    () => {
        "(?:[0-9]|[1-9][0-9]|1[0-9]{2}|2[01][0-9]|22[0-3])\
         (?:\\.(?:[0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])){3}"
    };
}

/// IPv6 address, without the form that ends in an IPv4 address.
macro_rules! ipv6 {
    () => {
        "(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}|(?:[0-9A-Fa-f]{1,4}:){1,7}:|\
         (?:[0-9A-Fa-f]{1,4}:){1,6}:[0-9A-Fa-f]{1,4}|\
         (?:[0-9A-Fa-f]{1,4}:){1,5}(?::[0-9A-Fa-f]{1,4}){1,2}|\
         (?:[0-9A-Fa-f]{1,4}:){1,4}(?::[0-9A-Fa-f]{1,4}){1,3}|\
         (?:[0-9A-Fa-f]{1,4}:){1,3}(?::[0-9A-Fa-f]{1,4}){1,4}|\
         (?:[0-9A-Fa-f]{1,4}:){1,2}(?::[0-9A-Fa-f]{1,4}){1,5}|\
         [0-9A-Fa-f]{1,4}:(?::[0-9A-Fa-f]{1,4}){1,6}|:(?:(?::[0-9A-Fa-f]{1,4}){1,7}|:)"
    };
}

/// IPv4 address, for fields narrower than a [`Bound`]: a second field holds the address family.
pub const IPV4: &str = ipv4!();
/// IPv6 address; see [`IPV4`].
pub const IPV6: &str = ipv6!();

pub(super) static IP: Form = Form {
    pattern: concat!(ipv4!(), "|", ipv6!()),
    never: Some("^[Ff][Ff]|^[0:]*:[Ff]{4}:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}$"),
    most: 45,
    check: |text| match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_multicast() => Err(format!("{text} is a multicast address")),
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            Err(format!("{text} is an IPv4 address: write it so"))
        }
        Ok(_) => Ok(()),
        Err(_) => Err(format!("{text:?} is not an IP address")),
    },
};

/// Address of one peer to connect to: neither multicast nor unspecified.
pub(super) static PEER_IP: Form = Form {
    pattern: concat!(ipv4!(), "|", ipv6!()),
    never: Some(
        "^0\\.0\\.0\\.0$|^[0:]+$|^[Ff][Ff]|^[0:]*:[Ff]{4}:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}$",
    ),
    most: 45,
    check: |text| match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => Err(format!("{text} is no address of a peer")),
        _ => IP.check(text),
    },
};

pub(super) static PORT: Form = Form {
    pattern: "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]",
    never: None,
    most: 5,
    check: |text| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let port = text.parse::<u16>().is_ok_and(|port| port > 0);
        form(text, digits && port, "a port: 1 to 65535")
    },
};

pub(super) static TARGET: Form = Form {
    pattern: "(?:(?:volumes|virtioScsiTargets|virtioScsiControllers)/)?[^/\\u0000-\\u001f\\u007f-\\u009f]+",
    never: None,
    most: 128,
    check: |text| {
        let words = "the name of a target or a controller: virtioScsiTargets/ID, \
                     virtioScsiControllers/ID, volumes/ID or ID";
        form(text, crate::frontend::is_target_name(text), words)
    },
};

pub(super) static VOLUME: Form = Form {
    pattern: "[^/\\u0000-\\u001f\\u007f-\\u009f]+(?:/[^/\\u0000-\\u001f\\u007f-\\u009f]+)*",
    never: Some(
        "^(?:volumes/)?(?:nvmeSubsystems|virtioBlks|virtioScsiTargets|virtioScsiControllers\
         |virtioScsiLuns|bdev|uuid)/\
         |^nvmeRemoteControllers/(?!([^/]+)/nvmeRemoteNamespaces/\\1n[0-9]+$)\
         |^[^/]*Volumes/[^/]*/|^volumes/(?:[^/]*[Vv]olumes|nvmeRemoteControllers)/",
    ),
    most: usize::MAX,
    check: |text| VolumeRef::parse(text).map(|_| ()),
};

/// Name of a namespace that a mask is for, whose ID a client or the server has chosen.
pub(super) static NAMESPACE: Form = Form {
    pattern: "nvmeSubsystems/[^/\\u0000-\\u001f\\u007f-\\u009f]+/nvmeNamespaces/\
              (?:[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})",
    never: Some("/[0-9a-f]{32}$"),
    most: "nvmeSubsystems/".len() + "/nvmeNamespaces/".len() + 2 * id::MAX_LEN,
    check: crate::frontend::check_namespace,
};

impl Form {
    /// Checks a text; the error says what is wrong.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        let (length, most) = (text.len(), self.most);
        if length > most {
            return Err(format!("{text:?} has {length} bytes: at most {most}"));
        }
        (self.check)(text)
    }
}

fn form(text: &str, is_good: bool, words: &str) -> Result<(), String> {
    if is_good {
        return Ok(());
    }
    Err(format!("{text:?} is not {words}"))
}

fn is_ascii(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}
