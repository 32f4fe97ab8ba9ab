//! Configuration: flags, a TOML file, and defaults.
//!
//! [`Settings`] is the single list of settings. It is read from both the command line and the file, with the same
//! names; flags take precedence.

mod address;
mod changed;
pub(crate) mod cores;
mod dhchap;
mod file;
mod idle;
mod iobuf;
mod kvm;
mod log_level;
mod remote;
mod socket_path;
mod spdk_rpc;
mod tcp;
mod telemetry;
mod tls;
mod version;
mod volume;
mod web;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use spdk::Iobuf;
use spdk::cores::CoreSet;
use spdk::dhchap::Weakest;
use spdk::nvmf::TcpSizes;

pub use crate::kvm::Kvm;
use crate::socket_access::SocketAccess;
pub(crate) use file::one_line;
pub use idle::Idle;
pub use spdk_rpc::{RpcHttp, SpdkRpc};
pub use telemetry::LogFormat;
pub use tls::TlsFiles;
pub use version::TEXT as VERSION;
pub use volume::Volume;
pub use web::Web;

/// Default of state-dir.
pub(crate) const STATE_DIR: &str = "/var/lib/opi-spdk";

/// Default of ctrlr-dir.
pub(crate) const CTRLR_DIR: &str = "/run/opi-spdk";

