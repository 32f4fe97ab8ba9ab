//! Files shipped with the program match it: settings, systemd units, configurations.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_opi-spdk");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Returns all files under a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => vec![path],
        })
        .collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// An OPI_SPDK_ variable that is not a setting would make the program's start fail.
#[test]
fn every_variable_in_deploy_files_is_a_setting() {
    let mut all: Vec<PathBuf> = files(&root().join("deploy"));
    all.push(root().join("Dockerfile"));
    let mut found = BTreeSet::new();
    for file in all {
        let text = read(&file);
        for part in text.split("OPI_SPDK_").skip(1) {
            let name: String = part
                .chars()
                .take_while(|c| c.is_ascii_uppercase() || *c == '_')
                .collect();
            found.insert(name);
        }
    }
    // Variables of scripts and of dpkg.
    found.retain(|name| !["CACHE", "PURGE_STATE"].contains(&name.as_str()));
    assert!(found.len() > 8, "{found:?}");
    let help = Command::new(PROGRAM)
        .arg("--help")
        .output()
        .expect("the program starts");
    let help = String::from_utf8(help.stdout).expect("text");
    for name in found {
        let flag = format!("--{} ", name.to_lowercase().replace('_', "-"));
        assert!(help.contains(&flag), "OPI_SPDK_{name}: there is no {flag}");
    }
}

#[test]
fn shipped_configurations_are_valid() {
    for file in [
        "examples/lab.toml",
        "deploy/compose/lab.toml",
        "deploy/systemd/opi-spdk.toml",
        "deploy/kubernetes/base/opi-spdk.toml",
        "deploy/kubernetes/overlays/dpu/opi-spdk.toml",
    ] {
        let out = Command::new(PROGRAM)
            .args(["config", "check"])
            .arg(root().join(file))
            .output()
            .expect("the program starts");
        assert!(
            out.status.success(),
            "{file}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}

/// The images' version label is a line of their Dockerfiles, because the builds do not see Cargo.toml.
#[test]
fn images_name_the_version_of_the_program() {
    let line = concat!("\nARG VERSION=", env!("CARGO_PKG_VERSION"), "\n");
    for file in ["Dockerfile", "deploy/package.Dockerfile"] {
        assert!(read(&root().join(file)).contains(line), "{file}: no {line}");
    }
}

/// A change of a file or of its name is another tree, and only the tested tree is taken for a release.
#[test]
fn a_source_of_spdk_that_was_not_tested_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = |command: &str| {
        let script = format!("source scripts/common.sh; source scripts/spdk-source.sh; {command}");
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).current_dir(root());
        let out = bash
            .env("SPDK_SRC", dir.path())
            .output()
            .expect("bash starts");
        let said = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8(said).expect("text"))
    };
    let mut hashes = BTreeSet::new();
    for (file, text) in [("a", "1"), ("a", "2"), ("b", "2")] {
        std::fs::write(dir.path().join(file), text).expect("written");
        let (good, hash) = run("spdk_tree_hash \"$SPDK_SRC\"");
        assert!(good && hash.trim().len() == 64, "{hash}");
        hashes.insert(hash);
    }
    assert_eq!(hashes.len(), 3);
    let (good, said) = run("check_spdk_tree");
    assert!(
        !good && said.contains("is not the tree that was tested"),
        "{said}"
    );
}

/// What is built for other machines must not be for the processor of the build machine.
#[test]
fn images_and_packages_are_built_for_a_common_processor() {
    let arch = |variables: &[(&str, &str)]| {
        let mut command = Command::new("bash");
        command.arg(root().join("scripts/release-arch.sh"));
        command.env_remove("SPDK_ARCH").env_remove("SPDK_CROSS");
        let out = command.envs(variables.iter().copied()).output();
        String::from_utf8(out.expect("bash starts").stdout).expect("text")
    };
    let default = match cfg!(target_arch = "x86_64") {
        true => "x86-64-v3\n",
        false => "armv8.2-a+crypto\n",
    };
    assert_eq!(arch(&[]), default);
    assert_eq!(arch(&[("SPDK_ARCH", "znver3")]), "znver3\n");
    let cross = arch(&[("SPDK_CROSS", "aarch64-linux-gnu")]);
    assert_eq!(cross, "armv8.2-a+crypto\n");
    for file in ["Dockerfile", "scripts/package.sh"] {
        assert!(
            read(&root().join(file)).contains("release-arch.sh"),
            "{file}"
        );
    }
}

