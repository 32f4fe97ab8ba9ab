//! Path templates of the google.api.http option: `/v1/{name=nvmeSubsystems/*}:stats`.
//!
//! ```text
//! template = "/" segments [ ":" verb ]        segment  = literal | "*" | variable
//! segments = segment { "/" segment }          variable = "{" field.path [ "=" segments ] "}"
//! ```
//!
//! The public grammar also has `**`, which is refused here: no route of the API uses it.

use percent_encoding::percent_decode_str;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    segments: Vec<Segment>,
    variables: Vec<Variable>,
    verb: Option<String>,
}

/// Pattern for one path segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Exactly this text.
    Literal(String),
    /// Any non-empty text.
    Any,
}

/// A request field that is filled from the path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Variable {
    field: String,
    /// Range of its segments, end exclusive.
    span: (usize, usize),
}

/// The values of a template's variables: path of the request field, and value.
pub type Captures = Vec<(String, String)>;

impl Template {
    /// Parses a template. The error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Template, String> {
        let fail = |why: &str| Err(format!("path template {text:?}: {why}"));
        let Some(rest) = text.strip_prefix('/') else {
            return fail("it must begin with a slash");
        };
        let after_variables = rest.rfind('}').map_or(0, |at| at + 1);
        let (path, verb) = match rest[after_variables..].find(':') {
            Some(at) => {
                let at = after_variables + at;
                (&rest[..at], Some(rest[at + 1..].to_owned()))
            }
            None => (rest, None),
        };
        let mut template = Template {
            segments: Vec::new(),
            variables: Vec::new(),
            verb,
        };
        let mut rest = path;
        loop {
            rest = match rest.strip_prefix('{') {
                Some(inner) => {
                    let Some((variable, after)) = inner.split_once('}') else {
                        return fail("a brace is not closed");
                    };
                    let (field, segments) = variable.split_once('=').unwrap_or((variable, "*"));
                    let start = template.segments.len();
                    template.segments.extend(segments.split('/').map(segment));
                    template.variables.push(Variable {
                        field: field.to_owned(),
                        span: (start, template.segments.len()),
                    });
                    after
                }
                None => {
                    let end = rest.find('/').unwrap_or(rest.len());
                    template.segments.push(segment(&rest[..end]));
                    &rest[end..]
                }
            };
            match rest.strip_prefix('/') {
                Some(after) => rest = after,
                None if rest.is_empty() => break,
                None => return fail("a slash must follow a variable"),
            }
        }
        for segment in &template.segments {
            if let Segment::Literal(text) = segment
                && (text.is_empty() || text.contains(['*', '{', '}']))
            {
                return fail("a segment must be a text, * or a variable");
            }
        }
        Ok(template)
    }

    /// Matches a request's path.
    pub fn captures(&self, path: &Path) -> Option<Captures> {
        if path.firsts.len() + 1 != self.segments.len() {
            return None;
        }
        // Only a literal colon separates the verb: `%3A` is part of an ID.
        let last = match &self.verb {
            Some(verb) => decode(path.last.strip_suffix(verb.as_str())?.strip_suffix(':')?)?,
            None => decode(&path.last)?,
        };
        let part = |i: usize| path.firsts.get(i).unwrap_or(&last).as_str();
        for (i, segment) in self.segments.iter().enumerate() {
            let fits = match segment {
                Segment::Literal(text) => text == part(i),
                Segment::Any => !part(i).is_empty(),
            };
            if !fits {
                return None;
            }
        }
        let value = |(from, to): (usize, usize)| {
            let parts: Vec<&str> = (from..to).map(part).collect();
            parts.join("/")
        };
        let capture = |v: &Variable| (v.field.clone(), value(v.span));
        Some(self.variables.iter().map(capture).collect())
    }

    /// The segments, with those of variables expanded.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The text after a colon that follows the last segment.
    pub fn verb(&self) -> Option<&str> {
        self.verb.as_deref()
    }

    /// Paths of the request fields that the variables fill.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(|v| v.field.as_str())
    }

    /// Canonical form without variable names: equal for templates that match the same paths.
    pub fn shape(&self) -> String {
        let segments = self.segments.iter().map(|segment| match segment {
            Segment::Literal(text) => text.as_str(),
            Segment::Any => "*",
        });
        let path: Vec<&str> = segments.collect();
        let verb = self.verb.as_ref().map(|v| format!(":{v}"));
        format!("/{}{}", path.join("/"), verb.unwrap_or_default())
    }

    /// Rank of the template: if two match a path, the higher one wins.
    pub fn precision(&self) -> (bool, usize) {
        let literal = |s: &&Segment| matches!(s, Segment::Literal(_));
        (
            self.verb.is_some(),
            self.segments.iter().filter(literal).count(),
        )
    }
}

fn segment(text: &str) -> Segment {
    match text {
        "*" => Segment::Any,
        literal => Segment::Literal(literal.to_owned()),
    }
}

