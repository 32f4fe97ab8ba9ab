//! Checks the versions of the program and the kernel, and the kernel's clock source.

use super::Level::{Error, Warning};
use super::Report;
use crate::machine::Machine;

/// Oldest kernel that the program is tested on.
const KERNEL: (u32, u32) = (5, 10);

/// Clock sources that are read without a system call.
const FAST_CLOCKS: [&str; 3] = ["tsc", "arch_sys_counter", "kvm-clock"];

pub(super) fn examine(machine: &Machine, report: &mut Report) {
    let program = env!("CARGO_PKG_VERSION");
    report.ok(
        "versions",
        format!(
            "opi-spdk {program} with {}, built for {}",
            spdk::version(),
            spdk::cpu::name()
        ),
    );
    let cpuinfo = machine.text("/proc/cpuinfo").unwrap_or_default();
    let missing = spdk::cpu::missing_features(&cpuinfo);
    if !missing.is_empty() {
        report.add(
            Error,
            "processor",
            format!("it lacks {}", missing.join(", ")),
            "SPDK was built with these features, and does not start without them",
            "SPDK_ARCH=x86-64-v2 scripts/package.sh, or another processor that gcc knows (docs/operations.md)",
        );
    }
    if let Some(release) = machine.text("/proc/sys/kernel/osrelease") {
        match version(&release).is_some_and(|version| version < KERNEL) {
            true => report.add(
                Warning,
                "kernel",
                format!("Linux {release}"),
                "io_uring and vfio of kernels before 5.10 are not tried",
                "apt-get install a kernel of 5.10 or newer",
            ),
            false => report.ok("kernel", format!("Linux {release}")),
        }
    }
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    if let Some(clock) = machine.text(clock) {
        match FAST_CLOCKS.contains(&clock.as_str()) {
            true => report.ok("clock", clock),
            false => report.add(
                Warning,
                "clock",
                format!("the clock source is {clock}"),
                "each look at the time costs a system call or an access to a device, also on a reactor",
                "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource, or boot with tsc=reliable",
            ),
        }
    }
    let flags = machine.field("/proc/cpuinfo", "flags").unwrap_or_default();
    if flags.split(' ').any(|flag| flag == "tsc") && !flags.contains("constant_tsc") {
        report.add(
            Warning,
            "clock",
            "the processor's time stamp counter is not constant",
            "SPDK counts time with it: timeouts and rate limits would drift with the frequency",
            "fix the frequency: cpupower frequency-set -g performance",
        );
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
