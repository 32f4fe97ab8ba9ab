//! The program's subcommands that need no running server.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn program(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opi-spdk"));
    command.args(args).envs(variables.iter().copied());
    command.output().expect("the program starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// Constructors of SPDK and DPDK, which run before `main`, have instructions of the processor that SPDK was built for.
#[test]
fn a_processor_that_lacks_a_feature_is_told_before_any_code_for_it_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("cpuinfo");
    std::fs::write(&file, "processor : 0\nflags : fpu sse2 ssse3\n").expect("written");
    let script = format!(
        "mount --bind {} /proc/cpuinfo && exec {} --version",
        file.display(),
        env!("CARGO_BIN_EXE_opi-spdk")
    );
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "sh", "-c", &script]);
    let out = unshare.output().expect("unshare, of util-linux");
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("opi-spdk: this processor lacks pni"),
        "{said}"
    );
    assert!(said.contains("sse4_2") && !said.contains("ssse3"), "{said}");
    assert!(
        said.contains("SPDK_ARCH") && said.lines().count() == 1,
        "{said}"
    );
    assert!(program(&["--version"], &[]).status.success());
}

#[test]
fn the_doctor_checks_the_machine_without_spdk() {
    // The report is complete whatever the machine lacks, and the exit status matches it.
    let out = program(&["doctor", "-o", "json", "--no-huge"], &[]);
    let answer: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(out.status.success(), answer["ok"] == true, "{answer}");
    let findings = answer["findings"].as_array().expect("findings");
    let checks: Vec<_> = findings
        .iter()
        .filter_map(|one| one["check"].as_str())
        .collect();
    for check in [
        "hugepages",
        "cgroup",
        "open files",
        "aio",
        "IOMMU",
        "state-dir",
        "ports",
        "versions",
        "kernel",
    ] {
        assert!(checks.contains(&check), "{check}: {checks:?}");
    }
    for finding in findings.iter().filter(|one| one["level"] != "ok") {
        assert!(
            finding["why"].is_string() && finding["fix"].is_string(),
            "{finding}"
        );
    }
}

#[test]
fn the_doctor_names_the_process_on_a_port_and_exits_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let out = program(&["doctor", "--grpc-addr", &address], &[]);
    let found = text(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{found}");
    let expected = format!("(process {}) listens on {address}", std::process::id());
    assert!(found.contains(&expected), "{found}");
    assert!(found.contains("fix: stop it"), "{found}");
}

#[test]
fn the_doctor_names_what_is_in_the_way_of_a_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let [taken, file, free] = ["taken", "file", "free"].map(|name| dir.path().join(name));
    let _listener = std::os::unix::net::UnixListener::bind(&taken).expect("a socket");
    std::fs::write(&file, "").expect("written");
    let found = |path: &Path| {
        let path = path.to_str().expect("text");
        let out = program(&["doctor", "--listen-uds", path], &[]);
        text(&out.stdout).to_owned()
    };
    let in_use = found(&taken);
    assert!(in_use.contains("another program listens there"), "{in_use}");
    assert!(in_use.contains("with --listen-uds"), "{in_use}");
    assert!(found(&file).contains("is not a socket"));
    let free = found(&free);
    assert!(
        free.contains("sockets") && free.contains("free is free"),
        "{free}"
    );
}

#[test]
fn a_configuration_is_checked_without_starting_anything() {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/lab.toml");
    let out = program(&["config", "check", lab.to_str().expect("text")], &[]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("good; cores 0, 1024 MiB of hugepages, 3 volumes"));

    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("bad.toml");
    for (content, reason) in [
        (
            "cores = \"0\"\nmem-mb = 3\n",
            "line 2: unknown field `mem-mb`",
        ),
        ("max-calls = 3", "max-calls: 3 is not a power of two"),
        (
            "tls = \"/none/a:/none/b:/none/c\"",
            "certificate file /none/a: No such file",
        ),
        (
            "access-file = \"/none/access\"",
            "access-file /none/access: No such file",
        ),
    ] {
        std::fs::write(&file, content).expect("written");
        let out = program(&["config", "check", file.to_str().expect("text")], &[]);
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1));
        assert!(
            error.contains(reason) && error.lines().count() == 1,
            "{error}"
        );
    }
}

