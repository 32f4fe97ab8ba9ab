//! Addresses of the servers: an IP address and a port each, all distinct.

use std::net::{IpAddr, SocketAddr};

use super::ConfigError;

/// Parses an address. Names are not resolved, since a name may have several addresses.
pub(super) fn check(
    setting: &'static str,
    text: Option<String>,
) -> Result<Option<SocketAddr>, ConfigError> {
    let Some(text) = text else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| ConfigError::Value {
        setting,
        reason: format!(
            "{text:?} is not an IP address and a port: write {}",
            suggestion(&text)
        ),
    })
}

/// Parses an address that is announced to hosts, so its port has to be given.
pub(super) fn of_port(
    setting: &'static str,
    text: Option<String>,
) -> Result<Option<SocketAddr>, ConfigError> {
    let address = check(setting, text)?;
    match address {
        Some(address) if address.port() == 0 => Err(ConfigError::Value {
            setting,
            reason: format!("{address} has port 0: give one from 1 to 65535, such as 8009"),
        }),
        _ => Ok(address),
    }
}

/// Suggests a valid form for an invalid address.
fn suggestion(text: &str) -> String {
    let is_address = text.parse::<IpAddr>().is_ok();
    let (host, port) = match text.rsplit_once(':').filter(|_| !is_address) {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port),
        Some((host, "")) => (host, "PORT"),
        _ if text.parse::<u16>().is_ok() => ("", text),
        _ => (text, "PORT"),
    };
    let host = host.trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(address) if address.is_ipv6() => format!("[{address}]:{port}"),
        Ok(address) => format!("{address}:{port}"),
        Err(_) if host.is_empty() => {
            format!("0.0.0.0:{port} for all of IPv4, [::]:{port} for IPv6 too")
        }
        Err(_) if host == "localhost" => format!("127.0.0.1:{port} or [::1]:{port}"),
        Err(_) => format!("the address of this machine that is meant, such as 127.0.0.1:{port}"),
    }
}

/// Refuses two servers on one port, naming their settings.
pub(super) fn distinct(all: &[(&'static str, Option<SocketAddr>)]) -> Result<(), ConfigError> {
    let mut known: Vec<(&'static str, SocketAddr)> = Vec::new();
    for (setting, address) in all {
        let Some(address) = *address else { continue };
        if let Some((other, _)) = known.iter().find(|(_, known)| overlap(*known, address)) {
            return Err(ConfigError::Value {
                setting,
                reason: format!("{address} is where {other} is: give each its own port"),
            });
        }
        known.push((setting, address));
    }
    Ok(())
}

/// Whether two addresses conflict. Port 0 never does: the system chooses a free port.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (first, second) = (one.ip().to_canonical(), other.ip().to_canonical());
    let wildcard = first.is_unspecified() || second.is_unspecified();
    one.port() != 0 && one.port() == other.port() && (first == second || wildcard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_told_with_one_that_is() {
        for (text, right) in [
            ("localhost:50051", "127.0.0.1:50051 or [::1]:50051"),
            ("dpu1.example.com:50051", "such as 127.0.0.1:50051"),
            ("::1:50051x", "such as 127.0.0.1:PORT"),
            ("127.0.0.1", "127.0.0.1:PORT"),
            ("fe80::", "[fe80::]:PORT"),
            ("[::1]", "[::1]:PORT"),
            ("50051", "0.0.0.0:50051"),
            (":50051", "0.0.0.0:50051"),
            ("127.0.0.1:99999", "such as 127.0.0.1:PORT"),
        ] {
            let error = check("grpc-addr", Some(text.to_owned())).expect_err(text);
            let error = error.to_string();
            assert!(
                error.starts_with(&format!("grpc-addr: {text:?} is not")),
                "{error}"
            );
            assert!(
                error.ends_with(right) || error.contains(&format!("write {right}")),
                "{error}"
            );
        }
        let found = check("grpc-addr", Some("[::1]:1".to_owned())).expect("valid");
        assert_eq!(found, Some(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 1))));
        assert_eq!(check("grpc-addr", None).expect("valid"), None);
    }

    #[test]
    fn no_two_servers_have_one_port() {
        let of = |one: &str, other: &str| {
            let address = |text: &str| Some(text.parse().expect("an address"));
            distinct(&[("a", address(one)), ("b", None), ("c", address(other))])
        };
        for (one, other) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("127.0.0.1:1", "[::]:1"),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1"),
        ] {
            let error = of(one, other).expect_err(one).to_string();
            assert_eq!(
                error,
                format!("c: {other} is where a is: give each its own port")
            );
        }
        for (one, other) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("127.0.0.1:1", "127.0.0.2:1"),
        ] {
            of(one, other).expect("both can be served");
        }
    }
}
