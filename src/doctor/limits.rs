//! Checks limits of the process and of the kernel.

use super::Level::{Error, Warning};
use super::Report;
use crate::config::{Config, Volume};
use crate::machine::{Machine, pci};

/// Open files besides connections.
const FILES: u64 = 1024;

/// Events that SPDK's AIO module requests from the kernel per volume and reactor.
const AIO_EVENTS: u64 = 128;

/// Headroom: AIO volumes beyond those of the configuration.
const AIO_VOLUMES: u64 = 64;

/// CAP_IPC_LOCK, which lifts the limit of locked memory.
const IPC_LOCK: u32 = 14;

pub(super) fn examine(machine: &Machine, config: &Config, report: &mut Report) {
    if let Some(most) = limit(machine, "Max open files") {
        let needed = config.max_connections as u64 * 2 + FILES;
        match most < needed {
            true => report.add(
                Warning,
                "open files",
                format!("at most {most}, and up to {needed} are needed"),
                "beyond it connections are refused and sockets for virtual machines cannot be made",
                "ulimit -n 65536 (LimitNOFILE= of the unit, --ulimit nofile= of the container)",
            ),
            false => report.ok("open files", format!("at most {most}")),
        }
    }
    memlock(machine, config, report);
    aio(machine, config, report);
}

/// A soft limit from `/proc/self/limits`; `u64::MAX` if unlimited.
fn limit(machine: &Machine, name: &str) -> Option<u64> {
    let text = machine.text("/proc/self/limits")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn memlock(machine: &Machine, config: &Config, report: &mut Report) {
    let Some(most) = limit(machine, "Max locked memory") else {
        return;
    };
    let needed = u64::from(config.mem_mib) << 20;
    let capabilities = machine.field("/proc/self/status", "CapEff");
    let capabilities = capabilities.and_then(|text| u64::from_str_radix(&text, 16).ok());
    let may_lock = capabilities.is_some_and(|bits| bits >> IPC_LOCK & 1 == 1);
    let devices = pci::devices(machine);
    let vfio = devices
        .iter()
        .filter(|device| device.driver(machine).as_deref() == Some("vfio-pci"))
        .count();
    if most >= needed || may_lock {
        report.ok(
            "memlock",
            if may_lock {
                "no limit (CAP_IPC_LOCK)".into()
            } else {
                format!("{} MiB", most >> 20)
            },
        );
        return;
    }
    report.add(
        if vfio > 0 { Error } else { Warning },
        "memlock",
        format!("{} KiB may be locked, and devices on vfio need {} MiB", most >> 10, config.mem_mib),
        "vfio locks all memory that a device may reach",
        "ulimit -l unlimited (LimitMEMLOCK=infinity of the unit, --ulimit memlock=-1 of the container)",
    );
}

fn aio(machine: &Machine, config: &Config, report: &mut Report) {
    let Some(most) = machine.number("/proc/sys/fs/aio-max-nr") else {
        return;
    };
    let used = machine.number("/proc/sys/fs/aio-nr").unwrap_or(0);
    let each = AIO_EVENTS * config.cores.iter().count() as u64;
    let configured = config
        .volumes
        .iter()
        .filter(|volume| matches!(volume, Volume::Aio { .. }))
        .count() as u64;
    let left = most.saturating_sub(used) / each;
    let fix = || {
        format!(
            "sysctl -w fs.aio-max-nr={}",
            (1 << 20).max(used + (configured + AIO_VOLUMES) * each)
        )
    };
    let what = format!(
        "fs.aio-max-nr {most}, {used} used: room for {left} aio volumes with these reactors"
    );
    let why = "an aio volume past it cannot be created (EAGAIN)";
    match left {
        _ if left < configured => report.add(Error, "aio", what, why, fix()),
        _ if left < configured + AIO_VOLUMES => report.add(Warning, "aio", what, why, fix()),
        _ => report.ok("aio", what),
    }
}
