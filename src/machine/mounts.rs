//! Mounts and swap devices.

use super::Machine;

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor` of the device.
    pub device: String,
    /// The mount point.
    pub directory: String,
    /// The file system type.
    pub kind: String,
    /// The mount source, such as `/dev/sda1`.
    pub source: String,
    options: String,
}

impl Mount {
    /// The value of an option, given by its prefix such as `pagesize=`.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options
            .split(',')
            .find_map(|option| option.strip_prefix(name))
    }
}

/// Lists the mounts visible to this process.
pub fn mounts(machine: &Machine) -> Vec<Mount> {
    let text = machine.text("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

/// Lists the mounts of this process and of process 1, which has others where this one is in a container.
pub fn mounts_of_all(machine: &Machine) -> Vec<Mount> {
    let of_first = machine.text("/proc/1/mountinfo").unwrap_or_default();
    let mut all = mounts(machine);
    all.extend(of_first.lines().filter_map(parse));
    all
}

/// Parses a line, see proc(5): a hyphen ends a variable number of fields.
fn parse(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let before: Vec<_> = before.split(' ').collect();
    let mut after = after.split(' ');
    Some(Mount {
        device: (*before.get(2)?).to_owned(),
        directory: before.get(4)?.replace("\\040", " "),
        kind: after.next()?.to_owned(),
        source: after.next()?.to_owned(),
        options: after.next().unwrap_or_default().to_owned(),
    })
}

/// Names of the block devices used for swap.
pub fn swaps(machine: &Machine) -> Vec<String> {
    let text = machine.text("/proc/swaps").unwrap_or_default();
    let lines = text.lines().skip(1);
    lines
        .filter_map(|line| line.split_whitespace().next()?.strip_prefix("/dev/"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_has_its_device_place_kind_source_and_options() {
        let mount = parse(
            "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue",
        )
        .unwrap();
        assert_eq!(mount.device, "98:0");
        assert_eq!(mount.directory, "/mnt 2");
        assert_eq!(
            (mount.kind.as_str(), mount.source.as_str()),
            ("ext3", "/dev/root")
        );
        assert_eq!(mount.option("errors="), Some("continue"));
        assert_eq!(parse("36 35 98:0"), None);
    }
}
