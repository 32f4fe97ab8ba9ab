//! The processor that SPDK was built for. On one that lacks a feature of it the process ends before `main`, with a line that
//! names the feature (`spdk/sys/shim/cpu.c`).

use std::ffi::{CStr, CString};

use spdk_sys as sys;

/// The processor that SPDK was built for, as gcc names it, or in words: that of the build machine.
pub fn name() -> &'static str {
    sys::SPDK_ARCH
}

/// Features that SPDK's code needs and the processor lacks that this text of `/proc/cpuinfo` describes, by the kernel's
/// names. Empty if the text has no list of features.
pub fn missing_features(cpuinfo: &str) -> Vec<String> {
    let Ok(text) = CString::new(cpuinfo) else {
        return Vec::new();
    };
    let mut missing = [0; 512];
    // SAFETY: the text ends with NUL, and the function writes a string that ends with NUL within the buffer's length.
    let found = unsafe { sys::opi_cpu_missing(text.as_ptr(), missing.as_mut_ptr(), missing.len()) };
    if !found {
        return Vec::new();
    }
    // SAFETY: the buffer contains a string that ends with NUL, and outlives the reference.
    let missing = unsafe { CStr::from_ptr(missing.as_ptr()) };
    let words = missing.to_string_lossy();
    words.split(' ').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(features: &str) -> Vec<String> {
        missing_features(&format!(
            "processor\t: 0\nbugs\t\t:\nflags\t\t: {features}\npower management:\n\nprocessor\t: 1\n"
        ))
    }

    #[test]
    fn features_that_a_processor_lacks_are_named_and_those_of_this_one_suffice() {
        let here = std::fs::read_to_string("/proc/cpuinfo").expect("a file");
        assert_eq!(missing_features(&here), [""; 0]);
        if !cfg!(target_arch = "x86_64") {
            return;
        }
        let all = of("fpu sse2");
        assert!(!all.is_empty());
        for needed in &all {
            let others: Vec<_> = all.iter().filter(|one| *one != needed).cloned().collect();
            let others = others.join(" ");
            let needed = std::slice::from_ref(needed);
            assert_eq!(of(&others), needed);
            // A part of a word is another feature.
            let with = |word: &str| of(&format!("x{word} {others} {word}x"));
            assert_eq!(with(&needed[0]), needed);
            assert_eq!(of(&format!("{} {others}", needed[0])), [""; 0]);
        }
        assert_eq!(missing_features("cpu : POWER9\n"), [""; 0]);
        assert_eq!(missing_features(""), [""; 0]);
    }
}
