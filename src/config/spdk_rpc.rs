//! Settings of SPDK's own JSON-RPC, for diagnosis; off by default.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{ConfigError, socket_path};

/// SPDK's JSON-RPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpdkRpc {
    /// The Unix socket of SPDK's server.
    pub socket: PathBuf,
    /// The HTTP proxy to it, if enabled.
    pub http: Option<RpcHttp>,
}

/// The HTTP proxy to SPDK's JSON-RPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcHttp {
    /// Its address.
    pub address: SocketAddr,
    /// Its user.
    pub user: String,
    /// The file with the user's password.
    pub password_file: PathBuf,
}

/// Refuses a setting without the others that it needs to have an effect.
pub(super) fn check(
    socket: Option<PathBuf>,
    http: Option<SocketAddr>,
    user: Option<String>,
) -> Result<Option<SpdkRpc>, ConfigError> {
    let value = |setting, reason: String| ConfigError::Value { setting, reason };
    let missing = |setting, with, example| {
        value(setting, format!("is needed with {with}, such as {example}"))
    };
    let http = match (http, user) {
        (None, None) => None,
        (None, Some(_)) => {
            return Err(missing("spdk-rpc-http", "spdk-rpc-user", "127.0.0.1:9009"));
        }
        (Some(_), None) if socket.is_some() => {
            return Err(missing(
                "spdk-rpc-user",
                "spdk-rpc-http",
                "admin:/etc/opi-spdk/password",
            ));
        }
        (Some(address), user) => Some((address, user.unwrap_or_default())),
    };
    let Some(socket) = socket else {
        return match http {
            None => Ok(None),
            Some(_) => Err(missing(
                "spdk-rpc-socket",
                "spdk-rpc-http",
                "/run/opi-spdk/rpc.sock",
            )),
        };
    };
    socket_path::check("spdk-rpc-socket", &socket)?;
    let http = http
        .map(|(address, user)| proxy(address, &user))
        .transpose()?;
    Ok(Some(SpdkRpc { socket, http }))
}

fn proxy(address: SocketAddr, user: &str) -> Result<RpcHttp, ConfigError> {
    match user.split_once(':') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok(RpcHttp {
            address,
            user: name.to_owned(),
            password_file: file.into(),
        }),
        _ => Err(ConfigError::Value {
            setting: "spdk-rpc-user",
            reason: format!("{user:?} is not a user and a file with the password, user:file"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 9009))
    }

    #[test]
    fn the_socket_may_be_alone_and_the_proxy_may_not() {
        assert_eq!(check(None, None, None).expect("off"), None);
        let alone = check(Some("/s".into()), None, None)
            .expect("valid")
            .expect("on");
        assert_eq!((alone.socket, alone.http), (PathBuf::from("/s"), None));
        let user = "admin:/a:b".to_owned();
        let both = check(Some("/s".into()), Some(address()), Some(user)).expect("valid");
        let http = both.expect("on").http.expect("on");
        assert_eq!((http.address, http.user.as_str()), (address(), "admin"));
        assert_eq!(http.password_file, PathBuf::from("/a:b"));
    }

    #[test]
    fn a_path_is_as_long_as_a_socket_address_can_hold() {
        let of = |length| check(Some("x".repeat(length).into()), None, None);
        assert!(of(107).is_ok());
        let error = of(108).expect_err("one byte more").to_string();
        assert!(error.contains("has 108 bytes"), "{error}");
    }
}
