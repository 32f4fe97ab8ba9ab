//! Finds SPDK v26.01 through pkg-config, compiles the C shim against it, generates the bindings, and emits the link
//! instructions.
//!
//! `SPDK_PREFIX` is the prefix of an installed SPDK; without it pkg-config's own search path is used. `SPDK_SRC` is
//! the source tree, for a prefix without the bdev modules' headers (`make install` of SPDK leaves them out).

use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "build/allowlist.rs"]
mod allowlist;
#[path = "build/cpu.rs"]
mod cpu;
#[path = "build/link.rs"]
mod link;

const VERSION: &str = "SPDK v26.01";

/// Headers of bdev modules, as `<module>/<file>` under `module/bdev`.
const MODULE_HEADERS: [&str; 6] = [
    "aio/bdev_aio.h",
    "crypto/vbdev_crypto.h",
    "delay/vbdev_delay.h",
    "malloc/bdev_malloc.h",
    "null/bdev_null.h",
    "nvme/bdev_nvme.h",
];

const SHIMS: [&str; 12] = [
    "bdev.c",
    "bdev_errors.c",
    "cpu.c",
    "hosts.c",
    "keyring.c",
    "log.c",
    "nvme.c",
    "nvme_keys.c",
    "nvme_paths.c",
    "nvmf.c",
    "observe.c",
    "vhost.c",
];

type Failure = String;

