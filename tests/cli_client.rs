//! The shell's client: the program against a program that runs, as an operator uses the two.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Authority, Options, Target, free_port, keep_private, nqn_of};
use serde_json::Value;

/// The client with an address of its own.
struct Shell {
    variables: Vec<(&'static str, String)>,
}

impl Shell {
    fn of(target: &Target) -> Self {
        Self {
            variables: vec![("OPI_SPDK_ADDR", target.grpc.to_string())],
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_opi-spdk"));
        command.args(args).env_remove("OPI_SPDK_GRPC_ADDR");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        let out = self.command(args).stdin(Stdio::null()).output();
        out.expect("the program starts")
    }

    /// What a command prints that must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{args:?}: {error}");
        assert_eq!(error, "", "{args:?}");
        String::from_utf8(out.stdout).expect("text")
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// What a command says that must end with this status.
    fn fails(&self, args: &[&str], status: i32) -> String {
        let out = self.run(args);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(status), "{args:?}: {error}");
        assert!(error.starts_with("opi-spdk: "), "{args:?}: {error}");
        assert!(!error.contains("panicked"), "{args:?}: {error}");
        error
    }
}

#[tokio::test]
async fn an_operator_exports_a_disk_from_a_shell_and_each_error_has_its_status() {
    let target = Target::start().await;
    let shell = Shell::of(&target);
    an_export_is_made_shown_changed_and_deleted(&shell);
    errors_name_the_field_and_have_their_status(&shell);
    objects_of_a_file_are_made_and_what_was_shown_can_be_made_again(&shell, target.scratch());
    a_list_is_whole_whatever_the_size_of_a_page(&shell);
    a_reader_that_goes_is_no_fault(&shell);
    target.stop();
}

fn an_export_is_made_shown_changed_and_deleted(shell: &Shell) {
    let made = shell.ok(&[
        "create",
        "null-volume",
        "disk",
        "block_size=512",
        "blocksCount=2048",
    ]);
    assert_eq!(made, "volumes/disk created\n");
    let nqn = format!("spec.nqn={}", nqn_of("shell"));
    shell.ok(&["create", "nvmeSubsystems", "sub", &nqn]);
    let made = shell.json(&[
        "create",
        "nvme_namespace",
        "sub/ns",
        "spec.volumeNameRef=volumes/disk",
    ]);
    let name = "nvmeSubsystems/sub/nvmeNamespaces/ns";
    assert_eq!(
        (&made["name"], &made["kind"]),
        (&name.into(), &"NvmeNamespace".into())
    );
    let port = format!("spec.fabrics_id.trsvcid={}", free_port());
    let controller = [
        "create",
        "NvmeController",
        "tcp",
        "--parent",
        "sub",
        "spec.trtype=tcp",
        "spec.fabrics_id.traddr=127.0.0.1",
        "spec.fabrics_id.adrfam=ipv4",
        &port,
    ];
    let made = shell.json(&controller);
    assert_eq!(made["spec"]["trtype"], "NVME_TRANSPORT_TYPE_TCP", "{made}");

    for form in [
        &["nvmeNamespaces", "sub/ns"][..],
        &["nvmeNamespace", name],
        &[name],
        &["nvmeSubsystems/sub/nvmeNamespaces", "ns"],
    ] {
        let found = shell.json(&[&["get"], form].concat());
        assert_eq!(found["name"], name, "{form:?}");
    }
    let table = shell.ok(&["get", "nvmeControllers"]);
    let (header, row) = table.split_once('\n').expect("two lines");
    assert!(
        header.starts_with("NAME ") && header.contains("TRTYPE"),
        "{table}"
    );
    assert!(row.contains("TCP") && row.contains("127.0.0.1"), "{table}");
    let all = shell.json(&["get"]);
    let names: Vec<&str> = (all.as_array().expect("a list").iter())
        .filter_map(|one| one["name"].as_str())
        .collect();
    for name in [name, "volumes/disk", "nvmeSubsystems/sub"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(
        shell
            .ok(&["get", name, "-o", "yaml"])
            .contains("\nname: nvmeSubsystems/sub/")
    );

    let stats = shell.ok(&["stats", "null-volume", "disk"]);
    assert!(
        stats.starts_with("NAME ") && stats.contains("READ_OPS"),
        "{stats}"
    );
    let stats = shell.json(&["stats", "nullVolumes"]);
    assert_eq!(stats[0]["name"], "volumes/disk", "{stats}");

    // Only what is given changes.
    shell.ok(&[
        "update",
        "nvme-subsystem",
        "sub",
        "spec.hostnqn=nqn.2014-08.org.nvmexpress:h",
    ]);
    let found = shell.json(&["get", "nvmeSubsystems/sub"]);
    assert_eq!(found["spec"]["hostnqn"], "nqn.2014-08.org.nvmexpress:h");
    assert_eq!(found["spec"]["nqn"], nqn_of("shell"));
    shell.ok(&["update", "nvmeSubsystems/sub", "spec.hostnqn="]);
    assert_eq!(
        shell.json(&["get", "nvmeSubsystems/sub"])["spec"]["hostnqn"],
        ""
    );

    let error = shell.fails(&["delete", "nullVolumes", "disk"], 19);
    assert!(
        error.contains("FAILED_PRECONDITION") && error.contains(name),
        "{error}"
    );
    shell.ok(&["delete", "nvmeControllers", "sub/tcp"]);
    shell.ok(&["delete", name]);
    assert_eq!(
        shell.ok(&["delete", "nvmeSubsystems", "sub"]),
        "nvmeSubsystems/sub deleted\n"
    );
    shell.ok(&["delete", "null-volume", "disk"]);
    shell.fails(&["delete", "null-volume", "disk"], 15);
    shell.ok(&["delete", "null-volume", "disk", "--allow-missing"]);
}

fn errors_name_the_field_and_have_their_status(shell: &Shell) {
    let refused = [
        "create",
        "null-volume",
        "x",
        "block_size=100",
        "blocks_count=1",
    ];
    let error = shell.fails(&refused, 13);
    assert!(
        error.contains("INVALID_ARGUMENT\n  block_size: "),
        "{error}"
    );
    let error = shell.fails(&["get", "nullVolumes", "none"], 15);
    assert!(
        error.contains("NOT_FOUND: ") && error.contains("none"),
        "{error}"
    );
    shell.ok(&[
        "create",
        "null-volume",
        "x",
        "block_size=512",
        "blocks_count=8",
    ]);
    let other = [
        "create",
        "null-volume",
        "x",
        "block_size=512",
        "blocks_count=16",
    ];
    shell.fails(&other, 16);
    assert_eq!(shell.json(&["get", "volumes"])[0]["name"], "volumes/x");
    for one in [&["get", "volumes/x"][..], &["get", "volumes", "x"]] {
        assert_eq!(shell.json(one)["kind"], "NullVolume");
    }
    shell.fails(&["get", "volumes", "none"], 15);
    shell.ok(&["delete", "null-volume", "x"]);
    for what in [&["get"][..], &["get", "nullVolumes"], &["get", "volumes"]] {
        let out = shell.run(what);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() && out.stdout.is_empty(), "{said}");
        assert!(said.contains("there are none"), "{said}");
    }

    let error = shell.fails(&["get", "nullVolum"], 2);
    assert!(
        error.contains("nvmeSubsystems"),
        "it lists the kinds: {error}"
    );
    let error = shell.fails(&["create", "null-volume", "x", "blocksize=1"], 2);
    assert!(error.contains("block_size"), "it lists the fields: {error}");
    shell.fails(&["create", "nvmeRemoteNamespace", "a/b", "name=3"], 2);
    shell.fails(&["create", "-f", "/none"], 1);

    // Nobody there, somebody who is no opi-spdk, and what is no address.
    let nobody = format!("127.0.0.1:{}", free_port());
    let error = shell.fails(&["get", "--addr", &nobody], 24);
    let told = format!("no opi-spdk answers at {nobody}: ");
    assert!(
        error.contains(&told) && error.contains("refused"),
        "{error}"
    );
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("bound").to_string();
    let out = shell.run(&["get", "nullVolumes", "--addr", &silent, "--timeout", "1"]);
    assert!(matches!(out.status.code(), Some(14 | 24)), "{out:?}");
    for address in ["", "here", "http://127.0.0.1:1", ":5", "a:b:c"] {
        shell.fails(&["get", "--addr", address], 2);
    }
}

fn objects_of_a_file_are_made_and_what_was_shown_can_be_made_again(shell: &Shell, dir: &Path) {
    let file = dir.join("objects.yaml");
    let path = file.to_str().expect("text");
    let yaml = format!(
        "kind: NullVolume\nname: one\nblockSize: 512\nblocks_count: 8\n---\n\
         name: nvmeSubsystems/of-file\nspec:\n  nqn: {}\n",
        nqn_of("of-file")
    );
    std::fs::write(&file, yaml).expect("there is room");
    let made = shell.ok(&["create", "-f", path]);
    assert_eq!(
        made,
        "volumes/one created\nnvmeSubsystems/of-file created\n"
    );

    let shown = shell.ok(&["get", "nullVolumes", "one", "-o", "yaml"]);
    shell.ok(&["delete", "nullVolumes", "one"]);
    let mut child = shell
        .command(&["create", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(shown.as_bytes()).expect("it reads");
    drop(input);
    let out = child.wait_with_output().expect("it ends");
    assert!(out.status.success(), "{out:?} of {shown}");

    // A field that is nothing in the file is nothing afterwards.
    std::fs::write(&file, r#"{"blocksCount": 16}"#).expect("there is room");
    shell.ok(&["update", "null-volume", "one", "-f", path]);
    let one = shell.json(&["get", "null-volume", "one"]);
    assert_eq!(
        (&one["blocksCount"], &one["blockSize"]),
        (&"16".into(), &"512".into())
    );

    for (content, status, told) in [
        ("blockSize: 512\n", 1, "object 1: neither kind nor a name"),
        (
            "kind: NullVolume\nname: two\nblockSize: big\n",
            1,
            "blockSize: \"big\" is not a whole",
        ),
        (
            "kind: NullVolume\nname: two\nsize: 3\n",
            1,
            "there is no field \"size\"",
        ),
        (
            "kind: NullVolume\nname: two\nblockSize: 7\nblocksCount: 1\n",
            13,
            "block_size: ",
        ),
        ("{\"kind\": ", 1, "not JSON"),
        ("a: [b\n", 1, "not YAML"),
        ("&a [*a]\n", 1, ""),
    ] {
        std::fs::write(&file, content).expect("there is room");
        let error = shell.fails(&["create", "-f", path], status);
        assert!(error.contains(told), "{content:?}: {error}");
    }
    shell.ok(&["delete", "nullVolumes", "one"]);
    shell.ok(&["delete", "nvmeSubsystems/of-file"]);
}

fn a_list_is_whole_whatever_the_size_of_a_page(shell: &Shell) {
    const NUMBER: usize = 110;
    let ids: Vec<String> = (0..NUMBER).map(|number| format!("many-{number}")).collect();
    let volumes: Vec<Value> = ids
        .iter()
        .map(|id| {
            let name = format!("nullVolumes/{id}");
            serde_json::json!({"name": name, "block_size": 512, "blocks_count": 8})
        })
        .collect();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("many.json");
    std::fs::write(&file, Value::from(volumes).to_string()).expect("there is room");
    shell.ok(&["create", "-f", file.to_str().expect("text")]);
    let found = shell.json(&["get", "nullVolumes"]);
    assert_eq!(found.as_array().expect("a list").len(), NUMBER);
}

fn a_reader_that_goes_is_no_fault(shell: &Shell) {
    let mut child = shell
        .command(&["get", "nullVolumes", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    output.read_line(&mut line).expect("it is text");
    drop(output);
    let out = child.wait_with_output().expect("it ends");
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");

    let ids: Vec<String> = (0..110).map(|number| format!("many-{number}")).collect();
    let ids = ids.iter().map(String::as_str);
    let args: Vec<&str> = ["delete", "nullVolumes"].into_iter().chain(ids).collect();
    shell.ok(&args);
}

#[tokio::test]
async fn with_tls_the_client_shows_its_certificate_and_trusts_the_authority_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, other) = (Authority::new(), Authority::new());
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("there is room");
        keep_private(&path);
        path.display().to_string()
    };
    let triple = |name: &str, authority: &Authority, signed: &Authority| {
        let (certificate, key) = signed.sign("localhost");
        [
            write(&format!("{name}.crt"), certificate.pem()),
            write(&format!("{name}.key"), key.serialize_pem()),
            write(&format!("{name}.ca"), authority.pem()),
        ]
        .join(":")
    };
    let (server, client) = (
        triple("server", &ours, &ours),
        triple("client", &ours, &ours),
    );
    let (stranger, doubter) = (
        triple("stranger", &ours, &other),
        triple("doubter", &other, &ours),
    );
    // Nobody who waits for it has a certificate.
    let target = Target::spawn(&Options::default().args(["--tls", server.as_str()]));
    let address = format!("localhost:{}", target.grpc.port());
    let shell = |tls: &str| Shell {
        variables: vec![
            ("OPI_SPDK_ADDR", address.clone()),
            ("OPI_SPDK_TLS", tls.to_owned()),
        ],
    };
    common::eventually(
        "it serves",
        std::time::Duration::from_secs(30),
        async || {
            let found = shell(&client).run(&["get", "nullVolumes"]);
            found.status.success().then_some(())
        },
    )
    .await;
    let by_address = target.grpc.to_string();
    shell(&client).fails(&["get", "nullVolumes", "--addr", &by_address], 24);
    shell(&client).json(&["get", "--addr", &by_address, "--server-name", "localhost"]);
    for tls in [&stranger, &doubter] {
        shell(tls).fails(&["get", "nullVolumes"], 24);
    }
    shell("").fails(&["get", "nullVolumes"], 24);
    shell("a:b").fails(&["get", "nullVolumes"], 2);
    shell("/none:/none:/none").fails(&["get", "nullVolumes"], 1);
    target.stop();
}