/// As in a cpuset that has shrunk: a start would fail, a reload takes over what else has changed, and the server stays healthy.
#[test]
fn cores_that_the_cpuset_lacks_are_refused_for_a_start_and_not_for_a_reload() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("a.toml");
    std::fs::write(&file, "cores = \"last:1000\"\n").expect("written");
    let file = file.to_str().expect("text");
    let out = program(&["config", "check", file], &[]);
    let error = text(&out.stderr);
    assert!(
        !out.status.success() && error.contains("cores: \"last:1000\" is not a number"),
        "{error}"
    );
    let out = program(&["config", "check", "--reload", file], &[]);
    let told = text(&out.stdout);
    assert!(
        out.status.success() && told.contains("the next start would fail"),
        "{told}{}",
        text(&out.stderr)
    );
    let health = ["health", "--config", file, "--grpc-addr", "127.0.0.1:1"];
    let out = program(&health, &[]);
    let error = text(&out.stderr);
    assert!(error.contains("refused"), "{error}");
}

/// Every path of the file, and every entry below the directory with its mode and size.
fn listing(dir: &Path) -> Vec<(std::path::PathBuf, u32, u64)> {
    let mut entries: Vec<_> = dir
        .read_dir()
        .expect("a directory")
        .map(|entry| {
            let entry = entry.expect("an entry");
            let metadata = entry.metadata().expect("it is there");
            (entry.path(), metadata.mode(), metadata.len())
        })
        .collect();
    entries.sort();
    entries
}