fn main() {
    if let Err(failure) = build() {
        for line in failure.lines() {
            println!("cargo:warning={line}");
        }
        eprintln!("{failure}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), Failure> {
    for variable in ["SPDK_PREFIX", "SPDK_SRC", "PKG_CONFIG_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    for path in ["build.rs", "build", "shim", "wrapper.h"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let prefix = std::env::var_os("SPDK_PREFIX").map(PathBuf::from);
    let pkg_config = PkgConfig::new(prefix.as_deref())?;
    let mut includes = pkg_config.include_dirs()?;
    let version = version(&includes)?;
    includes.extend(module_headers(&includes)?);

    let defines = probe(&includes)?;
    let arch = cpu::generate(&includes)?;
    compile_shim(&includes, &defines)?;
    link::emit(&pkg_config.libraries()?)?;
    generate(&includes, &version, &arch)
}

/// Runs pkg-config with SPDK's prefix first in the search path.
struct PkgConfig {
    path: Option<std::ffi::OsString>,
}

impl PkgConfig {
    fn new(prefix: Option<&Path>) -> Result<Self, Failure> {
        let Some(prefix) = prefix else {
            return Ok(Self { path: None });
        };
        let own = prefix.join("lib/pkgconfig");
        if !own.join("spdk_event.pc").is_file() {
            return Err(format!(
                "SPDK_PREFIX={} holds no installed SPDK (no lib/pkgconfig/spdk_event.pc).\n{HINT}",
                prefix.display()
            ));
        }
        let inherited = std::env::var_os("PKG_CONFIG_PATH").unwrap_or_default();
        let path =
            std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&inherited)))
                .map_err(|error| format!("SPDK_PREFIX cannot be in a search path: {error}"))?;
        Ok(Self { path: Some(path) })
    }

    fn run(&self, arguments: &[&str]) -> Result<Vec<String>, Failure> {
        let mut command = Command::new("pkg-config");
        command.args(arguments);
        if let Some(path) = &self.path {
            command.env("PKG_CONFIG_PATH", path);
        }
        let output = command
            .output()
            .map_err(|error| format!("pkg-config cannot be run: {error}"))?;
        if !output.status.success() {
            return Err(format!(
                "{}\n{HINT}",
                String::from_utf8_lossy(&output.stderr).trim()
            ));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    fn include_dirs(&self) -> Result<Vec<PathBuf>, Failure> {
        // pkg-config drops directories that the compiler searches by default unless told to keep them.
        let flags = self.run(&["--cflags-only-I", "--keep-system-cflags", "spdk_event"])?;
        Ok(flags
            .iter()
            .filter_map(|flag| flag.strip_prefix("-I"))
            .map(PathBuf::from)
            .collect())
    }

    fn libraries(&self) -> Result<Vec<String>, Failure> {
        let mut arguments = vec!["--libs", "--static", "--keep-system-libs"];
        arguments.extend(link::PACKAGES);
        self.run(&arguments)
    }
}

const HINT: &str = "SPDK v26.01 is needed: run scripts/spdk.sh, which builds it and says where it is, \
                    or set SPDK_PREFIX to where it is installed.";

/// Returns SPDK's version string, which must start with [`VERSION`].
///
/// SPDK_VERSION_STRING is built from other macros, which bindgen does not evaluate; the preprocessor does.
fn version(includes: &[PathBuf]) -> Result<String, Failure> {
    let file = out_dir()?.join("version.c");
    let source = "#include <spdk/version.h>\nopi_version SPDK_VERSION_STRING\n";
    std::fs::write(&file, source).map_err(|error| format!("{}: {error}", file.display()))?;
    let output = compiler(includes)
        .get_compiler()
        .to_command()
        .args(["-E", "-P"])
        .arg(&file)
        .output()
        .map_err(|error| format!("the C compiler cannot be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((_, literals)) = text.split_once("opi_version") else {
        return Err(format!(
            "spdk/version.h is in none of {includes:?}.\n{HINT}"
        ));
    };
    let version: String = literals.split('"').skip(1).step_by(2).collect();
    if version.starts_with(VERSION) {
        Ok(version)
    } else {
        Err(format!(
            "the headers in {includes:?} are of {version}.\n{HINT}"
        ))
    }
}

/// Returns the directories that contain [`MODULE_HEADERS`].
fn module_headers(includes: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut roots: Vec<PathBuf> = includes
        .iter()
        .map(|dir| dir.join("spdk_module/bdev"))
        .collect();
    if let Some(source) = std::env::var_os("SPDK_SRC") {
        roots.push(Path::new(&source).join("module/bdev"));
    }
    let holds_all = |root: &&PathBuf| MODULE_HEADERS.iter().all(|file| root.join(file).is_file());
    let root = roots.iter().find(holds_all).ok_or_else(|| {
        format!(
            "SPDK's bdev module headers ({}) are in none of {roots:?}: `make install` of SPDK \
             leaves them out. Set SPDK_SRC to the source tree that this SPDK was built from.",
            MODULE_HEADERS.join(", ")
        )
    })?;
    Ok(MODULE_HEADERS
        .iter()
        .filter_map(|file| root.join(file).parent().map(Path::to_owned))
        .collect())
}

/// Probes for API differences between builds of 26.01; returns the defines that tell the shim.
fn probe(includes: &[PathBuf]) -> Result<Vec<&'static str>, Failure> {
    const PROBES: [(&str, &str); 2] = [
        (
            "OPI_QOS_TAKES_TIME_SLICE",
            "#include <spdk/bdev.h>\n\
             void f(struct spdk_bdev *b, uint64_t *l) { spdk_bdev_set_qos_rate_limits(b, l, 0, 0, 0); }\n",
        ),
        (
            "OPI_SOCK_HAS_SSL_TICKETS",
            "#include <spdk/sock.h>\n\
             void f(struct spdk_sock_impl_opts *o) { o->num_ssl_tickets = 0; }\n",
        ),
    ];
    let out = out_dir()?;
    let mut defines = Vec::new();
    for (define, source) in PROBES {
        let file = out.join(format!("{define}.c"));
        std::fs::write(&file, source).map_err(|error| format!("{}: {error}", file.display()))?;
        let mut command = compiler(includes).get_compiler().to_command();
        let output = command
            .arg("-fsyntax-only")
            .arg(&file)
            .output()
            .map_err(|error| format!("the C compiler cannot be run: {error}"))?;
        if output.status.success() {
            defines.push(define);
        }
    }
    Ok(defines)
}

fn compiler(includes: &[PathBuf]) -> cc::Build {
    let mut build = cc::Build::new();
    build.includes(includes).flag("-std=gnu11");
    build
}

fn compile_shim(includes: &[PathBuf], defines: &[&str]) -> Result<(), Failure> {
    let mut build = compiler(includes);
    for define in defines {
        build.define(define, None);
    }
    build
        .include("shim")
        .include(out_dir()?)
        .files(SHIMS.map(|file| Path::new("shim").join(file)))
        .flag("-Wno-unused-parameter")
        .flag("-Wno-missing-field-initializers")
        .flag("-Wno-sign-compare")
        .compile("opi_spdk_shim");
    Ok(())
}

fn generate(includes: &[PathBuf], version: &str, arch: &str) -> Result<(), Failure> {
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(includes.iter().map(|dir| format!("-I{}", dir.display())))
        .clang_arg("-Ishim")
        .generate_cstr(true)
        .derive_debug(false)
        .layout_tests(true)
        .generate_comments(false)
        .allowlist_recursively(true);
    for name in allowlist::FUNCTIONS {
        builder = builder.allowlist_function(name);
    }
    for name in allowlist::TYPES {
        builder = builder.allowlist_type(name);
    }
    for name in allowlist::CONSTANTS {
        builder = builder.allowlist_var(name);
    }
    let bindings = builder
        .generate()
        .map_err(|error| format!("bindgen: {error}"))?;
    let mut text = bindings.to_string();
    allowlist::check(&text)?;
    text += &format!("pub const SPDK_VERSION_STRING: &::std::ffi::CStr = c{version:?};\n");
    text += &format!("pub const SPDK_ARCH: &str = {arch:?};\n");
    let applied = applied_changes(includes)?;
    let missing: Vec<String> = changes()?
        .into_iter()
        .filter(|name| !applied.contains(name))
        .collect();
    text += &format!("pub const SPDK_CHANGES: &[&str] = &{applied:?};\n");
    text += &format!("pub const SPDK_CHANGES_MISSING: &[&str] = &{missing:?};\n");
    let file = out_dir()?.join("bindings.rs");
    std::fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))
}

/// Returns the names of the changes (`spdk/changes/`) that this SPDK was built with.
fn applied_changes(includes: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let header = includes
        .iter()
        .map(|dir| dir.join("opi/changes.h"))
        .find(|file| file.is_file());
    let Some(header) = header else {
        return Ok(Vec::new());
    };
    println!("cargo:rerun-if-changed={}", header.display());
    let text = std::fs::read_to_string(&header)
        .map_err(|error| format!("{}: {error}", header.display()))?;
    let names = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.split('\\').next());
    Ok(names.map(str::to_owned).collect())
}

/// Returns the names of all changes in `spdk/changes/`.
fn changes() -> Result<Vec<String>, Failure> {
    const DIR: &str = "../changes";
    println!("cargo:rerun-if-changed={DIR}");
    let entries = std::fs::read_dir(DIR).map_err(|error| format!("{DIR}: {error}"))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            Some(
                entry
                    .file_name()
                    .to_str()?
                    .strip_suffix(".change")?
                    .to_owned(),
            )
        })
        .collect();
    names.sort();
    Ok(names)
}

fn out_dir() -> Result<PathBuf, Failure> {
    std::env::var_os("OUT_DIR")
        .map(PathBuf::from)
        .ok_or_else(|| "cargo has set no OUT_DIR".to_owned())
}
