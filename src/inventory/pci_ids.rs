//! Names of PCI vendors, devices and classes, from `pci.ids` (pci.ids(5)).

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

/// Entries of `pci.ids`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// A vendor.
    Vendor(u32),
    /// Vendor and device.
    Device(u32, u32),
    /// Vendor and device, then vendor and device of the subsystem.
    Subsystem(u32, u32, u32, u32),
    /// A class.
    Class(u32),
    /// Class and subclass.
    Subclass(u32, u32),
}

/// Cache of the names of a machine's devices: `pci.ids` is long.
#[derive(Debug, Default)]
pub struct Names {
    /// The list that they are from, if there is one.
    list: Option<Edition>,
    /// `None` for an entry that the list does not have.
    known: HashMap<Key, Option<String>>,
}

/// Identifies a version of a list.
#[derive(Debug, PartialEq, Eq)]
struct Edition {
    path: PathBuf,
    modified: SystemTime,
    bytes: u64,
}

impl Edition {
    /// The first of these paths that is a file.
    fn first(lists: &[PathBuf]) -> Option<Self> {
        lists.iter().find_map(|path| {
            let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
            Some(Self {
                path: path.clone(),
                modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                bytes: metadata.len(),
            })
        })
    }
}

impl Names {
    /// Looks up the names of these entries, in the first list that exists. The list is read again only if it has
    /// changed or a new entry is requested.
    pub fn learn(&mut self, lists: &[PathBuf], keys: impl Iterator<Item = Key>) {
        let list = Edition::first(lists);
        if self.list != list {
            self.known.clear();
            self.list = list;
        }
        let asked = self.known.len();
        for key in keys {
            self.known.entry(key).or_default();
        }
        let Some(list) = self.list.as_ref().filter(|_| self.known.len() > asked) else {
            return;
        };
        match fs::read(&list.path) {
            Ok(bytes) => self.read(&String::from_utf8_lossy(&bytes)),
            // Retried at the next call.
            Err(_) => self.list = None,
        }
    }

    /// Picks the requested names from a list.
    ///
    /// A line is a vendor; indented by one tab, a device of it; by two tabs, a subsystem of that. Or it is `C` and a
    /// class; indented by one tab, a subclass of it.
    fn read(&mut self, list: &str) {
        let mut outer = None;
        let mut device = None;
        for line in list.lines() {
            let rest = line.trim_start_matches('\t');
            let depth = line.len() - rest.len();
            let parsed = match (depth, outer, device) {
                (0, ..) => {
                    device = None;
                    let parsed = top(rest);
                    outer = parsed.map(|(key, _)| key);
                    parsed
                }
                (1, Some(Key::Vendor(vendor)), _) => {
                    let parsed = number(rest);
                    device = parsed.map(|(device, _)| device);
                    parsed.map(|(device, name)| (Key::Device(vendor, device), name))
                }
                (1, Some(Key::Class(class)), _) => {
                    number(rest).map(|(subclass, name)| (Key::Subclass(class, subclass), name))
                }
                (2, Some(Key::Vendor(vendor)), Some(device)) => {
                    number(rest).and_then(|(a, rest)| {
                        let (b, name) = number(rest)?;
                        Some((Key::Subsystem(vendor, device, a, b), name))
                    })
                }
                _ => None,
            };
            if let Some((key, name)) = parsed
                && let Some(slot) = self.known.get_mut(&key)
            {
                *slot = Some(name.to_owned());
            }
        }
    }

    /// The name, if the list has one.
    pub fn known(&self, key: Key) -> Option<&str> {
        self.known.get(&key)?.as_deref()
    }

    /// The name, or the number if the list has none.
    pub fn of(&self, key: Option<Key>) -> String {
        let Some(key) = key else {
            return String::new();
        };
        if let Some(name) = self.known(key) {
            return name.to_owned();
        }
        match key {
            Key::Vendor(id) | Key::Device(_, id) => format!("0x{id:04x}"),
            Key::Subsystem(_, _, vendor, device) => format!("0x{vendor:04x}:0x{device:04x}"),
            Key::Class(id) | Key::Subclass(_, id) => format!("0x{id:02x}"),
        }
    }
}

/// Parses an unindented line: a vendor or a class.
fn top(line: &str) -> Option<(Key, &str)> {
    match line.strip_prefix("C ") {
        Some(class) => number(class).map(|(id, name)| (Key::Class(id), name)),
        None => number(line).map(|(id, name)| (Key::Vendor(id), name)),
    }
}

/// Splits a line into a hexadecimal number and the rest.
fn number(line: &str) -> Option<(u32, &str)> {
    let (digits, rest) = line.split_once(' ')?;
    let id = u32::from_str_radix(digits, 16).ok()?;
    Some((id, rest.trim()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Machine;
    use super::*;

    #[test]
    fn the_first_list_that_is_there_is_read_again_when_it_has_changed() {
        let machine = Machine::new();
        let [first, second] = ["first", "second"].map(|name| machine.path(name));
        let lists = [first, second];
        let mut names = Names::default();
        let mut name = |id: u32| {
            names.learn(&lists, [Key::Vendor(id)].into_iter());
            names.of(Some(Key::Vendor(id)))
        };
        assert_eq!(name(1), "0x0001");
        machine.file("second", "0001  One\n0002  Two\n");
        assert_eq!((name(1), name(2)), ("One".into(), "Two".into()));
        machine.file("second", "0001  Another\n");
        assert_eq!((name(1), name(2)), ("Another".into(), "0x0002".into()));
        machine.file("first", "0002  Other list\n");
        assert_eq!((name(1), name(2)), ("0x0001".into(), "Other list".into()));
    }
}
