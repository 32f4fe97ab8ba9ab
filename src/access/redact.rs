//! Errors as a caller of some prefixes may read them: without the names of other tenants' objects.

use std::collections::HashMap;

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use crate::resource::Scope;

/// Rewrites a status, its details included; `None` if it names no object outside of the scope.
pub(super) fn status(status: &Status, scope: &Scope) -> Option<Status> {
    let given = status.get_error_details();
    let mut changed = false;
    let mut redact = |text: &str| {
        let redacted = scope.redact(text);
        changed |= redacted != text;
        redacted.into_owned()
    };
    let message = redact(status.message());
    let mut details = ErrorDetails::new();
    if let Some(info) = given.error_info() {
        let metadata: HashMap<String, String> = (info.metadata.iter())
            .map(|(key, value)| (key.clone(), redact(value)))
            .collect();
        details.set_error_info(&info.reason, &info.domain, metadata);
    }
    if let Some(resource) = given.resource_info() {
        let name = redact(&resource.resource_name);
        // The kind of another tenant's object is not told either.
        let kind = match name == resource.resource_name {
            true => resource.resource_type.as_str(),
            false => "",
        };
        details.set_resource_info(
            kind,
            name,
            redact(&resource.owner),
            redact(&resource.description),
        );
    }
    for violation in given
        .bad_request()
        .iter()
        .flat_map(|bad| &bad.field_violations)
    {
        details.add_bad_request_violation(&violation.field, redact(&violation.description));
    }
    for violation in given
        .precondition_failure()
        .iter()
        .flat_map(|failure| &failure.violations)
    {
        details.add_precondition_failure_violation(
            &violation.r#type,
            redact(&violation.subject),
            redact(&violation.description),
        );
    }
    changed.then(|| {
        Status::with_error_details_and_metadata(
            status.code(),
            message,
            details,
            status.metadata().clone(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn no_part_of_a_status_names_an_object_of_another_tenant() {
        let scope = Scope::of_prefixes([Some("t-")]);
        let in_use = Error::InUse {
            name: "volumes/t-a".into(),
            user: "nvmeSubsystems/secret/nvmeNamespaces/n".into(),
            remedy: "delete that user first".into(),
        };
        let taken = Error::AlreadyExists {
            name: "volumes/secret".into(),
            message: "uuid \"u\" already belongs to volumes/secret (NullVolume)".into(),
        };
        let dependency =
            Error::failed_precondition("nullVolumes/secret", "nullVolumes/secret is being deleted");
        let field = Error::invalid("volume_name_ref", "volumes/secret is no volume for it");
        for error in [in_use, taken, dependency, field] {
            let whole = Status::from(error);
            let redacted = status(&whole, &scope).expect("it names one");
            assert_eq!(redacted.code(), whole.code());
            let shown = format!("{redacted:?} {:?}", redacted.get_error_details());
            assert!(!shown.contains("secret"), "{shown}");
            assert!(shown.contains("an object of another tenant"), "{shown}");
            let (given, left) = (whole.get_error_details(), redacted.get_error_details());
            assert_eq!(
                given.error_info().map(|info| &info.reason),
                left.error_info().map(|info| &info.reason)
            );
        }
        let own = Status::from(Error::not_found("volumes/t-a"));
        assert!(status(&own, &scope).is_none());
    }
}
