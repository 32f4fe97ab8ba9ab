//! The text of `--version`, including the linked SPDK.

use std::sync::LazyLock;

use spdk::hooks::{CHANGES, CHANGES_MISSING};

/// Versions of the program and of SPDK, and the changes to SPDK (`spdk/changes/`) of this build.
pub static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = format!(
        "{}\n{} with {} changes of opi-spdk's",
        env!("CARGO_PKG_VERSION"),
        spdk::version(),
        CHANGES.len()
    );
    if !CHANGES_MISSING.is_empty() {
        text += &format!(", without {} (see docs/security.md)", CHANGES_MISSING.len());
    }
    for name in CHANGES {
        text += &format!("\n  {name}");
    }
    text
});
