//! Machine part of the bundle: kernel, memory, hugepages, and the opi-spdk servers running here with their threads.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::Bundle;

/// Bytes read from one file at most.
const MAX_BYTES: usize = 1 << 20;

/// Settings with one of these parts in their name have their values redacted.
const SECRET: [&str; 5] = ["key", "password", "psk", "secret", "token"];

/// Files that describe the system.
const FILES: [(&str, &str); 8] = [
    ("kernel.txt", "/proc/version"),
    ("kernel-command-line.txt", "/proc/cmdline"),
    ("memory.txt", "/proc/meminfo"),
    ("mounts.txt", "/proc/mounts"),
    ("load.txt", "/proc/loadavg"),
    ("modules.txt", "/proc/modules"),
    ("system.txt", "/etc/os-release"),
    ("interrupts.txt", "/proc/interrupts"),
];

/// Files under `/proc/PID` that are collected for each server.
const OF_PROCESS: [&str; 4] = ["status", "limits", "cgroup", "schedstat"];

/// Adds the machine's files to the bundle.
pub(super) fn collect(bundle: &mut Bundle) {
    for (name, file) in FILES {
        match read(Path::new(file)) {
            Ok(content) => bundle.add(&format!("machine/{name}"), &content),
            Err(error) => bundle.problem(file, &error),
        }
    }
    let pools = pools(Path::new("/sys/kernel/mm/hugepages"));
    bundle.add("machine/hugepages.txt", pools.as_bytes());
    for (process, arguments) in servers(Path::new("/proc"), bundle) {
        let place = place(&process);
        let settings = settings(&process, &arguments, bundle);
        bundle.add(&format!("{place}/settings.txt"), settings.as_bytes());
        bundle.add(
            &format!("{place}/threads.txt"),
            threads(&process).as_bytes(),
        );
        for file in OF_PROCESS {
            match read(&process.join(file)) {
                Ok(content) => bundle.add(&format!("{place}/{file}.txt"), &content),
                Err(error) => bundle.problem(&format!("{place} {file}"), &error),
            }
        }
    }
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut content = fs::read(file)?;
    content.truncate(MAX_BYTES);
    Ok(content)
}

fn text(file: &Path) -> String {
    let content = read(file).unwrap_or_default();
    String::from_utf8_lossy(&content).trim().to_owned()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    found.sort();
    found
}

/// Lists the hugepage counters of each page size.
fn pools(directory: &Path) -> String {
    let mut report = String::new();
    for pool in entries(directory) {
        let name = pool
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for file in [
            "nr_hugepages",
            "free_hugepages",
            "resv_hugepages",
            "surplus_hugepages",
        ] {
            // Writing to a String does not fail.
            let _ = writeln!(report, "{name} {file} {}", text(&pool.join(file)));
        }
    }
    report
}

/// Directory of a process in the bundle.
fn place(process: &Path) -> String {
    let number = process.file_name().unwrap_or_default().to_string_lossy();
    format!("process-{number}")
}

/// Finds processes of this program that serve, with their arguments. Processes with a subcommand are skipped: their
/// arguments may be keys.
fn servers(processes: &Path, bundle: &mut Bundle) -> Vec<(PathBuf, Vec<String>)> {
    let mut found = Vec::new();
    for process in entries(processes) {
        let is_process = process
            .file_name()
            .is_some_and(|name| name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
        if !is_process || text(&process.join("comm")) != "opi-spdk" {
            continue;
        }
        match arguments(&process) {
            Ok(arguments) if is_server(&arguments) => found.push((process, arguments)),
            Ok(_) => {}
            Err(error) => bundle.problem(&format!("{} cmdline", place(&process)), &error),
        }
    }
    found
}

fn arguments(process: &Path) -> std::io::Result<Vec<String>> {
    let line = read(&process.join("cmdline"))?;
    let parts = line.split(|byte| *byte == 0);
    let mut parts: Vec<String> = parts
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect();
    parts.pop();
    Ok(parts)
}

/// Whether the arguments are a server's: a server takes flags only, a client starts with a subcommand.
fn is_server(arguments: &[String]) -> bool {
    match arguments.get(1) {
        None => !arguments.is_empty(),
        Some(first) => first.starts_with('-'),
    }
}

/// The settings a process was started with: flags, environment variables and its configuration file.
fn settings(process: &Path, arguments: &[String], bundle: &mut Bundle) -> String {
    let mut report = String::from("# flags\n");
    let mut name = String::new();
    let mut file = None;
    for argument in arguments.iter().skip(1) {
        let (flag, value) = match (argument.strip_prefix("--"), argument.split_once('=')) {
            (Some(_), Some((flag, value))) => (flag.to_owned(), Some(value.to_owned())),
            (Some(_), None) => (argument.clone(), None),
            (None, _) => (std::mem::take(&mut name), Some(argument.clone())),
        };
        if flag == "--config" {
            file = value.clone();
        }
        match value {
            Some(value) => {
                let _ = writeln!(report, "{flag} {}", guarded(&flag, &value));
            }
            None => {
                let _ = writeln!(report, "{flag}");
                name = flag;
            }
        }
    }
    report.push_str("# variables\n");
    let environment = read(&process.join("environ")).unwrap_or_else(|error| {
        bundle.problem(&format!("{} environ", place(process)), &error);
        Vec::new()
    });
    for variable in environment.split(|byte| *byte == 0) {
        let variable = String::from_utf8_lossy(variable);
        if let Some((name, value)) = variable.split_once('=')
            && name.starts_with("OPI_SPDK_")
        {
            if name == "OPI_SPDK_CONFIG" {
                file = file.or_else(|| Some(value.to_owned()));
            }
            let _ = writeln!(report, "{name}={}", guarded(name, value));
        }
    }
    if let Some(file) = file {
        // Resolved through the process's root and working directory: a container has its own.
        let base = if file.starts_with('/') { "root" } else { "cwd" };
        let path = process.join(base).join(file.trim_start_matches('/'));
        match read(&path) {
            Ok(content) => {
                let content = String::from_utf8_lossy(&content);
                let _ = writeln!(report, "# {file}\n{}", without_secrets(content.trim()));
            }
            Err(error) => bundle.problem(&format!("{} {file}", place(process)), &error),
        }
    }
    report
}

/// The value of a setting, redacted if it is a secret. Settings that name files keep their value (a path).
fn guarded<'a>(name: &str, value: &'a str) -> &'a str {
    let name = name.to_lowercase();
    let is_file = name.ends_with("file") || name.ends_with("dir");
    match SECRET.iter().any(|part| name.contains(part)) && !is_file {
        true => "(left out)",
        false => value,
    }
}

