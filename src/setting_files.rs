//! Checks the files and directories that settings name, without creating or changing any.

use crate::backend;
use crate::config::{CTRLR_DIR, Config, STATE_DIR, Volume};
use crate::local_socket;
use crate::preflight::read_access;
use crate::private_dir;
use crate::server::Tls;
use crate::spdk_rpc::Credentials;
use crate::state::StateKey;
use crate::telemetry::check_audit_log;

use std::path::{Path, PathBuf};

/// Checks everything that the settings name. Returns one line for each fault.
pub fn check(config: &Config) -> Vec<String> {
    let mut faults = check_files(config);
    faults.extend(directories(config));
    faults.extend(sockets(config));
    faults
}

/// Checks the files that a reload reads again: TLS and roles.
pub fn check_reloaded(config: &Config) -> Vec<String> {
    let tls = config.tls.as_ref().map(|files| Tls::read(files).map(drop));
    let access = read_access(config).map(drop);
    tls.into_iter()
        .chain([access])
        .filter_map(Result::err)
        .collect()
}

/// Checks the files alone: TLS, roles, keys, passwords, the audit log, and the files of volumes.
pub fn check_files(config: &Config) -> Vec<String> {
    let http = config.spdk_rpc.as_ref().and_then(|rpc| rpc.http.as_ref());
    let password = http.map(|http| {
        let read = Credentials::read(&http.user, &http.password_file).map(drop);
        read.map_err(|reason| format!("spdk-rpc-user {reason}"))
    });
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let state_key = StateKey::check(
        &config.state_dir,
        config.state_key_file.as_deref(),
        credentials.as_deref(),
    );
    let audit_key = config.audit_key_file.as_deref().map(|path| {
        let read = StateKey::read(path).map(drop);
        read.map_err(|reason| format!("audit-key-file {}: {reason}", path.display()))
    });
    let audit_log = config.audit_log.as_deref().map(check_audit_log);
    let others = [password, Some(state_key), audit_key, audit_log];
    let volumes = config.volumes.iter().map(volume);
    let others = others.into_iter().flatten().chain(volumes);
    let mut faults = check_reloaded(config);
    faults.extend(others.filter_map(Result::err));
    faults
}

fn volume(volume: &Volume) -> Result<(), String> {
    let Volume::Aio {
        name,
        filename,
        block_size,
        ..
    } = volume
    else {
        return Ok(());
    };
    backend::check_aio_file(filename, *block_size)
        .map_err(|error| format!("volume {name:?}: {error}"))
}

/// Directories that are named. Defaults may be those of another user, who runs the service.
fn directories(config: &Config) -> Vec<String> {
    let named = [
        ("state-dir", &config.state_dir, STATE_DIR),
        ("ctrlr-dir", &config.ctrlr_dir, CTRLR_DIR),
    ];
    named
        .into_iter()
        .filter(|(_, dir, default)| *dir != Path::new(default))
        .filter_map(|(setting, dir, _)| private_dir::check(setting, dir).err())
        .collect()
}

/// What is in the way of sockets; a program that listens on one may be the opi-spdk that runs.
fn sockets(config: &Config) -> Vec<String> {
    named_sockets(config)
        .filter(|(_, path)| !will_be_created(config, path))
        .filter_map(|(setting, path)| {
            let reason = local_socket::occupant(path).err()?;
            Some(format!("{setting} {reason}"))
        })
        .collect()
}

/// The sockets for clients of this machine that settings name, with the settings.
pub fn named_sockets(config: &Config) -> impl Iterator<Item = (&'static str, &PathBuf)> {
    let rpc = config.spdk_rpc.as_ref().map(|rpc| &rpc.socket);
    let sockets = [
        ("listen-uds", config.listen_uds.as_ref()),
        ("spdk-rpc-socket", rpc),
    ];
    sockets
        .into_iter()
        .filter_map(|(setting, path)| Some((setting, path?)))
}

/// Whether the start creates the directory of a socket, which does not exist yet.
pub fn will_be_created(config: &Config, socket: &Path) -> bool {
    let dir = socket.parent();
    dir.is_some_and(|dir| config.creates(dir) && !dir.exists())
}