/// A request's path, split into segments before decoding so that an encoded slash is never a separator. A proxy with
/// path rules in front sees the same segments.
#[derive(Debug, PartialEq, Eq)]
pub struct Path {
    /// All segments but the last, decoded.
    firsts: Vec<String>,
    /// The last segment, not decoded: it may end with a verb.
    last: String,
}

impl Path {
    /// Splits a path. `None` if it does not start with a slash, is not UTF-8, or has an encoded slash, which no name
    /// can contain.
    pub fn parse(path: &str) -> Option<Self> {
        let mut segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let last = segments.pop()?.to_owned();
        decode(&last)?;
        Some(Self {
            firsts: segments.into_iter().map(decode).collect::<Option<_>>()?,
            last,
        })
    }
}

fn decode(segment: &str) -> Option<String> {
    let text = percent_decode_str(segment).decode_utf8().ok()?;
    (!text.contains('/')).then(|| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captures(template: &str, path: &str) -> Option<Captures> {
        Template::parse(template)
            .unwrap()
            .captures(&Path::parse(path).unwrap())
    }

    fn one(field: &str, value: &str) -> Option<Captures> {
        Some(vec![(field.to_owned(), value.to_owned())])
    }

    #[test]
    fn variables_hold_their_segments() {
        let path = "/v1/nvmeSubsystems/s/nvmeControllers/c";
        assert_eq!(
            captures("/v1/{name=nvmeSubsystems/*/nvmeControllers/*}", path),
            one("name", "nvmeSubsystems/s/nvmeControllers/c")
        );
        assert_eq!(
            captures(
                "/v1/{nvme_subsystem.name=nvmeSubsystems/*}",
                "/v1/nvmeSubsystems/s"
            ),
            one("nvme_subsystem.name", "nvmeSubsystems/s")
        );
        assert_eq!(
            captures(
                "/v1/{parent=nvmeSubsystems/*}/nvmeControllers",
                "/v1/nvmeSubsystems/s/nvmeControllers"
            ),
            one("parent", "nvmeSubsystems/s")
        );
        assert_eq!(
            captures("/v1/{parent=volumes}", "/v1/volumes"),
            one("parent", "volumes")
        );
        assert_eq!(captures("/v1/{name}", "/v1/x"), one("name", "x"));
        assert_eq!(captures("/v1/nullVolumes", "/v1/nullVolumes"), Some(vec![]));
    }

    #[test]
    fn what_does_not_fit_is_not_matched() {
        let template = "/v1/{name=nullVolumes/*}";
        for path in [
            "/v1/nullVolumes",
            "/v1/nullVolumes/",
            "/v1/nullVolumes/a/b",
            "/v1/mallocVolumes/a",
            "/v2/nullVolumes/a",
            "/",
        ] {
            assert_eq!(captures(template, path), None, "{path}");
        }
    }

    #[test]
    fn a_verb_is_cut_off_the_last_segment() {
        let template = "/v1/{name=nullVolumes/*}:stats";
        assert_eq!(
            captures(template, "/v1/nullVolumes/a:stats"),
            one("name", "nullVolumes/a")
        );
        for path in [
            "/v1/nullVolumes/a",
            "/v1/nullVolumes/:stats",
            "/v1/nullVolumes/a:reset",
            "/v1/nullVolumes/astats",
        ] {
            assert_eq!(captures(template, path), None, "{path}");
        }
        let (plain, verb) = ("/v1/{name=nullVolumes/*}", template);
        let precision = |t| Template::parse(t).unwrap().precision();
        assert!(precision(verb) > precision(plain));
    }

    #[test]
    fn what_is_encoded_is_text_and_no_separator() {
        let template = "/v1/{name=a/*}";
        assert_eq!(captures(template, "/v1/a/%41b%C3%A9"), one("name", "a/Abé"));
        assert_eq!(captures(template, "/v1/a/b%2"), one("name", "a/b%2"));
        for bad in ["/v1/a%2Fb", "/v1/a/b%2fc", "/%ff", "*", ""] {
            assert_eq!(Path::parse(bad), None, "{bad}");
        }
        let verb = "/v1/{name=a/*}:stats";
        assert_eq!(captures(verb, "/v1/a/b%3Astats"), None);
        assert_eq!(
            captures(template, "/v1/a/b%3Astats"),
            one("name", "a/b:stats")
        );
        assert_eq!(captures(verb, "/v1/a/b%3Ac:stats"), one("name", "a/b:c"));
    }

    #[test]
    fn a_bad_template_is_refused() {
        for bad in [
            "",
            "v1",
            "/",
            "/v1//x",
            "/v1/{name",
            "/v1/{a}b",
            "/v1/**",
            "/v1/{a=**}",
        ] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_shape_has_no_names() {
        let shape = |t| Template::parse(t).unwrap().shape();
        assert_eq!(shape("/v1/{name=a/*}:stats"), "/v1/a/*:stats");
        assert_eq!(shape("/v1/{parent=volumes}"), "/v1/volumes");
    }
}