#[test]
fn what_the_settings_of_a_configuration_name_is_checked_and_left_as_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let write = |name: &str, content: &[u8], mode| {
        std::fs::write(at(name), content).expect("written");
        std::fs::set_permissions(at(name), Permissions::from_mode(mode)).expect("ours");
    };
    write("open", &[7; 32], 0o640);
    write("short", &[7; 31], 0o600);
    write("key", &[7; 32], 0o600);
    write("state-key", &[7; 9], 0o600);
    write("odd-disk", &[0; 700], 0o600);
    write("disk", &[0; 4096], 0o600);
    let listener = std::os::unix::net::UnixListener::bind(at("used")).expect("a socket");
    let check = |content: &str| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), content).expect("written");
        let before = listing(dir.path());
        let out = program(
            &["config", "check", file.path().to_str().expect("text")],
            &[],
        );
        assert_eq!(listing(dir.path()), before, "{content}");
        (out.status.code(), text(&out.stderr).to_owned())
    };
    let one = |setting: &str, name: &str| format!("{setting} = \"{}\"\n", at(name));
    let audit = |name: &str| one("audit-log", "log") + &one("audit-key-file", name);
    let aio = |name: &str| {
        "[[volume]]\nkind = \"aio\"\nname = \"Aio0\"\n".to_owned() + &one("filename", name)
    };
    for (content, reason) in [
        (
            one("state-key-file", "none"),
            format!("state-key-file {}: No such file", at("none")),
        ),
        (
            one("state-key-file", "open"),
            format!(
                "state-key-file {}: others than its owner may use it (mode 0640): chmod 0600",
                at("open")
            ),
        ),
        (
            one("state-key-file", "short"),
            format!(
                "state-key-file {}: has 31 bytes that are no key: 32 bytes",
                at("short")
            ),
        ),
        (
            one("state-dir", "."),
            format!(
                "state-dir {}: has 9 bytes that are no key",
                at("./state-key")
            ),
        ),
        (
            one("state-dir", "key/state"),
            format!("state-dir {}: Not a directory", at("key/state")),
        ),
        (
            one("ctrlr-dir", "key"),
            format!("ctrlr-dir {0}: {0} is not a directory", at("key")),
        ),
        (
            one("audit-log", "none/log"),
            format!(
                "audit-log {}: there is no directory {}",
                at("none/log"),
                at("none")
            ),
        ),
        (
            audit("short"),
            format!("audit-key-file {}: has 31 bytes", at("short")),
        ),
        (
            one("listen-uds", "none/api"),
            format!("listen-uds {}: there is no directory", at("none/api")),
        ),
        (
            one("listen-uds", "key"),
            format!(
                "listen-uds {}: it is there already, and is not a socket",
                at("key")
            ),
        ),
        (
            one("spdk-rpc-socket", "key"),
            format!("spdk-rpc-socket {}: it is there already", at("key")),
        ),
        (
            aio("none"),
            format!("volume \"Aio0\": filename: {:?}: No such file", at("none")),
        ),
        (
            aio("odd-disk"),
            "its 700 bytes are no multiple of blocks of 512".to_owned(),
        ),
    ] {
        let (code, error) = check(&content);
        assert_eq!(code, Some(1), "{content}");
        assert!(error.contains(&reason), "{content} gave: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    // A reload does not read what has been lost since the start.
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("text");
    std::fs::write(path, one("state-key-file", "none") + &aio("none")).expect("written");
    assert!(
        program(&["config", "check", "--reload", path], &[])
            .status
            .success()
    );
    std::fs::write(path, "tls = \"/none/a:/none/b:/none/c\"").expect("written");
    let out = program(&["config", "check", "--reload", path], &[]);
    assert!(text(&out.stderr).contains("/none/a"), "{:?}", out);
    // Each fault has its line.
    let (_, error) = check(&(one("state-key-file", "short") + &one("audit-log", "none/log")));
    assert_eq!(error.lines().count(), 2, "{error}");
    assert!(
        error.lines().all(|line| line.starts_with("opi-spdk: ")),
        "{error}"
    );
    // The program that runs may listen on its socket, and has created its directories.
    let good = [
        one("state-key-file", "key"),
        one("state-dir", "new/state"),
        one("ctrlr-dir", "new/sockets"),
        one("spdk-rpc-socket", "new/sockets/rpc"),
        one("listen-uds", "used"),
        audit("key"),
        aio("disk"),
    ];
    assert_eq!(check(&good.concat()), (Some(0), String::new()));
    drop(listener);
}

#[test]
fn files_with_secrets_belong_to_root_or_this_user_and_are_for_the_owner_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let write = |name: &str, content: &str, mode| {
        std::fs::write(at(name), content).expect("written");
        std::fs::set_permissions(at(name), Permissions::from_mode(mode)).expect("ours");
    };
    for name in ["crt", "token", "password", "state"] {
        write(name, &"0123456789abcdef".repeat(4), 0o600);
    }
    let token = format!(
        "[[grant]]\nrole = \"admin\"\ntoken-file = {:?}\n",
        at("token")
    );
    write("access", &token, 0o644);
    let tls = |key: &str| format!("tls = \"{}:{}:{}\"\n", at("crt"), at(key), at("crt"));
    let check = |content: &str| {
        write("settings", content, 0o644);
        let out = program(&["config", "check", &at("settings")], &[]);
        (out.status.success(), text(&out.stderr).to_owned())
    };
    for mode in [0o640, 0o620, 0o604, 0o610] {
        write("key", "", mode);
        let (_, error) = check(&tls("key"));
        let why = format!(
            "key file {}: users other than its owner have access",
            at("key")
        );
        assert!(
            error.contains(&why) && error.contains(&format!("(mode {mode:04o}, group")),
            "{error}"
        );
        assert!(error.contains("chmod 600"), "{error}");
    }
    write("key", "", 0o600);
    let (_, error) = check(&tls("key"));
    assert!(
        error.contains(&at("crt")) && !error.contains("chmod"),
        "{error}"
    );
    let settings = [
        (tls("key"), "key"),
        (format!("access-file = {:?}\n", at("access")), "token"),
        (format!("access-file = {:?}\n", at("access")), "access"),
        (format!("state-key-file = {:?}\n", at("state")), "state"),
        (
            format!(
                "spdk-rpc-socket = {:?}\nspdk-rpc-http = \"127.0.0.1:9009\"\nspdk-rpc-user = \"a:{}\"\n",
                at("rpc"),
                at("password")
            ),
            "password",
        ),
    ];
    for (content, name) in &settings {
        let (good, error) = check(content);
        assert!(good || *name == "key", "{error}");
        // Only root may give a file away.
        if std::os::unix::fs::chown(at(name), Some(65_534), None).is_err() {
            continue;
        }
        let (good, error) = check(content);
        let whose = format!("{}: it belongs to uid 65534", at(name));
        assert!(!good && error.contains(&whose), "{content}: {error}");
        assert!(error.contains("give it to root (chown 0)"), "{error}");
        std::os::unix::fs::chown(at(name), Some(0), None).expect("as before");
    }
}

