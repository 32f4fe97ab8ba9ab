//! Creating what must be refused, and that nothing comes of it.

use serde_json::Value;
use tonic::{Code, Status};

use super::{Resource, expect_invalid, name_of, with};

/// Tries to create `object` and expects it to be refused because of `field`; then that nothing of it
/// is there, and that the same ID still takes `good`.
pub struct Attempt<'a> {
    /// The kind.
    pub resource: &'a Resource,
    /// The parent of nested kinds, else empty.
    pub parent: &'a str,
    /// What would be taken.
    pub good: Value,
}

impl Attempt<'_> {
    const ID: &'static str = "an-attempt";

    /// The good object with `value` at `path` is refused for just that.
    pub async fn is_invalid(&self, path: &str, value: Value) {
        let object = with(self.good.clone(), path, value);
        self.object_is_invalid(path, object).await;
    }

    /// The object is refused for what it has at `path`.
    pub async fn object_is_invalid(&self, path: &str, object: Value) {
        let status = self.refused(object, Code::InvalidArgument).await;
        expect_invalid(&status, &format!("{}.{path}", self.resource.field));
    }

    /// The object is refused with this code.
    pub async fn refused(&self, object: Value, code: Code) -> Status {
        let before = self.resource.list(self.parent).await;
        let status = self
            .resource
            .refused(self.parent, Self::ID, object, code)
            .await;
        assert_eq!(
            self.resource.list(self.parent).await,
            before,
            "something came of it"
        );
        status
    }

    /// The ID, and all that the good object claims in SPDK, are still free.
    pub async fn nothing_remains(&self) {
        let made = self
            .resource
            .created(self.parent, Self::ID, self.good.clone())
            .await;
        self.resource.deleted(&name_of(&made)).await;
    }
}
