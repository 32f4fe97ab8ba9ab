//! VMs with a real Linux guest: it attaches the program's exports over the network and as devices
//! plugged in KVM mode; and the program runs inside a VM with its own NVMe devices.
//!
//! The tests are slow and need many packages: `scripts/test.sh --guest` prepares everything and runs
//! them.

mod auth;
mod auth_relay;
mod auth_rotation;
#[path = "../common/mod.rs"]
mod common;
mod dpu;
mod network;
mod plug;
mod vm;

use std::path::Path;

use common::{Options, Target};

/// Starts a target with hugepages, which it shares with guests.
async fn target() -> Target {
    Target::start_with(Options::hugepages()).await
}

/// Returns the options of KVM mode: the VM's monitor is in `dir`, and its second bus does not exist.
fn kvm_mode(dir: &Path) -> Options {
    let monitor = vm::monitor(dir).display().to_string();
    let buses = format!("{},no.such.bus", vm::BUS);
    Options::hugepages().args(["--kvm", "--qmp-addr", &monitor, "--buses", &buses])
}
