//! Checks before SPDK starts, and acquisition of the resources it needs, so that a mistake is reported immediately in
//! one clear line rather than in SPDK's log.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spdk::cores::CoreSet;

use crate::access::Access;
use crate::config::{Config, RpcHttp, SpdkRpc};
use crate::ctrlr_dir;
use crate::identity::Identity;
use crate::local_socket::{self, Bound};
use crate::machine::cgroup::BESIDE_MIB;
use crate::machine::{Machine, cgroup, hugepages};
use crate::private_dir::lock_state_dir;
use crate::server::{Listeners, Tls};
use crate::spdk_rpc::{Credentials, Proxy};
use crate::state::{Disk, KeySource, StateKey};

/// Resources held from before SPDK's start until the end of the process.
pub struct Ready {
    /// Locks, held for the lifetime of the process: one instance per state directory and per socket directory.
    pub instance: [File; 2],
    /// Identity of this instance.
    pub identity: Identity,
    /// The persistent state.
    pub state: Arc<Disk>,
    /// Source of the state's key.
    pub state_key: KeySource,
    /// Cores for ordinary threads.
    pub control_cores: CoreSet,
    /// Resources of the servers.
    pub listeners: Listeners,
}

/// Checks the configuration against the machine and acquires resources. An error is one line for the operator.
pub fn prepare(config: &Config) -> Result<Ready, String> {
    let control_cores = check_cores(&config.cores)?;
    let tls = config.tls.as_ref().map(Tls::read).transpose()?;
    let access = read_access(config)?;
    let instance = [
        lock_state_dir(&config.state_dir)?,
        ctrlr_dir::take(&config.ctrlr_dir)?,
    ];
    config.socket_access.admit(&config.ctrlr_dir)?;
    let identity = Identity::of_state_dir(&config.state_dir)?;
    let grpc = bind("grpc-addr", config.grpc_addr)?;
    let http = bind("http-addr", config.http_addr)?;
    if let Some(address) = config.discovery_addr {
        // Only a check: SPDK opens it once everything it lists has been restored.
        bind("discovery-addr", address)?;
    }
    let local = config.listen_uds.as_deref().map(Bound::new).transpose();
    let local = local.map_err(|reason| format!("listen-uds {reason}"))?;
    open_to_users(config, &access)?;
    let spdk_rpc = config
        .spdk_rpc
        .as_ref()
        .map(prepare_rpc)
        .transpose()?
        .flatten();
    if let Some((core, pid)) = config.cores.claimed() {
        return Err(format!(
            "core {core} is in use by the SPDK process {pid}; choose others with --cores"
        ));
    }
    check_memory(config)?;
    // Last, since the first start creates files.
    let (state, state_key) = open_state(config)?;
    Ok(Ready {
        instance,
        identity,
        state: Arc::new(state),
        state_key,
        control_cores,
        listeners: Listeners {
            grpc,
            http,
            local,
            spdk_rpc,
            tls,
            access,
        },
    })
}

/// The grants that the configuration names, or all to everybody.
pub(crate) fn read_access(config: &Config) -> Result<Access, String> {
    let Some(file) = &config.access_file else {
        return Ok(Access::default());
    };
    let access = Access::read(file)?;
    if config.tls.is_none() && access.has_certificates() {
        return Err(format!(
            "access-file {}: clients have certificates with TLS alone: set --tls, or use token-file and uid",
            file.display()
        ));
    }
    Ok(access)
}

/// Opens the Unix socket of the API to all users if there are grants for users: the kernel tells who connects, and whoever
/// has no grant is refused. Without such grants only the owner and root may connect.
///
/// # Errors
/// One line for the operator.
pub(crate) fn open_to_users(config: &Config, access: &Access) -> Result<(), String> {
    let Some(socket) = &config.listen_uds else {
        return Ok(());
    };
    let has_users = access.has_users();
    local_socket::admit_users(socket, has_users)
        .map_err(|reason| format!("listen-uds {reason}"))?;
    if let Some(dir) = local_socket::closed_parent(socket).filter(|_| has_users) {
        tracing::warn!(
            socket = %socket.display(),
            closed = %dir.display(),
            "access-file has grants for users, and not all users can pass a directory above listen-uds"
        );
    }
    Ok(())
}

