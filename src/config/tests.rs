use std::path::Path;

use super::*;
use clap::Parser;

fn parse(args: &[&str], file: &str) -> Result<Config, ConfigError> {
    let line = CommandLine::try_parse_from(std::iter::once("opi-spdk").chain(args.iter().copied()))
        .expect("valid flags");
    let file = file::parse(Path::new("test"), file)?;
    line.settings.over(file).check()
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let config = parse(
        &["--cores", "2", "--no-huge"],
        "cores = \"1\"\nno-huge = false\nmem-mib = 256\n",
    )
    .expect("valid");
    assert_eq!(config.cores.to_string(), "2");
    assert!(config.no_huge);
    assert_eq!(config.mem_mib, 256);
    assert_eq!(config.grpc_addr.to_string(), "127.0.0.1:50051");
}

#[test]
fn mdns_is_for_a_discovery_service_with_an_address() {
    let told = |file| parse(&["--discovery-mdns"], file);
    let config = told("discovery-addr = \"0.0.0.0:8009\"\n").expect("valid");
    assert!(config.discovery_mdns);
    let error = told("").expect_err("no address").to_string();
    assert!(error.contains("needs discovery-addr"), "{error}");
    assert!(!parse(&[], "").expect("valid").discovery_mdns);
}

#[test]
fn volumes_are_read_with_their_kinds() {
    let text = "[[volume]]\nkind = \"malloc\"\nname = \"Malloc0\"\nsize-mib = 64\n";
    assert_eq!(
        parse(&[], text).expect("valid").volumes,
        [Volume::Malloc {
            name: "Malloc0".to_owned(),
            size_mib: 64,
            block_size: 512,
            uuid: None,
        }]
    );
}

#[test]
fn kvm_mode_has_an_address_and_buses_in_their_order() {
    let file = "kvm = false\nqmp-addr = \"/run/vm/qmp\"\nbuses = \"pci.opi.1,pci.opi.0\"";
    assert_eq!(parse(&[], file).expect("valid").kvm, None);
    let kvm = parse(&["--kvm", "--qmp-addr", "localhost:4444"], file)
        .expect("valid")
        .kvm;
    let kvm = kvm.expect("a flag wins over the file");
    assert_eq!(kvm.qmp_addr.to_string(), "localhost:4444");
    assert_eq!(kvm.buses, ["pci.opi.1", "pci.opi.0"]);
    let colons = parse(&["--kvm", "--buses", "a:b"], file)
        .expect("valid")
        .kvm;
    assert_eq!(colons.expect("on").buses, ["a", "b"]);
}

#[test]
fn what_is_wrong_in_the_file_is_named_with_its_line() {
    for (text, what) in [
        (
            "mem-mib = 256\ncolour = 1\n",
            "line 2: unknown field `colour`",
        ),
        ("mem-mib = \"x\"", "line 1: mem-mib: invalid type"),
        ("cores = ", "line 1"),
        ("cores = \"a\"", "\"a\" is not a core number"),
        ("mem-mib = 1", "mem-mib: 1 is outside"),
        ("remote-io-timeout = 0", "remote-io-timeout: 0 is outside"),
        ("max-calls = 100", "max-calls: 100 is not a power of two"),
        ("tls = \"a:b\"", "tls: \"a:b\" is not three files"),
        (
            "[[volume]]\nkind = \"malloc\"\nname = \"\"\nsize-mib = 1",
            "name is empty",
        ),
        (
            "[[volume]]\nkind=\"null\"\nname=\"a\"\nsize-mib=1\n[[volume]]\nkind=\"null\"\nname=\"a\"\nsize-mib=1",
            "\"a\" is given twice",
        ),
        ("qmp-addr = \"/q\"", "kvm: must be given"),
        ("kvm = true\nbuses = \"a\"", "qmp-addr: is needed with kvm"),
        ("kvm = true\nqmp-addr = \"/q\"", "buses: is needed with kvm"),
        (
            "kvm = true\nqmp-addr = \"q\"\nbuses = \"a\"",
            "qmp-addr: \"q\" is neither",
        ),
        (
            "kvm = true\nqmp-addr = \"/q\"\nbuses = \"\"",
            "buses: \"\" in \"\" is not a name",
        ),
        (
            "kvm = true\nqmp-addr = \"/q\"\nbuses = \"a,,b\"",
            "buses: \"\" in",
        ),
        (
            "kvm = true\nqmp-addr = \"/q\"\nbuses = \"a,b,a\"",
            "buses: \"a\" is given twice",
        ),
        (
            "spdk-rpc-http = \"127.0.0.1:0\"",
            "spdk-rpc-socket: is needed with spdk-rpc-http",
        ),
        (
            "spdk-rpc-user = \"a:/b\"",
            "spdk-rpc-http: is needed with spdk-rpc-user",
        ),
        (
            "spdk-rpc-socket = \"/s\"\nspdk-rpc-http = \"127.0.0.1:0\"",
            "spdk-rpc-user: is needed with spdk-rpc-http",
        ),
        (
            "spdk-rpc-socket = \"/s\"\nspdk-rpc-http = \"127.0.0.1:0\"\nspdk-rpc-user = \"a\"",
            "spdk-rpc-user: \"a\" is not a user and a file",
        ),
        (
            "spdk-rpc-socket = \"\"",
            "spdk-rpc-socket: \"\" has 0 bytes",
        ),
        ("listen-uds = \"\"", "listen-uds: \"\" has 0 bytes"),
        (
            "listen-uds = \"/s\"\nspdk-rpc-socket = \"/s\"",
            "listen-uds: /s is spdk-rpc-socket too",
        ),
        ("[[volume]]\nkind = \"floppy\"\nname = \"a\"", "floppy"),
        (
            "[[volume]]\nkind=\"null\"\nname=\"odd\"\nsize-mib=1\nblock-size=513",
            "volume: \"odd\": block-size 513 is not",
        ),
        (
            "[[volume]]\nkind=\"null\"\nname=\"a\"\nsize-mib=0",
            "size-mib 0 is no size",
        ),
        (
            "[[volume]]\nkind=\"null\"\nname=\"a\"\nsize-mib=8796093022208",
            "size-mib 8796093022208 is above",
        ),
        (
            "log-level = \"verbose\"",
            "log-level: \"verbose\" is not one of",
        ),
    ] {
        let error = parse(&[], text).expect_err(text).to_string();
        assert!(error.contains(what), "{text:?} gave: {error}");
        assert!(!error.contains('\n'), "more than one line: {error}");
    }
}
