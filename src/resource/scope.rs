//! The objects that a caller may know of: all, or those of the prefixes of its grants.
//!
//! The access layer puts the scope into the extensions of a request; lists select by it before they cut a page, and
//! errors are rewritten by it, so that neither a page, a token nor a message names an object outside of it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use tonic::Extensions;

use super::meta;
use crate::api;

/// Stands for the name of an object outside of the scope.
const FOREIGN: &str = "an object of another tenant";

/// Collections of the names of all kinds: `volumes`, `nullVolumes`, `nvmeSubsystems`.
static COLLECTIONS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    api::pool()
        .all_messages()
        .flat_map(|message| meta::collections(&message))
        .collect()
});

/// The objects that a caller may know of. The default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope(Option<Arc<[String]>>);

impl Scope {
    /// The objects of any of these prefixes; all objects if one of them is `None`.
    pub fn of_prefixes<'a>(prefixes: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        let prefixes = prefixes.into_iter().map(|prefix| prefix.map(str::to_owned));
        Self(prefixes.collect::<Option<Arc<[String]>>>())
    }

    /// The scope of a request; all objects if the access layer has set none.
    pub fn of(request: &Extensions) -> Self {
        request.get::<Self>().cloned().unwrap_or_default()
    }

    /// Whether it is all objects.
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the object of this name, in any of its forms, belongs to the scope.
    pub fn has(&self, name: &str) -> bool {
        let prefixes = self.0.as_deref();
        prefixes.is_none_or(|prefixes| prefixes.iter().any(|prefix| is_of(name, prefix)))
    }

    /// Replaces the names of objects outside of the scope in a text, and the kinds told after them.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.is_all() {
            return Cow::Borrowed(text);
        }
        let mut redacted = String::new();
        let mut kept = 0;
        let mut at = 0;
        while let Some(begin) = text[at..].find(is_of_name).map(|found| at + found) {
            let rest = &text[begin..];
            let end = begin + rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
            at = end;
            if let Some(foreign) = self.foreign_in(&text[begin..end]) {
                redacted.push_str(&text[kept..begin + foreign]);
                redacted.push_str(FOREIGN);
                kept = end + kind_after(&text[end..]);
                at = kept;
            }
        }
        if kept == 0 {
            return Cow::Borrowed(text);
        }
        redacted.push_str(&text[kept..]);
        Cow::Owned(redacted)
    }

    /// Where the name of an object outside of the scope begins in a run of segments, such as a path.
    fn foreign_in(&self, run: &str) -> Option<usize> {
        let mut begin = 0;
        let mut segments = Vec::new();
        for segment in run.split('/') {
            segments.push((begin, segment));
            begin += segment.len() + 1;
        }
        let is_name = |pair: &[(usize, &str)]| match pair {
            [(_, collection), (_, id)] => {
                // `volumes/ID` tells of the form.
                COLLECTIONS.contains(*collection)
                    && id.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            }
            _ => false,
        };
        let names = segments.windows(2).filter(|pair| is_name(pair));
        let mut begins = names.filter_map(|pair| pair.first().map(|(begin, _)| *begin));
        // The first name decides: what follows it is a child's.
        let begin = begins.next()?;
        let name: Vec<&str> = run[begin..].trim_end_matches('.').split('/').collect();
        let whole = name.get(..4).or(name.get(..2)).unwrap_or_default();
        (!self.has(&whole.join("/"))).then_some(begin)
    }
}

/// Whether a name is that of an object of the prefix or of a child of one. UUIDs and SPDK's names do not match a
/// prefix, since they can denote any client's objects.
pub(crate) fn is_of(name: &str, prefix: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    match parts[..] {
        [id] => id.starts_with(prefix),
        [_, id, ..] => parts.len().is_multiple_of(2) && id.starts_with(prefix),
        [] => false,
    }
}

/// Whether a character may be in a name. Texts that are cut end in dots.
fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '.')
}

/// Length of the kind in parentheses that a text begins with: ` (NullVolume)`.
fn kind_after(text: &str) -> usize {
    let kind = text
        .strip_prefix(" (")
        .and_then(|rest| rest.split_once(')'));
    match kind {
        Some((kind, _)) if kind.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            kind.len() + " ()".len()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_tenant() -> Scope {
        Scope::of_prefixes([Some("t-"), Some("u-")])
    }

    #[test]
    fn objects_of_a_prefix_are_those_whose_own_or_parents_id_begins_so() {
        for name in [
            "t-a",
            "volumes/t-a",
            "nvmeSubsystems/t-a",
            "nvmeSubsystems/t-a/nvmeNamespaces/x",
            "nvmeRemoteControllers/t-a/nvmeRemoteNamespaces/t-an1",
        ] {
            assert!(is_of(name, "t-"), "{name}");
            assert!(of_tenant().has(name), "{name}");
        }
        for name in [
            "",
            "a",
            "ta",
            "volumes/a",
            "volumes/a/t-a",
            "nvmeSubsystems/s/nvmeNamespaces/t-a",
            "volumes/t-a/x",
            "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
            "/t-a/t-a",
        ] {
            assert!(!is_of(name, "t-"), "{name}");
            assert!(Scope::default().has(name), "{name}");
        }
        assert!(Scope::of_prefixes([Some("t-"), None]).is_all());
        assert!(!Scope::of_prefixes([]).has("volumes/a"));
    }

    #[test]
    fn names_outside_of_the_scope_are_taken_out_of_a_text() {
        for (text, redacted) in [
            (
                "uuid \"1b4e28ba\" already belongs to volumes/zz-payroll (NullVolume)",
                "uuid \"1b4e28ba\" already belongs to an object of another tenant",
            ),
            (
                "volumes/t-a (NullVolume) is in use by nvmeSubsystems/s/nvmeNamespaces/t-n: delete that user first",
                "volumes/t-a (NullVolume) is in use by an object of another tenant: delete that user first",
            ),
            (
                "a change of nullVolumes/b, \"qosVolumes/c\" and virtioBlks/u-x",
                "a change of an object of another tenant, \"an object of another tenant\" and virtioBlks/u-x",
            ),
            (
                "behind /v1/volumes/b...",
                "behind /v1/an object of another tenant",
            ),
            ("volumes/b", "an object of another tenant"),
            (
                "volumes/b (of 2 disks)",
                "an object of another tenant (of 2 disks)",
            ),
        ] {
            assert_eq!(of_tenant().redact(text), redacted);
            assert_eq!(Scope::default().redact(text), text);
        }
        for text in [
            "",
            "volumes/t-a",
            "nvmeSubsystems/t-s/nvmeNamespaces/n was not found",
            "name is required: volumes/ID, nullVolumes/ID or ID",
            "parent is required: nvmeSubsystems/ID",
            "there is no directory /var/lib/opi-spdk/a",
            "opi_api.storage.v1/NullVolume",
            "größer als volumes/ und volumes",
        ] {
            assert!(
                matches!(of_tenant().redact(text), Cow::Borrowed(same) if same == text),
                "{text}"
            );
        }
    }

    #[test]
    fn the_collections_of_all_kinds_are_known() {
        for collection in [
            "volumes",
            "nullVolumes",
            "nvmeNamespaces",
            "virtioBlks",
            "delayVolumes",
        ] {
            assert!(
                COLLECTIONS.contains(collection),
                "{collection} of {COLLECTIONS:?}"
            );
        }
    }
}
