//! The program's subcommands that need no running server.

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
