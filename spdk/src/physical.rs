//! Physical addresses of this process's memory, from `/proc/self/pagemap` (Linux: admin-guide/mm/pagemap).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bits of a frame's number in an entry.
const FRAME: u64 = (1 << 55) - 1;

/// Whether the kernel tells this process physical addresses: without CAP_SYS_ADMIN each frame has the number 0.
pub fn is_told() -> bool {
    let resident = std::hint::black_box(Box::new(1_u8));
    let address = std::ptr::from_ref::<u8>(&resident).addr();
    entry(address).is_ok_and(|entry| entry & FRAME != 0)
}

fn entry(address: usize) -> io::Result<u64> {
    // SAFETY: sysconf reads a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = usize::try_from(page).map_err(io::Error::other)?;
    let mut entry = [0; 8];
    let offset = (address / page * entry.len()) as u64;
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, offset)?;
    Ok(u64::from_ne_bytes(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_addresses_are_told_to_those_who_may_see_them() {
        let status = std::fs::read_to_string("/proc/self/status").expect("a file");
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = u64::from_str_radix(line.expect("a line").trim(), 16).expect("a number");
        const CAP_SYS_ADMIN: u64 = 1 << 21;
        // In a user namespace the capability is not enough.
        let initial = std::fs::read_to_string("/proc/self/uid_map").expect("a file");
        let is_initial = initial.split_whitespace().eq(["0", "0", "4294967295"]);
        assert_eq!(is_told(), capabilities & CAP_SYS_ADMIN != 0 && is_initial);
    }
}