/// Flags for settings.
#[derive(Debug, Clone, Default, clap::Parser)]
pub struct CommandLine {
    /// TOML file with any of the settings below, and [[volume]] sections; flags take precedence over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// The settings of both sources; absent ones have defaults.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    /// Address and port of the gRPC server [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR:PORT")]
    grpc_addr: Option<String>,
    /// Address and port of the HTTP/JSON gateway [default: 127.0.0.1:8082]
    #[arg(long, value_name = "ADDR:PORT")]
    http_addr: Option<String>,
    /// Also serve gRPC on this Unix socket, to programs that run as the same user, as root or as a user of --access-file
    #[arg(long, value_name = "PATH")]
    listen_uds: Option<PathBuf>,
    /// Address of the NVMe/TCP discovery service, which tells hosts what they may connect to; its usual port is 8009
    #[arg(long, value_name = "ADDR:PORT")]
    discovery_addr: Option<String>,
    /// Announce the discovery service of --discovery-addr by multicast DNS (_nvme-disc._tcp), so that hosts find it
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    discovery_mdns: Option<bool>,
    /// Host names of this server that clients of --http-addr may use; addresses and localhost are always allowed
    #[arg(long, value_name = "NAME,...")]
    http_hosts: Option<String>,
    /// Sites whose pages may use --http-addr from a browser, such as https://console.example
    #[arg(long, value_name = "ORIGIN,...")]
    http_origins: Option<String>,
    /// Maximum number of client connections, of all ports together [default: 1024]
    #[arg(long, value_name = "N")]
    max_connections: Option<usize>,
    /// Serve TLS with this certificate and key, and require client certificates signed by the CA
    #[arg(long, value_name = "CERT:KEY:CA")]
    tls: Option<String>,
    /// File with lists of revoked client certificates (CRL, PEM), for --tls
    #[arg(long, value_name = "FILE")]
    tls_crl: Option<PathBuf>,
    /// TOML file with the roles of clients; without it every client of a port may use the whole API
    #[arg(long, value_name = "FILE")]
    access_file: Option<PathBuf>,
    /// Cores for SPDK's reactors, one pinned thread each: a list (0-3,5), a mask (0x2f), or the last
    /// so many of its cpuset (last:2) [default: 0]
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// What a reactor does while it has no work: sleep, or poll, which takes its whole core [default: nap]
    #[arg(long, value_name = "HOW", hide_possible_values = true)]
    idle: Option<Idle>,
    /// Measure how long each poll of a thread holds a reactor, for --http-addr's /metrics; takes a system call a poll
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    measure_polls: Option<bool>,
    /// Memory that SPDK reserves at start, MiB; malloc volumes are in it [default: 1024]
    #[arg(long, value_name = "MIB", allow_negative_numbers = true)]
    mem_mib: Option<u32>,
    /// Number of 8 KiB I/O buffers, in SPDK's memory [default: 8192, and 512 for each reactor after the first]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    iobuf_small: Option<u64>,
    /// Number of 132 KiB I/O buffers, in SPDK's memory [default: 1024, and 64 for each reactor after the first]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    iobuf_large: Option<u64>,
    /// Commands that an NVMe/TCP host may have outstanding in an I/O queue, plus one [default: 128]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    tcp_queue_depth: Option<u64>,
    /// Data that a command over NVMe/TCP may carry, bytes; all other data is asked for first [default: 4096]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    tcp_in_capsule: Option<u64>,
    /// Size of the buffers that data over NVMe/TCP is split into, bytes, a power of two [default: 131072]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    tcp_io_unit: Option<u64>,
    /// I/O buffers for NVMe/TCP, of which the reactors keep three quarters for themselves [default: 511]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    tcp_buffers: Option<u64>,
    /// Use ordinary memory instead of hugepages; excludes vfio-user, vhost-user and PCIe
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    no_huge: Option<bool>,
    /// Directory for persistent state, used by one instance at a time [default: /var/lib/opi-spdk]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// File with the key that encrypts the state, 32 bytes or 64 hex digits [default: systemd's credential state-key,
    /// else a file in the state directory]
    #[arg(long, value_name = "FILE")]
    state_key_file: Option<PathBuf>,
    /// Allow core dumps after a crash, which contain the keys in use; off by default
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    core_dump: Option<bool>,
    /// Directory for the sockets of vfio-user and vhost-user controllers [default: /run/opi-spdk]
    #[arg(long, value_name = "DIR")]
    ctrlr_dir: Option<PathBuf>,
    /// Group of those sockets, by name or number, for a QEMU that is not root [default: the process's]
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// Mode of those sockets, octal [default: 0660 with socket-group, else by the umask]
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<String>,
    /// Plug PCIe controllers (vfio-user NVMe, virtio-blk, virtio-scsi) into a running QEMU, and unplug them
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    kvm: Option<bool>,
    /// QEMU's QMP monitor for --kvm: the path of a Unix socket, or host:port
    #[arg(long, value_name = "ADDR")]
    qmp_addr: Option<String>,
    /// Names of QEMU's PCI buses for --kvm: functions 0 to 31 are on the first, 32 to 63 on the second, and so on
    #[arg(long, value_name = "BUS,...")]
    buses: Option<String>,
    /// With --kvm, unplug vfio-user devices also from a QEMU version that is known to crash when it does that (11.1)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    kvm_force_unplug: Option<bool>,
    /// Log filter: error, warn, info, debug, trace, or per target (info,spdk=debug) [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Log format: text, or one JSON object per line [default: text]
    #[arg(long, value_name = "FORMAT", hide_possible_values = true)]
    log_format: Option<LogFormat>,
    /// Append a JSON line for each change to this file, which is reopened on SIGHUP
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// Key of the audit log's hashes (32 bytes, or 64 hex digits), without which nobody can forge lines
    #[arg(long, value_name = "FILE")]
    audit_key_file: Option<PathBuf>,
    /// Concurrent configuration calls in the data path, plus one; a power of two [default: 4096]
    #[arg(long, value_name = "N")]
    max_calls: Option<usize>,
    /// Seconds that a peer may leave I/O unanswered before the path to it is given up [default: 30]
    #[arg(long, value_name = "SECONDS")]
    remote_io_timeout: Option<u64>,
    /// Weakest hash of DH-HMAC-CHAP that hosts and peers may use: sha256, sha384 or sha512 [default: sha256]
    #[arg(long, value_name = "HASH")]
    dhchap_min_hash: Option<String>,
    /// Weakest DH group of DH-HMAC-CHAP that hosts and peers may use: null, ffdhe2048, ... ffdhe6144 [default: null]
    #[arg(long, value_name = "GROUP")]
    dhchap_min_group: Option<String>,
    /// Serve SPDK's own JSON-RPC on this Unix socket, for rpc.py and other diagnostic tools
    #[arg(long, value_name = "PATH")]
    spdk_rpc_socket: Option<PathBuf>,
    /// Forward POST / with basic authentication to the JSON-RPC socket
    #[arg(long, value_name = "ADDR:PORT")]
    spdk_rpc_http: Option<String>,
    /// User of --spdk-rpc-http, and the file with the password
    #[arg(long, value_name = "USER:PASS_FILE")]
    spdk_rpc_user: Option<String>,
    /// Volumes to create at start, which clients refer to by these names.
    #[arg(skip)]
    #[serde(default, rename = "volume")]
    volumes: Vec<Volume>,
}

