//! Which settings differ between two configurations, of those that only a start takes over.

use super::Config;

/// The names of the fields whose values differ.
macro_rules! differing {
    ($one:expr, $other:expr, $($field:ident),+) => {
        [$((stringify!($field), format!("{:?}", $one.$field) != format!("{:?}", $other.$field))),+]
    };
}

impl Config {
    /// Settings that differ in `new` and need a restart: all but log-level and the files of TLS.
    pub fn restart_settings(&self, new: &Self) -> Vec<&'static str> {
        let mut found = Vec::new();
        if self.tls.is_some() != new.tls.is_some() {
            found.push("tls");
        }
        let fields = differing!(
            self,
            new,
            grpc_addr,
            http_addr,
            listen_uds,
            discovery_addr,
            web,
            max_connections,
            access_file,
            cores,
            mem_mib,
            iobuf,
            no_huge,
            state_dir,
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