fn open_state(config: &Config) -> Result<(Disk, KeySource), String> {
    let dir = &config.state_dir;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let setting = config.state_key_file.as_deref();
    let may_make = !Disk::exists(dir)?;
    let (key, source) = StateKey::find(dir, setting, credentials.as_deref(), may_make)?;
    Ok((Disk::open(dir, &key)?, source))
}

/// The cores for ordinary threads: those without a reactor, or all.
fn check_cores(reactors: &CoreSet) -> Result<CoreSet, String> {
    let permitted = CoreSet::permitted().map_err(|error| format!("cores: {error}"))?;
    if let Some(missing) = reactors.without(&permitted) {
        return Err(format!(
            "cores: {missing} cannot be used by this process; it may use {permitted}"
        ));
    }
    // Ordinary threads keep the CPU affinity that the process was given.
    let allowed = CoreSet::allowed().map_err(|error| format!("cores: {error}"))?;
    Ok(allowed.without(reactors).unwrap_or_else(|| {
        tracing::warn!(
            cores = %allowed,
            "no core is left beside the reactors: configuration and I/O share them"
        );
        allowed
    }))
}

fn check_memory(config: &Config) -> Result<(), String> {
    check_cgroup(config, &Machine::here())?;
    if config.no_huge {
        return match available_mib() {
            Some(free) if free < u64::from(config.mem_mib) => Err(format!(
                "{free} MiB of memory are available, and {} MiB are asked for: lower --mem-mib",
                config.mem_mib
            )),
            _ => Ok(()),
        };
    }
    let free = spdk::hugepages_free_mib();
    let needed = u64::from(config.mem_mib);
    if free >= needed {
        return Ok(());
    }
    let most = reserved(Path::new("/sys/kernel/mm/hugepages")).max_by_key(|(_, mib)| *mib);
    if let Some((kib, mib)) = most.filter(|(_, mib)| *mib >= needed) {
        return Err(format!(
            "{mib} MiB of hugepages of {kib} KiB are free, but only {free} MiB in sizes that are mounted: \
             mkdir -p /dev/hugepages-{kib}K && mount -t hugetlbfs -o pagesize={kib}K nodev \
             /dev/hugepages-{kib}K"
        ));
    }
    Err(format!(
        "{free} MiB of hugepages are free in the sizes that are mounted, and {needed} MiB are asked for: \
         reserve more (opi-spdk setup --hugepages {pages}, or echo {pages} > /proc/sys/vm/nr_hugepages), \
         or lower --mem-mib, or use --no-huge",
        pages = needed.div_ceil(2),
    ))
}

/// Checks the control group's limits. Exceeding one later would be fatal: SIGBUS for a hugepage, the OOM killer for
/// ordinary memory.
fn check_cgroup(config: &Config, machine: &Machine) -> Result<(), String> {
    let asked = u64::from(config.mem_mib);
    let ordinary = BESIDE_MIB + if config.no_huge { asked } else { 0 };
    if let Some(limit) = cgroup::memory(machine).filter(|limit| limit.left_mib() < ordinary) {
        return Err(format!(
            "the control group leaves {} MiB of memory ({}), and {ordinary} MiB are needed, {BESIDE_MIB} of them beside \
             SPDK's: raise the limit, or lower --mem-mib",
            limit.left_mib(),
            limit.file.display()
        ));
    }
    if config.no_huge {
        return Ok(());
    }
    match cgroup::hugetlb_of_all(machine, &hugepages::mounted(machine)) {
        Some(limit) if limit.left_mib() < asked => Err(format!(
            "the control group leaves {} MiB of hugepages ({}), and {asked} MiB are asked for: raise the limit, or \
             lower --mem-mib",
            limit.left_mib(),
            limit.file.display()
        )),
        _ => Ok(()),
    }
}