/// The settings with defaults applied, each validated as far as possible on its own.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address of gRPC.
    pub grpc_addr: SocketAddr,
    /// Address of HTTP/JSON.
    pub http_addr: SocketAddr,
    /// Unix socket for gRPC.
    pub listen_uds: Option<PathBuf>,
    /// Address of the discovery service, in addition to the addresses of controllers.
    pub discovery_addr: Option<SocketAddr>,
    /// Whether multicast DNS announces the discovery service.
    pub discovery_mdns: bool,
    /// Host names and origins that HTTP/JSON is served to.
    pub web: Web,
    /// Maximum number of client connections, of all ports together.
    pub max_connections: usize,
    /// TLS of all ports, if configured.
    pub tls: Option<TlsFiles>,
    /// The file of clients' roles, if configured.
    pub access_file: Option<PathBuf>,
    /// The reactors' cores.
    pub cores: CoreSet,
    /// What reactors without work do.
    pub idle: Idle,
    /// Whether it is measured how long each poll holds a reactor.
    pub measure_polls: bool,
    /// SPDK's memory, MiB.
    pub mem_mib: u32,
    /// SPDK's pools of I/O buffers.
    pub iobuf: Iobuf,
    /// Sizes of the NVMe/TCP transport.
    pub tcp: TcpSizes,
    /// Whether SPDK runs without hugepages.
    pub no_huge: bool,
    /// Directory for persistent state.
    pub state_dir: PathBuf,
    /// The file of the state's key, if not in the default place.
    pub state_key_file: Option<PathBuf>,
    /// Whether a crash may leave a core dump, which contains keys.
    pub core_dump: bool,
    /// Directory for sockets of vfio-user and vhost-user controllers.
    pub ctrlr_dir: PathBuf,
    /// Group and mode of the sockets.
    pub socket_access: SocketAccess,
    /// KVM mode, if it is on.
    pub kvm: Option<Kvm>,
    /// Filter for `tracing`.
    pub log_level: String,
    /// Log format.
    pub log_format: LogFormat,
    /// The audit log, with one JSON object per change.
    pub audit_log: Option<PathBuf>,
    /// The file of the audit log's key.
    pub audit_key_file: Option<PathBuf>,
    /// Capacity of the mailbox.
    pub max_calls: usize,
    /// Timeout of remote I/O.
    pub remote_io_timeout: Duration,
    /// The weakest hash and DH group of DH-HMAC-CHAP.
    pub dhchap: Weakest,
    /// SPDK's JSON-RPC, if it is on.
    pub spdk_rpc: Option<SpdkRpc>,
    /// Volumes to create at start.
    pub volumes: Vec<Volume>,
}

/// Why a configuration is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not TOML, or has unknown settings.
    #[error("configuration file {}: {reason}", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// Location and cause, on one line.
        reason: String,
    },
    /// A value is invalid.
    #[error("{setting}: {reason}")]
    Value {
        /// The setting.
        setting: &'static str,
        /// What is wrong with the value, and what would be right.
        reason: String,
    },
}

impl Config {
    /// Whether the start creates this directory if it is missing.
    pub fn creates(&self, dir: &Path) -> bool {
        [&self.state_dir, &self.ctrlr_dir]
            .iter()
            .any(|created| created.starts_with(dir))
    }
}

impl CommandLine {
    /// A command line that only names a file.
    pub fn of_file(file: PathBuf) -> Self {
        Self {
            config: Some(file),
            ..Self::default()
        }
    }

