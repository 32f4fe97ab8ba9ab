//! Hugepages of the machine.

use std::path::Path;

/// Hugepages of one size.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pool {
    /// Page size, in bytes.
    pub(super) page: u64,
    pub(super) bytes: u64,
    pub(super) free_bytes: u64,
}

/// Reads the pools of all sizes.
pub(super) fn read(pools: &Path) -> Vec<Pool> {
    let entries = std::fs::read_dir(pools).into_iter().flatten().flatten();
    let mut found: Vec<Pool> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let size = name.to_str()?.strip_prefix("hugepages-")?;
            let page = size
                .strip_suffix("kB")?
                .parse::<u64>()
                .ok()?
                .checked_mul(1024)?;
            let number = |file: &str| {
                let text = std::fs::read_to_string(entry.path().join(file)).ok()?;
                text.trim().parse::<u64>().ok()?.checked_mul(page)
            };
            Some(Pool {
                page,
                bytes: number("nr_hugepages")?,
                free_bytes: number("free_hugepages")?,
            })
        })
        .collect();
    found.sort_by_key(|pool| pool.page);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_is_a_pool() {
        let dir = tempfile::tempdir().expect("a directory");
        let pool = dir.path().join("hugepages-2048kB");
        std::fs::create_dir(&pool).expect("made");
        std::fs::write(pool.join("nr_hugepages"), "3\n").expect("written");
        std::fs::write(pool.join("free_hugepages"), "1\n").expect("written");
        std::fs::create_dir(dir.path().join("hugepages-none")).expect("made");
        let page = 2 << 20;
        let (bytes, free_bytes) = (3 * page, page);
        let expected = Pool {
            page,
            bytes,
            free_bytes,
        };
        assert_eq!(read(dir.path()), [expected]);
    }
}
