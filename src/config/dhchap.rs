//! Settings of DH-HMAC-CHAP.

use std::str::FromStr;

use spdk::dhchap::Weakest;

use super::ConfigError;

/// The weakest hash and DH group that are accepted; the weakest there are by default.
///
/// # Errors
/// [`ConfigError::Value`] if there is none of this name.
pub(super) fn check(hash: Option<String>, group: Option<String>) -> Result<Weakest, ConfigError> {
    Ok(Weakest {
        hash: named("dhchap-min-hash", hash)?,
        group: named("dhchap-min-group", group)?,
    })
}

fn named<T>(setting: &'static str, name: Option<String>) -> Result<T, ConfigError>
where
    T: FromStr<Err = String> + Default,
{
    name.map_or_else(|| Ok(T::default()), |name| name.parse())
        .map_err(|reason| ConfigError::Value { setting, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_an_error_with_the_setting_and_the_names() {
        let text = |name: &str| Some(name.to_owned());
        assert_eq!(check(None, None).expect("defaults"), Weakest::default());
        let error = check(text("sha1"), None).expect_err("no such hash");
        let expected = "dhchap-min-hash: \"sha1\" is none of sha256, sha384, sha512";
        assert_eq!(error.to_string(), expected);
        let error = check(None, text("ffdhe8192")).expect_err("not accepted");
        assert!(error.to_string().starts_with("dhchap-min-group: "));
    }
}
