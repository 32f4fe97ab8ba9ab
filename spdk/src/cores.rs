//! Processor cores: which the reactors run on, and which are left for other threads.

use std::collections::BTreeSet;
use std::fmt;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::str::FromStr;

/// A non-empty set of processor cores, by number.
///
/// Written as a list (`0`, `0-3`, `0,2-3`, also in brackets) or as a hexadecimal mask (`0x5`), as SPDK's own
/// programs accept it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreSet(BTreeSet<usize>);

/// The number of cores that the system's cpu_set_t can hold.
const CORES_MAX: usize = libc::CPU_SETSIZE as usize;

impl CoreSet {
    /// Returns the cores in the calling thread's affinity mask.
    pub fn allowed() -> std::io::Result<Self> {
        // SAFETY: cpu_set_t is plain integers, for which all zero is valid: the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: 0 is the calling thread; `set` is valid for writes of the size passed.
        let rc = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
        if rc != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let cores = (0..CORES_MAX)
            // SAFETY: `core` is below CPU_SETSIZE, the number of bits of the set.
            .filter(|core| unsafe { libc::CPU_ISSET(*core, &set) })
            .collect();
        Ok(Self(cores))
    }

    /// Returns the cores that this process may assign to itself: those of its cpuset. They can be more than the
    /// inherited affinity mask (from taskset, isolcpus or a service manager). Restores that mask.
    pub fn permitted() -> std::io::Result<Self> {
        let inherited = Self::allowed()?;
        let all = Self((0..CORES_MAX).collect());
        // The kernel intersects the mask with the cpuset.
        if all.pin_current_thread().is_err() {
            return Ok(inherited);
        }
        let permitted = Self::allowed();
        inherited.pin_current_thread()?;
        permitted
    }

    /// Pins the calling thread to these cores, and the threads that it spawns from now on.
    pub fn pin_current_thread(&self) -> std::io::Result<()> {
        // SAFETY: cpu_set_t is plain integers, for which all zero is valid: the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for core in &self.0 {
            // SAFETY: parsing and `allowed` keep core numbers below CPU_SETSIZE, the number of bits of the set.
            unsafe { libc::CPU_SET(*core, &mut set) };
        }
        // SAFETY: 0 is the calling thread; `set` is valid for reads of the size passed.
        let rc = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
        if rc != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    }

    /// Returns a core of this set that another SPDK process has claimed, and that process's ID. SPDK claims each
    /// core by a file lock (lib/event/app.c), but only after it has reserved its memory; this reports the conflict
    /// before.
    pub fn claimed(&self) -> Option<(usize, i32)> {
        self.iter().find_map(|core| {
            let file = std::fs::File::open(format!("/var/tmp/spdk_cpu_lock_{core:03}")).ok()?;
            // SAFETY: a C struct of integers, for which all zero is valid.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            lock.l_type = libc::F_RDLCK as libc::c_short;
            lock.l_whence = libc::SEEK_SET as libc::c_short;
            // SAFETY: the descriptor is open, and `lock` is valid for reads and writes; F_GETLK only tests.
            let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut lock) };
            let held = rc == 0 && lock.l_type != libc::F_UNLCK as libc::c_short;
            held.then_some((core, lock.l_pid))
        })
    }

    /// Returns the cores of this set that are not in `other`; `None` if there are none.
    pub fn without(&self, other: &Self) -> Option<Self> {
        let rest: BTreeSet<_> = self.0.difference(&other.0).copied().collect();
        (!rest.is_empty()).then_some(Self(rest))
    }

    /// Returns the `count` highest of these cores; `None` for none or more than there are.
    pub fn last(&self, count: usize) -> Option<Self> {
        let first = self.0.len().checked_sub(count)?;
        let last: BTreeSet<_> = self.0.iter().skip(first).copied().collect();
        (!last.is_empty()).then_some(Self(last))
    }

    /// Returns whether the sets share a core.
    pub fn intersects(&self, other: &Self) -> bool {
        !self.0.is_disjoint(&other.0)
    }

    /// Iterates over the core numbers in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }

    /// Formats the set for SPDK's core mask option, in the form without an upper bound of cores: `[0,2,3]`.
    pub(crate) fn to_spdk(&self) -> String {
        format!("[{self}]")
    }
}