    /// Reads the file, if given, and applies flags and defaults.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        self.merged()?.check()
    }

    /// As [`Self::resolve`], for an opi-spdk that runs already. A cpuset that has fewer cores by now than `last:N` asks for is
    /// no error, since only a start uses the cores: they are those of the cpuset, and the reason is returned too.
    pub fn resolve_running(self) -> Result<(Config, Option<String>), ConfigError> {
        let mut settings = self.merged()?;
        let available = settings.cores.as_deref().map(cores::available);
        let mut shortage = None;
        if let Some(Ok((cores, Some(reason)))) = available {
            settings.cores = Some(cores.to_string());
            shortage = Some(reason);
        }
        Ok((settings.check()?, shortage))
    }

    fn merged(self) -> Result<Settings, ConfigError> {
        let file = match &self.config {
            Some(path) => file::read(path)?,
            None => Settings::default(),
        };
        Ok(self.settings.over(file))
    }
}

impl Settings {
    /// These settings, with `below` for those that are absent.
    fn over(self, below: Self) -> Self {
        Self {
            grpc_addr: self.grpc_addr.or(below.grpc_addr),
            http_addr: self.http_addr.or(below.http_addr),
            listen_uds: self.listen_uds.or(below.listen_uds),
            discovery_addr: self.discovery_addr.or(below.discovery_addr),
            discovery_mdns: self.discovery_mdns.or(below.discovery_mdns),
            http_hosts: self.http_hosts.or(below.http_hosts),
            http_origins: self.http_origins.or(below.http_origins),
            max_connections: self.max_connections.or(below.max_connections),
            tls: self.tls.or(below.tls),
            tls_crl: self.tls_crl.or(below.tls_crl),
            access_file: self.access_file.or(below.access_file),
            cores: self.cores.or(below.cores),
            idle: self.idle.or(below.idle),
            measure_polls: self.measure_polls.or(below.measure_polls),
            mem_mib: self.mem_mib.or(below.mem_mib),
            iobuf_small: self.iobuf_small.or(below.iobuf_small),
            iobuf_large: self.iobuf_large.or(below.iobuf_large),
            tcp_queue_depth: self.tcp_queue_depth.or(below.tcp_queue_depth),
            tcp_in_capsule: self.tcp_in_capsule.or(below.tcp_in_capsule),
            tcp_io_unit: self.tcp_io_unit.or(below.tcp_io_unit),
            tcp_buffers: self.tcp_buffers.or(below.tcp_buffers),
            no_huge: self.no_huge.or(below.no_huge),
            state_dir: self.state_dir.or(below.state_dir),
            state_key_file: self.state_key_file.or(below.state_key_file),
            core_dump: self.core_dump.or(below.core_dump),
            ctrlr_dir: self.ctrlr_dir.or(below.ctrlr_dir),
            socket_group: self.socket_group.or(below.socket_group),
            socket_mode: self.socket_mode.or(below.socket_mode),
            kvm: self.kvm.or(below.kvm),
            qmp_addr: self.qmp_addr.or(below.qmp_addr),
            buses: self.buses.or(below.buses),
            kvm_force_unplug: self.kvm_force_unplug.or(below.kvm_force_unplug),
            log_level: self.log_level.or(below.log_level),
            log_format: self.log_format.or(below.log_format),
            audit_log: self.audit_log.or(below.audit_log),
            audit_key_file: self.audit_key_file.or(below.audit_key_file),
            max_calls: self.max_calls.or(below.max_calls),
            remote_io_timeout: self.remote_io_timeout.or(below.remote_io_timeout),
            dhchap_min_hash: self.dhchap_min_hash.or(below.dhchap_min_hash),
            dhchap_min_group: self.dhchap_min_group.or(below.dhchap_min_group),
            spdk_rpc_socket: self.spdk_rpc_socket.or(below.spdk_rpc_socket),
            spdk_rpc_http: self.spdk_rpc_http.or(below.spdk_rpc_http),
            spdk_rpc_user: self.spdk_rpc_user.or(below.spdk_rpc_user),
            volumes: below.volumes,
        }
    }

