//! Parses `KIND [NAME]` of the command line.
//!
//! ```text
//! nullVolumes                          all of a kind
//! nullVolumes a                        one, by its ID or by a name
//! nvmeNamespaces s/n                   one within another: the IDs along the way
//! nvmeSubsystems/s/nvmeNamespaces      all within another
//! nvmeSubsystems/s/nvmeNamespaces/n    one, by its name alone
//! ```

use super::Failure;
use super::kinds::{self, Kind};

/// One object, or all objects of a kind (optionally within a parent).
#[derive(Debug)]
pub(super) struct Reference {
    /// The kind.
    pub kind: &'static Kind,
    /// Name of the parent; empty for any.
    pub parent: String,
    /// Name of the object; `None` for all.
    pub name: Option<String>,
}

impl Reference {
    /// Parses a reference. `parent` is the flag's value: a name, or an ID if the kind determines the rest.
    ///
    /// # Errors
    /// What is wrong with the reference.
    pub fn parse(kind: &str, name: Option<&str>, parent: Option<&str>) -> Result<Self, Failure> {
        if !kind.contains('/') {
            let kind = kinds::find(kind)?;
            let parent = parent.map_or(Ok(String::new()), |parent| parent_of(kind, parent))?;
            let name = name.map(|name| full(kind, &parent, name)).transpose()?;
            return Ok(Self { kind, parent, name });
        }
        if parent.is_some() {
            return Err(Failure::Usage(format!(
                "--parent and {kind:?} both say where it is: give one of them"
            )));
        }
        let parts: Vec<&str> = kind.split('/').collect();
        let collections: Vec<&str> = parts.iter().copied().step_by(2).collect();
        let known = match collections.as_slice() {
            [one] => kinds::find(one)?,
            several => kinds::of_collections(several)
                .ok_or_else(|| Failure::Usage(format!("{kind:?} is no name of any kind")))?,
        };
        if parts.contains(&"") {
            return Err(Failure::Usage(format!("{kind:?} has an empty part")));
        }
        let is_one = parts.len() == 2 * collections.len();
        match (is_one, name) {
            (true, None) => Ok(Self {
                kind: known,
                parent: String::new(),
                name: Some(kind.to_owned()),
            }),
            (true, Some(name)) => Err(Failure::Usage(format!(
                "{kind:?} is a name already, and {name:?} is another"
            ))),
            (false, name) => {
                let parent = parts[..parts.len() - 1].join("/");
                let name = name.map(|name| full(known, &parent, name)).transpose()?;
                Ok(Self {
                    kind: known,
                    parent,
                    name,
                })
            }
        }
    }
}

/// The parent's name, from a name or from IDs.
fn parent_of(kind: &Kind, text: &str) -> Result<String, Failure> {
    let above = &kind.collections[..kind.collections.len() - 1];
    if above.is_empty() {
        return Err(Failure::Usage(format!(
            "--parent {text:?}: {} have none",
            kind.plural()
        )));
    }
    named(above, text).ok_or_else(|| {
        Failure::Usage(format!(
            "--parent {text:?} is no {}: {}",
            forms(above, "/").0,
            forms(above, "/").1
        ))
    })
}

/// The full name of an object, from any of its forms.
fn full(kind: &Kind, parent: &str, text: &str) -> Result<String, Failure> {
    if !parent.is_empty() && !text.is_empty() && !text.contains('/') {
        return Ok(format!("{parent}/{}/{text}", kind.plural()));
    }
    if let Some(name) = named(&kind.collections, text) {
        return Ok(name);
    }
    // The server may use another collection for a top-level kind, such as `volumes`.
    if kind.collections.len() == 1 && text.split('/').count() == 2 {
        return Ok(text.to_owned());
    }
    let (ids, name) = forms(&kind.collections, "/");
    Err(Failure::Usage(format!(
        "{text:?} is no name of {}: {ids}, or {name}",
        kind.plural()
    )))
}

/// The full name of an object in these collections, from a full name or from IDs.
fn named(collections: &[String], text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split('/').collect();
    if parts.contains(&"") {
        return None;
    }
    if parts.len() == collections.len() {
        let pairs = collections.iter().zip(&parts);
        let pairs: Vec<String> = pairs.map(|(one, id)| format!("{one}/{id}")).collect();
        return Some(pairs.join("/"));
    }
    let is_name = parts.len() == 2 * collections.len()
        && collections
            .iter()
            .zip(parts.iter().step_by(2))
            .all(|(one, part)| one == part);
    is_name.then(|| text.to_owned())
}

/// The accepted forms, for error messages: `ID/ID` and `nvmeSubsystems/ID/nvmeNamespaces/ID`.
fn forms(collections: &[String], between: &str) -> (String, String) {
    let ids = vec!["ID"; collections.len()].join(between);
    let pairs: Vec<String> = collections.iter().map(|one| format!("{one}/ID")).collect();
    (ids, pairs.join(between))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, name: Option<&str>, parent: Option<&str>) -> (String, Option<String>) {
        let found = Reference::parse(kind, name, parent).unwrap();
        (found.parent, found.name)
    }

    #[test]
    fn one_object_is_found_by_each_form_of_its_name() {
        let name = "nvmeSubsystems/s/nvmeNamespaces/n";
        let forms = [
            parse("nvmeNamespaces", Some("s/n"), None),
            parse("nvmeNamespace", Some(name), None),
            parse("nvmeNamespaces", Some("n"), Some("s")),
            parse("nvmeNamespaces", Some("n"), Some("nvmeSubsystems/s")),
            parse("nvmeSubsystems/s/nvmeNamespaces", Some("n"), None),
            parse(name, None, None),
        ];
        for (_, found) in forms {
            assert_eq!(found.as_deref(), Some(name));
        }
        assert_eq!(
            parse("null-volume", Some("a"), None).1.as_deref(),
            Some("nullVolumes/a")
        );
        assert_eq!(
            parse("null-volume", Some("volumes/a"), None).1.as_deref(),
            Some("volumes/a")
        );
    }

    #[test]
    fn all_of_a_kind_may_be_those_of_one_parent() {
        let (parent, name) = parse("nvmeSubsystems/s/nvmeNamespaces", None, None);
        assert_eq!((parent.as_str(), name), ("nvmeSubsystems/s", None));
        let (parent, name) = parse("nvmeNamespaces", None, Some("s"));
        assert_eq!((parent.as_str(), name), ("nvmeSubsystems/s", None));
        assert_eq!(parse("nvmeNamespaces", None, None).0, "");
    }

    #[test]
    fn what_names_nothing_is_refused_with_what_would() {
        for (kind, name, parent, told) in [
            ("nvmeNamespaces", Some("n"), None, "ID/ID"),
            ("nvmeNamespaces", Some("s//n"), None, "ID/ID"),
            ("nullVolumes", Some("a"), Some("b"), "have none"),
            ("nvmeSubsystems/s/disks", None, None, "no name of any kind"),
            ("nullVolumes/a", Some("b"), None, "already"),
            ("nullVolumes/", None, None, "empty part"),
        ] {
            let error = Reference::parse(kind, name, parent).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(told), "{kind} {name:?}: {error}");
        }
    }
}