impl fmt::Display for CoreSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<_> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

/// Why a core list is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("core list {text:?}: {reason}; write a list such as 0-3,5 or a mask such as 0x2f")]
pub struct CoreListError {
    text: String,
    reason: String,
}

impl FromStr for CoreSet {
    type Err = CoreListError;

    fn from_str(text: &str) -> Result<Self, CoreListError> {
        let error = |reason: String| CoreListError {
            text: text.to_owned(),
            reason,
        };
        let trimmed = text.trim();
        let cores = match trimmed.strip_prefix("0x").or(trimmed.strip_prefix("0X")) {
            Some(mask) => parse_mask(mask),
            None => parse_list(trimmed),
        }
        .map_err(error)?;
        if cores.is_empty() {
            return Err(error("it names no core".to_owned()));
        }
        Ok(Self(cores))
    }
}

fn parse_mask(digits: &str) -> Result<BTreeSet<usize>, String> {
    if digits.len() * 4 > CORES_MAX {
        return Err(format!("a mask has at most {CORES_MAX} bits"));
    }
    let mut cores = BTreeSet::new();
    for (place, digit) in digits.chars().rev().enumerate() {
        let bits = digit
            .to_digit(16)
            .ok_or_else(|| format!("{digit:?} is not a hexadecimal digit"))?;
        cores.extend(
            (0..4)
                .filter(|bit| bits & (1 << bit) != 0)
                .map(|bit| place * 4 + bit),
        );
    }
    Ok(cores)
}

fn parse_list(text: &str) -> Result<BTreeSet<usize>, String> {
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let mut cores = BTreeSet::new();
    for part in inner.unwrap_or(text).split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (parse_core(first)?, parse_core(last)?);
        if first > last {
            return Err(format!("range {part:?} runs backwards"));
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

fn parse_core(text: &str) -> Result<usize, String> {
    let core: usize = text
        .trim()
        .parse()
        .map_err(|_| format!("{text:?} is not a core number"))?;
    if core >= CORES_MAX {
        return Err(format!(
            "core {core} is above the highest possible, {}",
            CORES_MAX - 1
        ));
    }
    Ok(core)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(text: &str) -> Vec<usize> {
        text.parse::<CoreSet>().expect(text).iter().collect()
    }

    #[test]
    fn lists_ranges_brackets_and_masks_name_the_same_cores() {
        assert_eq!(cores("0,2-3"), [0, 2, 3]);
        assert_eq!(cores("[0,2-3]"), [0, 2, 3]);
        assert_eq!(cores("0xd"), [0, 2, 3]);
        assert_eq!(cores("0x10"), [4]);
        assert_eq!(cores(" 7 "), [7]);
    }

    #[test]
    fn what_is_not_a_core_list_is_refused_with_the_reason() {
        for text in [
            "",
            "x",
            "0x",
            "0x0",
            "0xg",
            "3-1",
            "1-",
            "-1",
            "1,,2",
            "[1",
            "1024",
            "99999999999999999999",
        ] {
            let error = text.parse::<CoreSet>().expect_err(text);
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn what_may_be_had_is_no_less_than_what_is_inherited_and_asking_changes_nothing() {
        let inherited = CoreSet::allowed().expect("asked");
        let permitted = CoreSet::permitted().expect("asked");
        assert_eq!(inherited.without(&permitted), None);
        assert_eq!(CoreSet::allowed().expect("asked"), inherited);
        let one = CoreSet(inherited.iter().take(1).collect());
        let thread = std::thread::spawn(move || {
            one.pin_current_thread().expect("it is ours");
            let found = CoreSet::permitted().expect("asked");
            (CoreSet::allowed().expect("asked") == one, found)
        });
        assert_eq!(thread.join().expect("it ends"), (true, permitted));
    }

    #[test]
    fn what_is_left_beside_the_reactors() {
        let all: CoreSet = "0-3".parse().expect("valid");
        let some: CoreSet = "1,2".parse().expect("valid");
        assert_eq!(all.without(&some).expect("two are left").to_string(), "0,3");
        assert_eq!(all.without(&all), None);
    }
}