/// A test that hangs fails the run with the name of its step, before the run itself is ended from outside.
#[test]
fn a_step_of_a_script_is_ended_at_the_deadline_of_the_run() {
    for command in ["stage", "step"] {
        let script = format!("source scripts/common.sh; {command} hangs sleep 60");
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).current_dir(root());
        let began = std::time::Instant::now();
        let out = bash.env("DEADLINE", "1").output().expect("bash starts");
        assert!(!out.status.success());
        let told = String::from_utf8(out.stderr).expect("text");
        assert!(
            told.contains("'hangs' still runs at the deadline"),
            "{told}"
        );
        assert!(began.elapsed().as_secs() < 30, "{told}");
    }
    let ci = read(&root().join(".ci/run"));
    assert!(ci.contains("export DEADLINE="), "{ci}");
}

/// An image is built from files as they are in the repository, modes included.
#[test]
fn what_the_dockerfile_and_the_manual_run_may_be_executed() {
    let mut found = BTreeSet::new();
    for file in ["Dockerfile", "README.md", "docs/operations.md"] {
        let text = read(&root().join(file));
        let is_command = |line: &&str| file == "Dockerfile" || line.starts_with("scripts/");
        let commands = text.lines().filter(|line| !line.starts_with('#'));
        let parts = commands
            .filter(is_command)
            .flat_map(|line| line.split([' ', '(', ')']));
        let is_named = |part: &&str| part.starts_with("scripts/") && part.ends_with(".sh");
        found.extend(parts.filter(is_named).map(str::to_owned));
    }
    assert!(found.len() > 5, "{found:?}");
    let is_refused = |script: &&String| {
        let metadata = std::fs::metadata(root().join(script)).expect("it is there");
        metadata.permissions().mode() & 0o111 != 0o111
    };
    let refused: Vec<_> = found.iter().filter(is_refused).collect();
    assert!(refused.is_empty(), "may not be executed: {refused:?}");
}

/// Images and packages have one build, and an SPDK that is optimized at link time is another one in the cache.
#[test]
fn images_and_packages_share_a_build_and_an_optimized_spdk_is_another() {
    for file in ["Dockerfile", "scripts/package.sh"] {
        assert!(
            read(&root().join(file)).contains("build-release.sh"),
            "{file}"
        );
    }
    let build_dir = |optimize: &str| {
        let script = "source scripts/common.sh; source scripts/spdk-cache.sh; spdk_build_dir";
        let mut bash = Command::new("bash");
        bash.args(["-c", script]).current_dir(root());
        bash.env_remove("SPDK_SRC").env("SPDK_OPTIMIZE", optimize);
        let out = bash.output().expect("bash starts");
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).expect("text")
    };
    assert_eq!(build_dir(""), build_dir("none"));
    assert_ne!(build_dir(""), build_dir("lto"));
}