/// Page sizes in KiB, with the free memory of each in MiB, whether mounted or not; `folder` has a directory per size.
fn reserved(folder: &Path) -> impl Iterator<Item = (u64, u64)> {
    let sizes = std::fs::read_dir(folder).into_iter().flatten().flatten();
    sizes.filter_map(|size| {
        let name = size.file_name().into_string().ok()?;
        let kib: u64 = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        let free = std::fs::read_to_string(size.path().join("free_hugepages")).ok()?;
        Some((
            kib,
            free.trim().parse::<u64>().ok()?.saturating_mul(kib) / 1024,
        ))
    })
}

/// Memory available without swapping in MiB, by the kernel's estimate.
fn available_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

/// Removes a stale socket of SPDK, and acquires the proxy's resources.
fn prepare_rpc(rpc: &SpdkRpc) -> Result<Option<Proxy>, String> {
    local_socket::clear(&rpc.socket).map_err(|reason| format!("spdk-rpc-socket {reason}"))?;
    let proxy = |http: &RpcHttp| {
        let credentials = Credentials::read(&http.user, &http.password_file);
        Ok(Proxy {
            listener: bind("spdk-rpc-http", http.address)?,
            credentials: credentials.map_err(|reason| format!("spdk-rpc-user {reason}"))?,
            socket: rpc.socket.clone(),
        })
    };
    rpc.http.as_ref().map(proxy).transpose()
}

fn bind(setting: &str, address: SocketAddr) -> Result<TcpListener, String> {
    let listener = TcpListener::bind(address).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => "; another program listens there",
            std::io::ErrorKind::AddrNotAvailable => "; no interface has that address",
            _ => "",
        };
        format!("{setting} {address}: {error}{hint}")
    })?;
    listener
        .set_nonblocking(true)
        .map_err(|error| format!("{setting} {address}: {error}"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tree::Tree;
    use clap::Parser;

    #[test]
    fn memory_past_the_control_groups_limit_is_refused_before_the_start() {
        let tree = Tree::new();
        tree.write("/proc/self/cgroup", "0::/\n");
        tree.write("/sys/fs/cgroup/cgroup.controllers", "memory hugetlb");
        tree.write("/sys/fs/cgroup/memory.max", "1073741824");
        tree.write("/sys/fs/cgroup/memory.current", "1048576");
        tree.write("/sys/fs/cgroup/hugetlb.2MB.max", "536870912");
        let mount = "30 1 0:30 / /dev/hugepages rw - hugetlbfs none rw,pagesize=2M\n";
        tree.write("/proc/self/mountinfo", mount);
        let check = |flags: &[&str]| {
            let flags = std::iter::once("opi-spdk").chain(flags.iter().copied());
            let line = crate::config::CommandLine::try_parse_from(flags).unwrap();
            check_cgroup(&line.resolve().unwrap(), &tree.machine())
        };
        let refused = check(&["--mem-mib", "513"]).unwrap_err();
        assert!(refused.contains("leaves 512 MiB of hugepages"), "{refused}");
        assert!(refused.contains("hugetlb.2MB.max"), "{refused}");
        assert_eq!(check(&["--mem-mib", "512"]), Ok(()));
        let refused = check(&["--mem-mib", "896", "--no-huge"]).unwrap_err();
        assert!(refused.contains("leaves 1023 MiB of memory"), "{refused}");
        assert!(refused.contains("1024 MiB are needed"), "{refused}");
        assert_eq!(check(&["--mem-mib", "895", "--no-huge"]), Ok(()));
        let both = mount.to_owned() + "31 1 0:31 / /huge rw - hugetlbfs none rw,pagesize=1024M\n";
        tree.write("/proc/self/mountinfo", &both);
        assert_eq!(check(&["--mem-mib", "1024"]), Ok(()));
    }

    #[test]
    fn hugepages_of_each_size_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for (size, free) in [
            ("hugepages-2048kB", "12\n"),
            ("hugepages-1048576kB", "3\n"),
            ("other", "9"),
        ] {
            let size = dir.path().join(size);
            std::fs::create_dir(&size).unwrap();
            std::fs::write(size.join("free_hugepages"), free).unwrap();
        }
        let mut found: Vec<_> = reserved(dir.path()).collect();
        found.sort();
        assert_eq!(found, [(2048, 24), (1 << 20, 3072)]);
        assert_eq!(reserved(&dir.path().join("none")).count(), 0);
    }
}
