//! Create requests that must be rejected without side effects.

use serde_json::Value;
use tonic::{Code, Status};

use super::{Resource, expect_invalid, name_of, with};

/// Asserts that creating `object` is rejected because of `field`, that no object was created, and that
/// the same ID still accepts `good`.
pub struct Attempt<'a> {
    /// The resource kind under test.
    pub resource: &'a Resource,
    /// The parent's name for nested kinds, otherwise empty.
    pub parent: &'a str,
    /// A valid object.
    pub good: Value,
}

impl Attempt<'_> {
    const ID: &'static str = "an-attempt";

    /// Asserts INVALID_ARGUMENT for the valid object with `value` at `path`, and that the error names
    /// `path`.
    pub async fn is_invalid(&self, path: &str, value: Value) {
        let object = with(self.good.clone(), path, value);
        self.object_is_invalid(path, object).await;
    }

    /// Asserts INVALID_ARGUMENT for `object`, and that the error names `path`.
    pub async fn object_is_invalid(&self, path: &str, object: Value) {
        let status = self.refused(object, Code::InvalidArgument).await;
        expect_invalid(&status, &format!("{}.{path}", self.resource.field));
    }

    /// Asserts that the create fails with `code` and leaves the collection unchanged; returns the
    /// status.
    pub async fn refused(&self, object: Value, code: Code) -> Status {
        let before = self.resource.list(self.parent).await;
        let status = self
            .resource
            .refused(self.parent, Self::ID, object, code)
            .await;
        assert_eq!(
            self.resource.list(self.parent).await,
            before,
            "a rejected create changed the collection"
        );
        status
    }

    /// Asserts that no earlier attempt holds the ID or an SPDK resource: creates and deletes the valid
    /// object.
    pub async fn nothing_remains(&self) {
        let made = self
            .resource
            .created(self.parent, Self::ID, self.good.clone())
            .await;
        self.resource.deleted(&name_of(&made)).await;
    }
}
