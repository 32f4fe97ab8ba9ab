//! The kernel's figures for this process.

use std::time::{SystemTime, UNIX_EPOCH};

/// Figures of the process; 0 where the kernel gives none.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) resident_bytes: u64,
    pub(super) open_files: u64,
    pub(super) started: f64,
}

/// Reads the figures. Reads from /proc, so not for a control thread that others wait for.
pub(super) fn read(started: SystemTime) -> Process {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    Process {
        resident_bytes: resident_kib(&status).unwrap_or_default() * 1024,
        // Excludes the descriptor used for listing.
        open_files: u64::try_from(files).unwrap_or_default().saturating_sub(1),
        started: started.as_secs_f64(),
    }
}

fn resident_kib(status: &str) -> Option<u64> {
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_files() {
        let process = read(SystemTime::now());
        assert!(process.resident_bytes > 1 << 20, "{process:?}");
        assert!(process.open_files >= 3, "{process:?}");
        assert_eq!(resident_kib("VmRSS:\t  12 kB\n"), Some(12));
        assert_eq!(resident_kib("VmRSS: many"), None);
    }
}
