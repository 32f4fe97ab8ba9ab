//! Virtual machines with a real Linux: what it attaches of the program's exports, over the network and
//! as devices that KVM mode plugs; and the program inside one, with NVMe devices of its own.
//!
//! Slow, and of many packages: `scripts/test.sh --guest` prepares all and runs them.

#[path = "../common/mod.rs"]
mod common;
mod dpu;
mod network;
mod plug;
mod vm;

use std::path::Path;

use common::{Options, Target};

/// A target with hugepages, which guests share memory with.
async fn target() -> Target {
    Target::start_with(Options::hugepages()).await
}

/// How one is started in KVM mode: the machine's monitor is in `dir`. Its second bus does not exist.
fn kvm_mode(dir: &Path) -> Options {
    let monitor = vm::monitor(dir).display().to_string();
    let buses = format!("{},no.such.bus", vm::BUS);
    Options::hugepages().args(["--kvm", "--qmp-addr", &monitor, "--buses", &buses])
}