fn without_secrets(settings: &str) -> String {
    let lines = settings.lines().map(|line| match line.split_once('=') {
        Some((name, value)) => format!("{name}={}", guarded(name.trim(), value)),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Lists the threads by name, with state, processor, CPU time and the kernel function they wait in.
fn threads(process: &Path) -> String {
    let mut report = String::new();
    for task in entries(&process.join("task")) {
        let id = task
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let stat = text(&task.join("stat"));
        // The name in parentheses may contain blanks. After it the state is field 1, user and system time are fields
        // 12 and 13, the processor is field 37.
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        let fields: Vec<&str> = after.split_whitespace().collect();
        let field = |at: usize| fields.get(at).copied().unwrap_or("-");
        let _ = writeln!(
            report,
            "{id} {} state {} user {} system {} processor {} waits in {}",
            text(&task.join("comm")),
            field(0),
            field(11),
            field(12),
            field(36),
            text(&task.join("wchan")),
        );
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(dir: &Path, id: &str, arguments: &[&str]) -> PathBuf {
        let process = dir.join(id);
        fs::create_dir_all(process.join("task/7")).unwrap();
        fs::write(process.join("comm"), "opi-spdk\n").unwrap();
        fs::write(process.join("cmdline"), arguments.join("\0") + "\0").unwrap();
        fs::write(process.join("task/7/comm"), "reactor_0\n").unwrap();
        fs::write(process.join("task/7/stat"), "7 (a b) R 1 2").unwrap();
        process
    }

    #[test]
    fn servers_alone_are_told_of_since_the_arguments_of_clients_may_be_keys() {
        let dir = tempfile::tempdir().unwrap();
        process(dir.path(), "10", &["opi-spdk", "--cores", "0"]);
        process(dir.path(), "11", &["opi-spdk", "create", "x", "key=HUSH"]);
        let found = servers(dir.path(), &mut Bundle::new());
        assert_eq!(found.len(), 1);
        let (server, arguments) = &found[0];
        assert_eq!(*server, dir.path().join("10"));
        assert_eq!(*arguments, ["opi-spdk", "--cores", "0"]);
        let report = threads(server);
        assert!(report.starts_with("7 reactor_0 state R"), "{report}");
    }

    #[test]
    fn settings_are_told_without_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let arguments = [
            "opi-spdk",
            "--cores=0",
            "--state-key-file",
            "/etc/k",
            "--api-token",
            "HUSH",
            "--no-huge",
        ];
        let process = process(dir.path(), "10", &arguments);
        fs::create_dir_all(process.join("root")).unwrap();
        fs::write(
            process.join("root/c.toml"),
            "cores = \"1\"\npassword = \"HUSH\"\n",
        )
        .unwrap();
        let variables = "OPI_SPDK_CONFIG=/c.toml\0OPI_SPDK_PSK=HUSH\0HOME=HUSH\0";
        fs::write(process.join("environ"), variables).unwrap();
        let mut bundle = Bundle::new();
        let report = settings(&process, &arguments.map(str::to_owned), &mut bundle);
        assert_eq!(bundle.problems, "");
        assert!(!report.contains("HUSH"), "{report}");
        for line in [
            "--cores 0",
            "--state-key-file /etc/k",
            "--no-huge",
            "cores = \"1\"",
            "OPI_SPDK_CONFIG=/c.toml",
        ] {
            assert!(report.contains(line), "{line}:\n{report}");
        }
    }

    #[test]
    fn settings_that_cannot_be_read_are_problems() {
        let dir = tempfile::tempdir().unwrap();
        process(dir.path(), "10", &["opi-spdk", "--config", "/none.toml"]);
        fs::remove_file(process(dir.path(), "11", &["opi-spdk"]).join("cmdline")).unwrap();
        let mut bundle = Bundle::new();
        let found = servers(dir.path(), &mut bundle);
        let (server, arguments) = &found[0];
        settings(server, arguments, &mut bundle);
        let problems: Vec<_> = bundle.problems.lines().collect();
        assert_eq!(problems.len(), 3, "{problems:?}");
        for what in [
            "process-11 cmdline: ",
            "process-10 environ: ",
            "process-10 /none.toml: ",
        ] {
            let is_told = problems.iter().any(|problem| problem.starts_with(what));
            assert!(is_told, "{what}: {problems:?}");
        }
    }
}
