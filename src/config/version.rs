//! What `--version` tells, also of the SPDK that is linked.

use std::sync::LazyLock;

use spdk::hooks::{CHANGES, CHANGES_MISSING};

/// Version of the program, version of SPDK, and the changes (`spdk/changes/`) that it was built with.
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
