//! Free hugepages, by page size. Only sizes with a mounted hugetlbfs count, since SPDK maps files there.

use std::collections::BTreeSet;
use std::path::Path;

/// Returns the free hugepage memory of all sizes that SPDK can use, in MiB; 0 if there is none.
pub fn hugepages_free_mib() -> u64 {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let pools = Path::new("/sys/kernel/mm/hugepages");
    let free = page_sizes(&mounts).into_iter().map(|kib| {
        let pool = pools.join(format!("hugepages-{kib}kB/free_hugepages"));
        let pages = std::fs::read_to_string(pool).unwrap_or_default();
        pages.trim().parse::<u64>().unwrap_or_default() * kib
    });
    free.sum::<u64>() / 1024
}

/// Returns the page sizes of all hugetlbfs in the text of /proc/mounts, in KiB.
fn page_sizes(mounts: &str) -> BTreeSet<u64> {
    let fields = mounts.lines().map(|line| line.split_whitespace());
    fields
        .filter_map(|mut fields| {
            let (kind, options) = (fields.nth(2)?, fields.next()?);
            let size = options
                .split(',')
                .find_map(|option| option.strip_prefix("pagesize="))?;
            (kind == "hugetlbfs").then(|| kib(size))?
        })
        .collect()
}

/// Converts a size such as `2M` or `1G` to KiB.
fn kib(size: &str) -> Option<u64> {
    let (number, unit) = size.split_at_checked(size.len().checked_sub(1)?)?;
    let factor = match unit {
        "K" => 1,
        "M" => 1024,
        "G" => 1024 * 1024,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_count_whose_size_is_mounted() {
        let mounts = "proc /proc proc rw,nosuid 0 0\n\
             none /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n\
             none /mnt/huge-1G hugetlbfs rw,relatime,pagesize=1024M,size=8G 0 0\n\
             tmpfs /odd tmpfs rw,pagesize=4M 0 0\n\
             none /old hugetlbfs rw,pagesize=7 0 0\n";
        assert_eq!(page_sizes(mounts), BTreeSet::from([2048, 1024 * 1024]));
        assert!(page_sizes("").is_empty());
        assert_eq!(kib("1G"), Some(1024 * 1024));
    }
}
