//! Finds the changed settings that need a restart.

use super::Config;

/// Names of the fields whose values differ. The destructuring makes a field that is in neither list a compile error.
macro_rules! differing {
    ($one:expr, $other:expr, without $($left_out:ident),+; $($field:ident),+) => {{
        let Config { $($left_out: _,)+ $($field: _),+ } = $one;
        [$((stringify!($field), format!("{:?}", $one.$field) != format!("{:?}", $other.$field))),+]
    }};
}

impl Config {
    /// Settings that differ in `new` and need a restart: all but log-level and the TLS files.
    pub fn restart_settings(&self, new: &Self) -> Vec<&'static str> {
        let mut found = Vec::new();
        if self.tls.is_some() != new.tls.is_some() {
            found.push("tls");
        }
        let fields = differing!(
            self,
            new,
            without tls, log_level;
            grpc_addr,
            http_addr,
            listen_uds,
            discovery_addr,
            discovery_mdns,
            web,
            max_connections,
            access_file,
            cores,
            mem_mib,
            iobuf,
            no_huge,
            state_dir,
            state_key_file,
            core_dump,
            ctrlr_dir,
            socket_access,
            kvm,
            log_format,
            audit_log,
            audit_key_file,
            max_calls,
            remote_io_timeout,
            spdk_rpc,
            volumes
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
        assert_eq!(running.restart_settings(&new), ["state_key_file"]);
        assert!(running.restart_settings(&config(&[])).is_empty());
    }
}