    fn check(self) -> Result<Config, ConfigError> {
        let value = |setting, reason: String| ConfigError::Value { setting, reason };
        let cores = self.cores.as_deref().unwrap_or("0");
        let max_calls = self.max_calls.unwrap_or(4096);
        if !max_calls.is_power_of_two() || !(2..=65536).contains(&max_calls) {
            let reason = format!("{max_calls} is not a power of two from 2 to 65536");
            return Err(value("max-calls", reason));
        }
        let mem_mib = self.mem_mib.unwrap_or(1024);
        if !(64..=1 << 20).contains(&mem_mib) {
            let reason = format!("{mem_mib} is outside of 64 to 1048576 MiB");
            return Err(value("mem-mib", reason));
        }
        let cores = cores::parse(cores).map_err(|reason| value("cores", reason))?;
        let reactors = cores.iter().count();
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let grpc_addr = address::check("grpc-addr", self.grpc_addr)?.unwrap_or(loopback(50051));
        let http_addr = address::check("http-addr", self.http_addr)?.unwrap_or(loopback(8082));
        let spdk_rpc_http = address::check("spdk-rpc-http", self.spdk_rpc_http)?;
        let discovery_addr = address::of_port("discovery-addr", self.discovery_addr)?;
        address::distinct(&[
            ("grpc-addr", Some(grpc_addr)),
            ("http-addr", Some(http_addr)),
            ("spdk-rpc-http", spdk_rpc_http),
            ("discovery-addr", discovery_addr),
        ])?;
        let discovery_mdns = self.discovery_mdns.unwrap_or(false);
        if discovery_mdns && discovery_addr.is_none() {
            let reason = "needs discovery-addr: it tells of the service there".to_owned();
            return Err(value("discovery-mdns", reason));
        }
        let spdk_rpc = spdk_rpc::check(self.spdk_rpc_socket, spdk_rpc_http, self.spdk_rpc_user)?;
        Ok(Config {
            grpc_addr,
            http_addr,
            listen_uds: socket_path::listen_uds(self.listen_uds, spdk_rpc.as_ref())?,
            discovery_addr,
            discovery_mdns,
            web: web::check(self.http_hosts, self.http_origins)?,
            max_connections: check_connections(self.max_connections)?,
            tls: tls::check(self.tls.as_deref(), self.tls_crl)?,
            access_file: self.access_file,
            cores,
            idle: self.idle.unwrap_or_default(),
            measure_polls: self.measure_polls.unwrap_or(false),
            mem_mib,
            iobuf: iobuf::check(self.iobuf_small, self.iobuf_large, reactors, mem_mib)?,
            tcp: tcp::check(
                self.tcp_queue_depth,
                self.tcp_in_capsule,
                self.tcp_io_unit,
                self.tcp_buffers,
            )?,
            no_huge: self.no_huge.unwrap_or(false),
            state_dir: self.state_dir.unwrap_or(STATE_DIR.into()),
            state_key_file: self.state_key_file,
            core_dump: self.core_dump.unwrap_or(false),
            ctrlr_dir: self.ctrlr_dir.unwrap_or(CTRLR_DIR.into()),
            socket_access: SocketAccess::parse(
                self.socket_group.as_deref(),
                self.socket_mode.as_deref(),
            )
            .map_err(|(setting, reason)| value(setting, reason))?,
            kvm: kvm::check(self.kvm, self.qmp_addr, self.buses, self.kvm_force_unplug)?,
            log_level: log_level::check(self.log_level.unwrap_or("info".to_owned()))?,
            log_format: self.log_format.unwrap_or_default(),
            audit_key_file: telemetry::audit_key_file(
                self.audit_key_file,
                self.audit_log.as_ref(),
            )?,
            audit_log: telemetry::audit_log(self.audit_log)?,
            max_calls,
            remote_io_timeout: remote::io_timeout(self.remote_io_timeout)?,
            dhchap: dhchap::check(self.dhchap_min_hash, self.dhchap_min_group)?,
            spdk_rpc,
            volumes: volume::check(self.volumes)?,
        })
    }
}

/// Below 16, the fractions for strangers and for one peer would be single connections.
fn check_connections(number: Option<usize>) -> Result<usize, ConfigError> {
    const MOST: usize = 65_536;
    let number = number.unwrap_or(crate::server::limits::CONNECTIONS);
    if !(16..=MOST).contains(&number) {
        return Err(ConfigError::Value {
            setting: "max-connections",
            reason: format!("{number} is outside of 16 to {MOST}"),
        });
    }
    Ok(number)
}

#[cfg(test)]
mod tests;
