//! Access to the sockets of vfio-user and vhost-user controllers: the settings `socket-group` and `socket-mode`, for a
//! QEMU that does not run as root. Without them only the owner may open a socket.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Gid, chown};

/// The list of groups.
const GROUPS: &str = "/etc/group";

/// Default mode if only a group is set.
const GROUP_MODE: u32 = 0o660;

/// The settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketAccess {
    group: Option<u32>,
    mode: Option<u32>,
}

impl SocketAccess {
    /// Parses both settings.
    ///
    /// # Errors
    /// The setting, and what would be right.
    pub fn parse(group: Option<&str>, mode: Option<&str>) -> Result<Self, (&'static str, String)> {
        let group = group
            .map(|group| gid_of(group).map_err(|reason| ("socket-group", reason)))
            .transpose()?;
        let mode = mode
            .map(|mode| mode_of(mode).map_err(|reason| ("socket-mode", reason)))
            .transpose()?;
        Ok(Self {
            group,
            mode: mode.or(group.map(|_| GROUP_MODE)),
        })
    }

    /// The group, if one is set.
    pub fn group(&self) -> Option<u32> {
        self.group
    }

    /// The mode, if one is set.
    pub fn mode(&self) -> Option<u32> {
        self.mode
    }

    /// Sets the group and mode of a socket.
    ///
    /// # Errors
    /// The kernel's error, with the setting.
    pub fn apply(&self, socket: &Path) -> Result<(), String> {
        self.set_group(socket)?;
        match self.mode {
            Some(mode) => set_mode(socket, mode),
            None => Ok(()),
        }
    }

    /// Sets group and mode of a directory so that those who may open a socket in it can traverse it.
    ///
    /// # Errors
    /// See [`apply`](Self::apply).
    pub fn admit(&self, dir: &Path) -> Result<(), String> {
        let Some(mode) = self.mode else { return Ok(()) };
        self.set_group(dir)?;
        let about = std::fs::metadata(dir)
            .map_err(|error| format!("socket-mode: {}: {error}", dir.display()))?;
        let now = about.permissions().mode() & 0o7777;
        set_mode(dir, now | traverse_bits(mode))
    }

    fn set_group(&self, path: &Path) -> Result<(), String> {
        let Some(group) = self.group else {
            return Ok(());
        };
        chown(path, None, Some(Gid::from_raw(group)))
            .map_err(|error| format!("socket-group: {}: {error}", path.display()))
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), String> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| format!("socket-mode: {}: {error}", path.display()))
}

/// The traverse permission (x) for each class that has any permission on the socket.
fn traverse_bits(mode: u32) -> u32 {
    [0o700, 0o070, 0o007]
        .into_iter()
        .filter(|class| mode & class != 0)
        .map(|class| class & 0o111)
        .sum()
}

fn mode_of(text: &str) -> Result<u32, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match u32::from_str_radix(text, 8) {
        // Connecting to a socket requires write permission.
        Ok(mode) if digits && mode <= 0o777 && mode & 0o600 == 0o600 => Ok(mode),
        _ => Err(format!(
            "{text:?} is not an octal mode with which the owner may read and write, such as 0660"
        )),
    }
}

fn gid_of(text: &str) -> Result<u32, String> {
    if let Ok(gid) = text.parse() {
        return Ok(gid);
    }
    let groups = std::fs::read_to_string(GROUPS).map_err(|error| format!("{GROUPS}: {error}"))?;
    gid_in(&groups, text)
        .ok_or_else(|| format!("{text:?} is neither a number nor a group of {GROUPS}"))
}

/// The number of a group, from text in the form of group(5).
fn gid_in(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name);
        is_it.then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_group_is_a_number_or_has_one() {
        let groups = "root:x:0:\nkvm:x:104:qemu,libvirt\nbroken\n";
        assert_eq!(gid_in(groups, "kvm"), Some(104));
        assert_eq!(gid_in(groups, "qemu"), None);
        assert_eq!(gid_in(groups, "broken"), None);
        assert_eq!(gid_of("107"), Ok(107));
        assert!(gid_of("no such group").is_err_and(|reason| reason.contains("no such group")));
    }

    #[test]
    fn a_mode_is_octal_and_keeps_the_owner_in() {
        for (text, mode) in [("0660", 0o660), ("600", 0o600), ("777", 0o777)] {
            assert_eq!(mode_of(text), Ok(mode));
        }
        for text in [
            "",
            "rw",
            "0o660",
            "060",
            "1777",
            "888",
            "+660",
            "-1",
            "99999999999",
        ] {
            assert!(mode_of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_group_alone_opens_sockets_to_it() {
        let access = SocketAccess::parse(Some("0"), None);
        let mode = access.map(|access| access.mode);
        assert_eq!(mode, Ok(Some(0o660)));
        let none = SocketAccess::parse(None, None);
        assert_eq!(none, Ok(SocketAccess::default()));
        let wrong = SocketAccess::parse(None, Some("x")).map_err(|(setting, _)| setting);
        assert_eq!(wrong, Err("socket-mode"));
    }

    #[test]
    fn sockets_and_their_directories_get_what_is_set() {
        let dir = tempfile::tempdir().unwrap();
        set_mode(dir.path(), 0o700).unwrap();
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let group = std::fs::metadata(&socket).unwrap().gid().to_string();
        let access = SocketAccess::parse(Some(&group), Some("0620")).unwrap();
        access.apply(&socket).unwrap();
        access.admit(dir.path()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&socket), 0o620);
        assert_eq!(mode(dir.path()), 0o710);
        SocketAccess::default().apply(&socket).unwrap();
        SocketAccess::default().admit(dir.path()).unwrap();
        assert_eq!((mode(&socket), mode(dir.path())), (0o620, 0o710));
        let gone = access.apply(&dir.path().join("gone")).unwrap_err();
        assert!(gone.starts_with("socket-group: "), "{gone}");
    }
}
