//! The processor that SPDK was built for, and the CPU features that its code may use unconditionally.

use std::path::{Path, PathBuf};

use super::{Failure, compiler, out_dir};

/// Macros of gcc and clang for features that they use in any code, or that DPDK's code selects at compile time, and the
/// names of the features in `/proc/cpuinfo` (Linux: arch/x86/include/asm/cpufeatures.h, arch/arm64/kernel/cpuinfo.c).
const FEATURES: [(&str, &str); 35] = [
    ("__SSE3__", "pni"),
    ("__SSSE3__", "ssse3"),
    ("__SSE4_1__", "sse4_1"),
    ("__SSE4_2__", "sse4_2"),
    ("__POPCNT__", "popcnt"),
    ("__MOVBE__", "movbe"),
    ("__LZCNT__", "abm"),
    ("__AES__", "aes"),
    ("__PCLMUL__", "pclmulqdq"),
    ("__RDRND__", "rdrand"),
    ("__RDSEED__", "rdseed"),
    ("__AVX__", "avx"),
    ("__F16C__", "f16c"),
    ("__FMA__", "fma"),
    ("__BMI__", "bmi1"),
    ("__BMI2__", "bmi2"),
    ("__AVX2__", "avx2"),
    ("__AVX512F__", "avx512f"),
    ("__AVX512CD__", "avx512cd"),
    ("__AVX512BW__", "avx512bw"),
    ("__AVX512DQ__", "avx512dq"),
    ("__AVX512VL__", "avx512vl"),
    ("__AVX512IFMA__", "avx512ifma"),
    ("__AVX512VBMI__", "avx512vbmi"),
    ("__AVX512VBMI2__", "avx512_vbmi2"),
    ("__AVX512VNNI__", "avx512_vnni"),
    ("__AVX512BITALG__", "avx512_bitalg"),
    ("__AVX512VPOPCNTDQ__", "avx512_vpopcntdq"),
    ("__GFNI__", "gfni"),
    ("__VAES__", "vaes"),
    ("__VPCLMULQDQ__", "vpclmulqdq"),
    ("__AVXVNNI__", "avx_vnni"),
    ("__ARM_FEATURE_CRC32", "crc32"),
    ("__ARM_FEATURE_ATOMICS", "atomics"),
    ("__ARM_FEATURE_AES", "aes"),
];

/// Writes `opi_cpu.h` for the shim, and returns the name of the processor.
pub fn generate(includes: &[PathBuf]) -> Result<String, Failure> {
    let arch = arch(includes)?;
    let features = match &arch {
        Some(arch) => features(includes, arch)?.join(" "),
        None => String::new(),
    };
    let name = match arch.as_deref() {
        Some("native") => "the processor of its build machine",
        Some(arch) => arch,
        None => "an unknown processor",
    };
    let text = format!("#define OPI_CPU_NAME {name:?}\n#define OPI_CPU_FEATURES {features:?}\n");
    let file = out_dir()?.join("opi_cpu.h");
    std::fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(name.to_owned())
}

/// The name for `-march` that SPDK was configured with; "native" is the processor of the build machine.
fn arch(includes: &[PathBuf]) -> Result<Option<String>, Failure> {
    let headers = includes.iter().map(|dir| dir.join("spdk/config.h"));
    let Some(header) = headers.into_iter().find(|file| file.is_file()) else {
        return Ok(None);
    };
    println!("cargo:rerun-if-changed={}", header.display());
    let text = std::fs::read_to_string(&header)
        .map_err(|error| format!("{}: {error}", header.display()))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("#define SPDK_CONFIG_ARCH "));
    Ok(line.map(|name| name.trim().trim_matches('"').to_owned()))
}

/// Features of a processor, as the compiler knows them; none if it does not know the processor.
fn features(includes: &[PathBuf], arch: &str) -> Result<Vec<&'static str>, Failure> {
    let mut command = compiler(includes).get_compiler().to_command();
    command.arg(format!("-march={arch}"));
    let output = command
        .args(["-dM", "-E", "-x", "c"])
        .arg(Path::new("/dev/null"))
        .output()
        .map_err(|error| format!("the C compiler cannot be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let defined: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("#define ")?.split(' ').next())
        .collect();
    let known = FEATURES.iter().filter(|(name, _)| defined.contains(name));
    Ok(known.map(|(_, feature)| *feature).collect())
}