#[test]
fn the_doctor_names_files_of_settings_that_the_start_would_refuse() {
    let key = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(key.path(), [7; 31]).expect("written");
    let key = key.path().to_str().expect("text");
    let out = program(&["doctor", "--state-key-file", key], &[]);
    let found = text(&out.stdout);
    let line = format!("error    files        state-key-file {key}: has 31 bytes");
    assert!(found.contains(&line), "{found}");
    assert_eq!(out.status.code(), Some(1));
}

/// The start creates the directory that the socket is in.
#[test]
fn the_doctor_takes_no_offence_at_a_socket_in_a_directory_that_is_made_at_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = dir.path().join("run");
    let socket = made.join("api");
    let [made, socket] = [&made, &socket].map(|path| path.to_str().expect("text"));
    let found = |flags: &[&str]| {
        let out = program(&[&["doctor", "--listen-uds", socket], flags].concat(), &[]);
        text(&out.stdout).to_owned()
    };
    let said = found(&["--ctrlr-dir", made]);
    assert!(said.contains(&format!("{socket} is free")), "{said}");
    let said = found(&[]);
    assert!(said.contains("there is no directory"), "{said}");
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("a.toml");
    std::fs::write(
        &file,
        "grpc-addr = \"127.0.0.1:1\"\nhttp-addr = \"127.0.0.1:2\"\n",
    )
    .expect("written");
    let file = file.to_str().expect("text");
    let variables = [
        ("OPI_SPDK_GRPC_ADDR", "127.0.0.1:3"),
        ("OPI_SPDK_CONFIG", file),
        // Compose files set unset variables to an empty string.
        ("OPI_SPDK_TLS", ""),
    ];
    let of = |args: &[&str]| {
        let out = program(args, &variables);
        text(&out.stdout).to_owned()
    };
    let found = of(&["doctor"]);
    assert!(found.contains("grpc-addr 127.0.0.1:3 "), "{found}");
    assert!(found.contains("http-addr 127.0.0.1:2 "), "{found}");
    let found = of(&["doctor", "--grpc-addr", "127.0.0.1:4"]);
    assert!(found.contains("grpc-addr 127.0.0.1:4 "), "{found}");
}

#[test]
fn an_unknown_settings_variable_fails_the_start() {
    let out = program(&[], &[("OPI_SPDK_CORE", "1")]);
    let error = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        error.contains("OPI_SPDK_CORE: there is no such setting"),
        "{error}"
    );
}

#[test]
fn each_subcommand_of_the_help_has_a_manual_page_and_is_completed_in_each_shell() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().display().to_string();
    let made = program(&["generate", &path], &[]);
    assert!(made.status.success(), "{made:?}");
    let read = |name: &str| {
        let text = std::fs::read_to_string(dir.path().join(name));
        text.unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let help = String::from_utf8(program(&["--help"], &[]).stdout).expect("UTF-8");
    let commands = help.split_once("Commands:").expect("commands").1;
    let commands: Vec<&str> = commands
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(
        commands.len() > 10 && commands.contains(&"top"),
        "{commands:?}"
    );
    let shells = ["opi-spdk.bash", "_opi-spdk", "opi-spdk.fish"].map(read);
    for command in commands {
        let page = read(&format!("opi-spdk-{command}.1"));
        assert!(page.contains(".SH SYNOPSIS"), "{command}: {page}");
        for shell in &shells {
            assert!(shell.contains(command), "{command} is not completed");
        }
    }
}
