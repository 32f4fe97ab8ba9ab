//! `opi-spdk setup`: prepares the machine and undoes it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use spdk::cores::CoreSet;

use super::print;
use crate::machine::pci::Address;
use crate::machine::{Machine, hugepages};
use crate::setup::{self, DeviceName, Pages, Step, Wanted};

/// Value for fs.aio-max-nr: room for about 8,000 queues of aio volumes.
const AIO: u64 = 1 << 20;

/// `opi-spdk setup`.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "What is there already is left as it is: a second run does nothing. All of it lasts until the \
                  machine restarts; opi-spdk-setup.service runs it at each start. A device that is mounted, held \
                  or up is never taken."
)]
pub struct Args {
    /// Hugepages to reserve at least: in total on the nodes of --cores (1024), or per node (node0=512,node1=512)
    #[arg(long, value_name = "PAGES")]
    hugepages: Option<Pages>,
    /// Size of these pages
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = page_size)]
    page_size: u64,
    /// The reactors' cores, whose NUMA nodes get the pages
    #[arg(
        long,
        value_name = "LIST",
        default_value = "0",
        value_parser = crate::config::cores::parse
    )]
    cores: CoreSet,
    /// Devices to bind to a userspace driver: PCI addresses, or paths of NVMe disks (/dev/disk/by-id/nvme-...)
    #[arg(long, value_name = "DEVICE,...", value_delimiter = ',')]
    bind: Vec<DeviceName>,
    /// The userspace driver
    #[arg(long, value_name = "DRIVER", default_value = "vfio-pci", value_parser = ["vfio-pci", "uio_pci_generic"])]
    driver: String,
    /// Devices to return to the kernel's driver
    #[arg(long, value_name = "DEVICE,...", value_delimiter = ',')]
    release: Vec<DeviceName>,
    /// Time to wait for named devices that do not exist yet, as at boot
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        overrides_with = "wait"
    )]
    wait: u16,
    /// Raise the kernel's limit fs.aio-max-nr
    #[arg(long)]
    limits: bool,
    /// Undo everything that setup has done since the machine booted
    #[arg(long, conflicts_with_all = ["hugepages", "bind", "release", "limits"])]
    undo: bool,
    /// Show the commands without running them
    #[arg(long)]
    dry_run: bool,
    /// Directory to read and write the machine's files in
    #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

fn page_size(text: &str) -> Result<u64, String> {
    hugepages::kib(text).ok_or(format!("{text:?} is no size of a page, such as 2M or 1G"))
}

/// Runs the subcommand.
///
/// # Errors
/// The first step that is not allowed or fails.
pub fn run(args: Args) -> Result<ExitCode, String> {
    let machine = Machine::at(args.root);
    let tell = |step: &Step| {
        let _ = print(&format!("{step}\n"));
    };
    if args.undo {
        let say = |line: &str| drop(print(&format!("{line}\n")));
        return undo(&machine, args.dry_run, say).map(|()| ExitCode::SUCCESS);
    }
    let wait = Duration::from_secs(args.wait.into());
    let resolve = |names: Vec<DeviceName>| -> Result<Vec<(DeviceName, Address)>, String> {
        let resolved = names.into_iter().map(|name| {
            let address = name.resolve_within(&machine, wait)?;
            Ok((name, address))
        });
        resolved.collect()
    };
    let (bind, release) = (resolve(args.bind)?, resolve(args.release)?);
    let addresses = |named: &[(DeviceName, Address)]| {
        named.iter().map(|(_, address)| address.clone()).collect()
    };
    let wanted = Wanted {
        pages: args.hugepages,
        page_kib: args.page_size,
        cores: args.cores,
        bind: addresses(&bind),
        driver: args.driver,
        release: addresses(&release),
        aio: args.limits.then_some(AIO),
    };
    let steps = setup::plan(&machine, &wanted)?;
    match args.dry_run {
        true => steps.iter().for_each(tell),
        false => {
            setup::apply(&machine, &bind, &steps, tell)?;
            for remark in steps.iter().filter_map(|step| step.remark(&machine)) {
                print(&format!("# {remark}\n"))?;
            }
        }
    }
    if steps.is_empty() {
        print("nothing to do\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn undo(machine: &Machine, dry: bool, mut say: impl FnMut(&str)) -> Result<(), String> {
    let mut told = false;
    setup::undo(machine, dry, |step| {
        told = true;
        say(&step.to_string());
    })?;
    if !told {
        say("nothing to undo");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tree::Tree;

    #[test]
    fn an_undo_says_so_when_there_is_nothing_to_undo() {
        let tree = Tree::new();
        tree.dir("/run");
        let said = |dry| {
            let mut lines = Vec::new();
            undo(&tree.machine(), dry, |line| lines.push(line.to_owned())).unwrap();
            lines
        };
        for dry in [true, false] {
            assert_eq!(said(dry), ["nothing to undo"]);
        }
        let file = "/proc/sys/fs/aio-max-nr";
        tree.write(file, "1");
        let value = 2;
        let file = file.to_owned();
        setup::apply(&tree.machine(), &[], &[Step::Set { file, value }], |_| {}).unwrap();
        assert_eq!(said(false), ["echo 1 > /proc/sys/fs/aio-max-nr"]);
    }
}