/// What other scripts would link with it fails, or is not optimized.
#[test]
fn an_optimized_spdk_is_refused_where_it_would_not_be_one() {
    let refused = |script: &str, argument: &str, prefix: Option<&Path>| {
        let mut bash = Command::new("bash");
        bash.args([script, argument]).current_dir(root());
        bash.env("SPDK_OPTIMIZE", "lto").env_remove("SPDK_PREFIX");
        bash.envs(prefix.map(|prefix| ("SPDK_PREFIX", prefix)));
        let out = bash.output().expect("bash starts");
        assert!(!out.status.success(), "{script}: {out:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let told = refused("scripts/setup.sh", "--tools", None);
    assert!(
        told.contains("SPDK_OPTIMIZE=lto is for scripts/build-release.sh alone"),
        "{told}"
    );
    // An installed SPDK, as far as the script looks.
    let prefix = tempfile::tempdir().expect("a directory");
    let [header, pc] = ["include/spdk/version.h", "lib/pkgconfig/spdk_event.pc"];
    for (file, text) in [
        (
            header,
            "#define SPDK_VERSION_MAJOR 26\n#define SPDK_VERSION_MINOR 01\n",
        ),
        (pc, ""),
    ] {
        let file = prefix.path().join(file);
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("made");
        std::fs::write(file, text).expect("written");
    }
    let told = refused("scripts/spdk.sh", "", Some(prefix.path()));
    assert!(
        told.contains("SPDK_OPTIMIZE=lto has no effect on SPDK_PREFIX="),
        "{told}"
    );
}

/// The smallest container is started by the same command in the manual, which a container test runs, and in the Dockerfile.
#[test]
fn the_manual_and_the_dockerfile_start_the_image_alike() {
    let command = |file: &str| {
        let text = read(&root().join(file));
        let (_, rest) = text
            .split_once("docker run -d --name opi-spdk ")
            .unwrap_or_else(|| panic!("{file}: no docker run"));
        let mut words = Vec::new();
        for line in rest.lines() {
            let continued = line.strip_suffix('\\');
            let line = continued.unwrap_or(line).trim_start_matches('#');
            words.extend(line.split_whitespace().map(str::to_owned));
            if continued.is_none() {
                break;
            }
        }
        words
    };
    let of_manual = command("docs/operations.md");
    assert_eq!(of_manual.last().map(String::as_str), Some("--no-huge"));
    assert_eq!(of_manual, command("Dockerfile"));
}

#[test]
fn the_manual_installs_the_version_of_cargo_deb_that_the_tests_use() {
    let script = read(&root().join("scripts/deploy.sh"));
    let version = script
        .lines()
        .find_map(|line| line.strip_prefix("CARGO_DEB="));
    let install = format!(
        "`cargo install --locked cargo-deb --version {}`",
        version.expect("a version")
    );
    assert!(
        read(&root().join("docs/operations.md")).contains(&install),
        "{install}"
    );
}

/// Checked by `systemd-analyze verify`, and by its exposure score (10 is a plain unit of root).
#[test]
fn systemd_units_are_valid_and_hardened() {
    let dir = tempfile::tempdir().expect("a directory");
    let units = ["opi-spdk.service", "opi-spdk-setup.service"].map(|name| {
        let text = read(&root().join("deploy/systemd").join(name));
        // Tests run without an installed program.
        let text = text.replace("/usr/bin/opi-spdk", PROGRAM);
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    });
    // With the drop-ins that the package ships as examples.
    let drop_ins = dir.path().join("opi-spdk.service.d");
    std::fs::create_dir(&drop_ins).expect("a directory");
    for name in ["tls.conf", "state-key.conf", "uio.conf"] {
        let from = root().join("deploy/systemd").join(name);
        std::fs::copy(from, drop_ins.join(name)).expect("copied");
    }
    let analyze = |args: &[&str], units: &[PathBuf]| {
        let mut command = Command::new("systemd-analyze");
        let out = command.args(args).args(units).output();
        let out = out.expect("systemd-analyze, of Debian's package systemd, is installed");
        let said = [out.stdout, out.stderr].concat();
        (
            out.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let (good, said) = analyze(&["verify", "--man=no"], &units);
    assert!(good && !said.contains("opi-spdk"), "{said}");
    // Its wider privileges do not count.
    std::fs::remove_file(drop_ins.join("uio.conf")).expect("removed");
    let (good, said) = analyze(
        &["security", "--offline=true", "--threshold=35"],
        &units[..1],
    );
    assert!(good, "{said}");
}

/// `opi-spdk generate` generates the package's manual pages and completions.
#[test]
fn manual_pages_and_completions_are_generated() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = Command::new(PROGRAM)
        .arg("generate")
        .arg(dir.path())
        .output();
    let out = out.expect("the program starts");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    for (file, content) in [
        ("opi-spdk.1", "mem\\-mib"),
        ("opi-spdk-doctor.1", "fixes"),
        ("opi-spdk-setup.1", "hugepages"),
        ("opi-spdk.bash", "doctor"),
        ("_opi-spdk", "doctor"),
        ("opi-spdk.fish", "doctor"),
    ] {
        let text = read(&dir.path().join(file));
        assert!(text.contains(content), "{file} has no {content:?}");
    }
}

/// Which of the changes of spdk/changes/ the linked SPDK has; without one the program says so at start.
#[test]
fn the_version_lists_the_changes_to_spdk() {
    let out = Command::new(PROGRAM).arg("--version").output();
    let said = String::from_utf8(out.expect("the program starts").stdout).expect("text");
    let mut listed: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .collect();
    listed.sort_unstable();
    let files = std::fs::read_dir(root().join("spdk/changes")).expect("a directory");
    let names = files.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        Some(name.strip_suffix(".change")?.to_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    assert_eq!(listed, names, "{said}");
    let count = format!("with {} changes", names.len());
    assert!(
        said.contains(&count) && !said.contains(", without "),
        "{said}"
    );
}
