//! Admission check for kernel asynchronous I/O contexts. Once an aio volume is in use, SPDK creates one context per
//! reactor with a fixed queue depth; Linux counts the depth against fs.aio-max-nr.

use crate::error::Error;
use crate::resource::{Name, Registry};

/// Queue depth of each SPDK aio context (bdev_aio.c, SPDK_AIO_QUEUE_DEPTH).
const DEPTH: u64 = 128;

const USED: &str = "/proc/sys/fs/aio-nr";
const MOST: &str = "/proc/sys/fs/aio-max-nr";

/// Checks that the kernel can supply the contexts for one more aio volume in use by `name`. Checked in advance because
/// SPDK finds the shortage only when it can no longer roll back.
///
/// # Errors
/// RESOURCE_EXHAUSTED that names the limit.
pub(crate) fn check(registry: &Registry, name: &Name) -> Result<(), Error> {
    let number = |path| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    // If the limits cannot be read, SPDK reports the shortage itself.
    let (Some(used), Some(most)) = (number(USED), number(MOST)) else {
        return Ok(());
    };
    let needed = DEPTH * u64::from(spdk::reactor_count());
    match shortage(used, most, needed) {
        Some(what) if registry.depends_on(name, "aioVolumes/") => {
            Err(Error::ResourceExhausted(what))
        }
        _ => Ok(()),
    }
}

fn shortage(used: u64, most: u64, needed: u64) -> Option<String> {
    (used.saturating_add(needed) > most).then(|| {
        format!(
            "an aio volume in use needs {needed} of the system's asynchronous I/Os, and {} of {most} are \
             left: raise fs.aio-max-nr",
            most.saturating_sub(used)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_names_the_limit() {
        assert_eq!(shortage(65_280, 65_536, 256), None);
        let what = shortage(65_408, 65_536, 256).expect("128 are too few");
        assert!(what.contains("needs 256"), "{what}");
        assert!(
            what.contains("128 of 65536 are left: raise fs.aio-max-nr"),
            "{what}"
        );
        assert!(shortage(u64::MAX, 1, 128).is_some_and(|what| what.contains("and 0 of 1")));
    }
}
