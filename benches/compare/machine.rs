//! The machine of the run, and the assignment of its cores.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use spdk::cores::CoreSet;

/// Assignment of cores. With two cores the load shares one with the control threads.
#[derive(Debug, Clone)]
pub struct Cores {
    /// Reactor of the target under test.
    pub target: CoreSet,
    /// Both reactors of a target with two, if there is a core for the second.
    pub two: Option<CoreSet>,
    /// fio, spdk_nvme_perf.
    pub load: CoreSet,
    /// The remote target.
    pub remote: CoreSet,
    /// Control threads of opi-spdk, the floor, and the clients of both and of JSON-RPC.
    pub control: CoreSet,
    /// `target` and `control`: the affinity of a target process, which divides it among its threads.
    pub process: CoreSet,
}

impl Cores {
    /// Assigns the first core to the target, the second to the load and the rest to control, unless given. The last
    /// control core also has the remote target, and, if it is not the load's, the second reactor of a target with two.
    pub fn divide(
        target: Option<CoreSet>,
        load: Option<CoreSet>,
        control: Option<CoreSet>,
        second: Option<CoreSet>,
    ) -> Result<Self> {
        let allowed = CoreSet::allowed().context("cores of this process")?;
        let one = |from: Option<CoreSet>| from.and_then(|set| set.iter().next());
        let single = |core: usize| core.to_string().parse::<CoreSet>();
        let target = match target {
            Some(set) => set,
            None => single(one(Some(allowed.clone())).context("no core")?)?,
        };
        let beside = allowed.without(&target);
        let load = match (load, one(beside.clone())) {
            (Some(set), _) => set,
            (None, Some(core)) => single(core)?,
            (None, None) => bail!(
                "two cores are needed, one for the target and one for the load; this process may use {allowed}"
            ),
        };
        let rest = beside.and_then(|set| set.without(&load));
        let control = control.or(rest).unwrap_or_else(|| load.clone());
        let last = single(control.iter().last().context("no control core")?)?;
        let second = second.or_else(|| (last != load).then(|| last.clone()));
        let two = second.map(|second| format!("{target},{second}").parse::<CoreSet>());
        let process = format!("{target},{control}").parse()?;
        Ok(Self {
            target,
            two: two.transpose()?,
            load,
            remote: last,
            control,
            process,
        })
    }

    /// The affinity of a target process with these reactors.
    pub fn of_target(&self, reactors: &CoreSet) -> CoreSet {
        let with = reactors.iter().chain(self.process.iter());
        let list: Vec<_> = with.map(|core| core.to_string()).collect();
        list.join(",")
            .parse()
            .unwrap_or_else(|_| self.process.clone())
    }
}

/// The machine, as far as it determines the results.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub date: String,
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    pub memory_gib: f64,
    pub hypervisor: bool,
    pub spdk: String,
    pub fio: String,
    pub load_average: String,
}

impl Machine {
    pub fn read(spdk_tgt: &Path) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
        let cpuinfo = read("/proc/cpuinfo")?;
        let line = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key));
            let value = line
                .and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim());
            value.unwrap_or_default().to_owned()
        };
        let meminfo = read("/proc/meminfo")?;
        let kib: f64 = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.split_whitespace().next())
            .context("MemTotal in /proc/meminfo")?
            .parse()?;
        Ok(Self {
            date: first_line("date", &["-u", "+%Y-%m-%d"])?,
            cpu: line("model name"),
            cores: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            memory_gib: kib / 1024.0 / 1024.0,
            hypervisor: line("flags").split(' ').any(|flag| flag == "hypervisor"),
            spdk: first_line(spdk_tgt, &["--version"])?,
            fio: first_line("fio", &["--version"])?,
            load_average: read("/proc/loadavg")?.trim().to_owned(),
        })
    }
}

/// The first line that a command prints.
fn first_line(program: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
    let program = program.as_ref();
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    Ok(line.trim().to_owned())
}

/// Time stolen by the hypervisor, summed over all cores, in ticks of 10 ms.
pub fn stolen_ticks() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let steal = stat
        .lines()
        .next()
        .and_then(|line| line.split_whitespace().nth(8));
    Ok(steal.context("steal time in /proc/stat")?.parse()?)
}
