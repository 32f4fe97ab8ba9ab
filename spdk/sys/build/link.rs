//! Link instructions for SPDK, DPDK and the libraries that they depend on.
//!
//! SPDK's and DPDK's libraries register themselves in constructors that nothing refers to, so each is linked as a
//! whole archive. Other dependencies are linked as usual, statically if an archive is next to SPDK's.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The packages whose transitive dependencies pkg-config computes.
pub const PACKAGES: [&str; 7] = [
    "spdk_event",
    "spdk_event_bdev",
    "spdk_event_nvmf",
    "spdk_event_keyring",
    "spdk_env_dpdk",
    "spdk_dpdklibs",
    "spdk_syslibs",
];

/// Libraries that pkg-config lists because SPDK's own programs load them, and that nothing here uses. Several are
/// bdev modules that examine every new bdev and claim it if its content looks like theirs (a partition table, a
/// logical volume store, a RAID superblock). The content of an exported volume must never cause that.
const UNUSED: [&str; 30] = [
    "rte_vhost",
    "spdk_accel_ae4dma",
    "spdk_accel_dpdk_compressdev",
    "spdk_accel_dpdk_cryptodev",
    "spdk_accel_dsa",
    "spdk_accel_error",
    "spdk_accel_iaa",
    "spdk_accel_ioat",
    "spdk_ae4dma",
    "spdk_bdev_error",
    "spdk_bdev_ftl",
    "spdk_bdev_gpt",
    "spdk_bdev_lvol",
    "spdk_bdev_passthru",
    "spdk_bdev_raid",
    "spdk_bdev_split",
    "spdk_bdev_uring",
    "spdk_bdev_virtio",
    "spdk_bdev_zone_block",
    "spdk_blob",
    "spdk_blob_bdev",
    "spdk_ftl",
    "spdk_idxd",
    "spdk_ioat",
    "spdk_lvol",
    "spdk_scheduler_dpdk_governor",
    "spdk_scheduler_dynamic",
    "spdk_scheduler_gscheduler",
    "spdk_sock_uring",
    "spdk_virtio",
];

/// Prints cargo's link instructions for pkg-config's `flags`.
pub fn emit(flags: &[String]) -> Result<(), String> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for flag in flags {
        if let Some(dir) = flag.strip_prefix("-L") {
            dirs.push(dir.into());
        } else if let Some(name) = flag.strip_prefix("-l") {
            names.push(name.to_owned());
        } else if flag.ends_with(".a") {
            // A few .pc files name an archive of the build tree by its path.
            let (dir, name) = archive(Path::new(flag))
                .ok_or_else(|| format!("pkg-config names {flag}, which is not lib<name>.a"))?;
            dirs.push(dir);
            names.push(name);
        } else if flag != "-pthread" && !flag.starts_with("-Wl,") {
            return Err(format!("pkg-config gives {flag}, which is not understood"));
        }
    }
    let mut seen = HashSet::new();
    dirs.retain(|dir| seen.insert(dir.clone()));
    for dir in &dirs {
        println!("cargo:rustc-link-search=native={}", dir.display());
    }

    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()) && !UNUSED.contains(&name.as_str()));
    let (whole, called): (Vec<String>, Vec<String>) = names
        .into_iter()
        .partition(|name| name.starts_with("spdk_") || name.starts_with("rte_"));
    // Link order is callers before callees: SPDK's and DPDK's archives, the archives that those need, system
    // libraries.
    let (archived, system): (Vec<String>, Vec<String>) = called.into_iter().partition(|name| {
        let file = format!("lib{name}.a");
        dirs.iter()
            .any(|dir| dir.join(&file).is_file() && !is_system(dir))
    });
    for name in whole {
        println!("cargo:rustc-link-lib=static:+whole-archive,-bundle={name}");
    }
    for name in archived {
        println!("cargo:rustc-link-lib=static:-bundle={name}");
    }
    for name in system {
        println!("cargo:rustc-link-lib=dylib={name}");
    }
    Ok(())
}

fn archive(path: &Path) -> Option<(PathBuf, String)> {
    let name = path.file_stem()?.to_str()?.strip_prefix("lib")?;
    Some((path.parent()?.to_owned(), name.to_owned()))
}

fn is_system(dir: &Path) -> bool {
    ["/usr/lib", "/lib", "/usr/local/lib64", "/usr/lib64"]
        .iter()
        .any(|system| dir.starts_with(system))
}
