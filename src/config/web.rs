//! Settings of the HTTP port for web pages: names of this server, and sites whose pages may use it.

use super::ConfigError;

/// Allowed hosts and origins, besides programs and this server's own pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Web {
    /// Names of this server, in lower case and without ports.
    pub hosts: Vec<String>,
    /// Allowed origins, as browsers send them: `https://console.example:8443`.
    pub origins: Vec<String>,
}

/// Parses both comma-separated lists.
pub(super) fn check(hosts: Option<String>, origins: Option<String>) -> Result<Web, ConfigError> {
    Ok(Web {
        hosts: list(hosts, "http-hosts", host)?,
        origins: list(origins, "http-origins", origin)?,
    })
}

fn list(
    text: Option<String>,
    setting: &'static str,
    check: fn(&str) -> Result<(), &'static str>,
) -> Result<Vec<String>, ConfigError> {
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    let items = text.split(',').map(|item| item.trim().to_ascii_lowercase());
    let checked = items.map(|item| match check(&item) {
        Ok(()) => Ok(item),
        Err(right) => Err(ConfigError::Value {
            setting,
            reason: format!("{item:?} in {text:?} is not {right}"),
        }),
    });
    checked.collect()
}

fn host(text: &str) -> Result<(), &'static str> {
    let known = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if text.is_empty() || text.starts_with('.') || !text.chars().all(known) {
        return Err("a host name without a port, such as dpu1.example.com");
    }
    Ok(())
}

fn origin(text: &str) -> Result<(), &'static str> {
    const RIGHT: &str =
        "an origin: http:// or https://, a host, and a port if it is not the default one";
    let rest = text.strip_prefix("https://");
    let rest = rest.or_else(|| text.strip_prefix("http://")).ok_or(RIGHT)?;
    let authority: axum::http::uri::Authority = rest.parse().map_err(|_| RIGHT)?;
    if authority.host().is_empty() || rest.contains(['/', '@', '?', '#', '*']) {
        return Err(RIGHT);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_origins_are_lists() {
        let web = check(
            Some("DPU1.example.com, dpu1".to_owned()),
            Some("https://console.example:8443,http://[::1]:3000".to_owned()),
        );
        let web = web.expect("valid");
        assert_eq!(web.hosts, ["dpu1.example.com", "dpu1"]);
        assert_eq!(
            web.origins,
            ["https://console.example:8443", "http://[::1]:3000"]
        );
        assert_eq!(check(None, None).expect("valid"), Web::default());
    }

    #[test]
    fn what_would_never_match_is_refused() {
        for bad in ["", "a,", "a:80", "*", "http://a"] {
            let error = check(Some(bad.to_owned()), None).expect_err(bad);
            assert!(error.to_string().starts_with("http-hosts: "), "{error}");
        }
        for bad in [
            "",
            "*",
            "null",
            "a.example",
            "https://",
            "https://a/",
            "https://*.a",
        ] {
            let error = check(None, Some(bad.to_owned())).expect_err(bad);
            assert!(error.to_string().starts_with("http-origins: "), "{error}");
        }
    }
}
