//! Finds the changed settings that need a restart.

use super::Config;

/// The settings behind the fields whose values differ. The destructuring makes a field that is in neither list a compile
/// error.
macro_rules! differing {
    ($one:expr, $other:expr, without $($left_out:ident),+; $($field:ident: $settings:literal),+) => {{
        let Config { $($left_out: _,)+ $($field: _),+ } = $one;
        [$(($settings, format!("{:?}", $one.$field) != format!("{:?}", $other.$field))),+]
    }};
}

impl Config {
    /// Settings that differ in `new` and need a restart, by the names that an operator gives them: all but log-level
    /// and the TLS files.
    pub fn restart_settings(&self, new: &Self) -> Vec<&'static str> {
        let mut found = Vec::new();
        if self.tls.is_some() != new.tls.is_some() {
            found.push("tls");
        }
        let fields = differing!(
            self,
            new,
            without tls, log_level;
            grpc_addr: "grpc-addr",
            http_addr: "http-addr",
            listen_uds: "listen-uds",
            discovery_addr: "discovery-addr",
            discovery_mdns: "discovery-mdns",
            web: "http-hosts, http-origins",
            max_connections: "max-connections",
            access_file: "access-file",
            cores: "cores",
            idle: "idle",
            measure_polls: "measure-polls",
            mem_mib: "mem-mib",
            iobuf: "iobuf-small, iobuf-large",
            tcp: "tcp-queue-depth, tcp-in-capsule, tcp-io-unit, tcp-buffers",
            no_huge: "no-huge",
            state_dir: "state-dir",
            state_key_file: "state-key-file",
            core_dump: "core-dump",
            ctrlr_dir: "ctrlr-dir",
            socket_access: "socket-group, socket-mode",
            kvm: "kvm, qmp-addr, buses, kvm-force-unplug",
            log_format: "log-format",
            audit_log: "audit-log",
            audit_key_file: "audit-key-file",
            max_calls: "max-calls",
            remote_io_timeout: "remote-io-timeout",
            dhchap: "dhchap-min-hash, dhchap-min-group",
            spdk_rpc: "spdk-rpc-socket, spdk-rpc-http, spdk-rpc-user",
            volumes: "[[volume]]"
        );
        found.extend(
            fields
                .into_iter()
                .filter(|field| field.1)
                .map(|field| field.0),
        );
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CommandLine;
    use clap::Parser;

    fn config(flags: &[&str]) -> Config {
        let flags = std::iter::once("opi-spdk").chain(flags.iter().copied());
        let line = CommandLine::try_parse_from(flags).expect("valid flags");
        line.resolve().expect("valid settings")
    }

    #[test]
    fn another_place_of_the_states_key_needs_a_restart_and_another_log_level_does_not() {
        let running = config(&[]);
        let new = config(&[
            "--state-key-file",
            "/etc/opi-spdk/key",
            "--log-level",
            "debug",
        ]);
        assert_eq!(running.restart_settings(&new), ["state-key-file"]);
        assert!(running.restart_settings(&config(&[])).is_empty());
    }

    /// A name that is no setting could not be looked up in a file or in the manual.
    #[test]
    fn changes_are_told_by_names_of_settings() {
        let new = config(&[
            "--http-hosts",
            "target",
            "--socket-mode",
            "0660",
            "--spdk-rpc-socket",
            "/run/rpc.sock",
            "--iobuf-small",
            "9000",
        ]);
        let told = config(&[]).restart_settings(&new).join(", ");
        let command = <CommandLine as clap::CommandFactory>::command();
        for name in told.split(", ") {
            let mut flags = command.get_arguments().filter_map(clap::Arg::get_long);
            assert!(flags.any(|flag| flag == name), "{name}");
        }
        for name in [
            "http-hosts",
            "socket-mode",
            "spdk-rpc-socket",
            "iobuf-small",
        ] {
            assert!(told.contains(name), "{told}");
        }
    }
}
