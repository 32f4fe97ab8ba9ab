//! `volume_name_ref`: reference of a resource to its backing volume.

use std::borrow::Cow;

use super::{Claims, Key, volume_names};

/// A reference to a volume. Does not say whether the bdev exists; only SPDK knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRef<'a> {
    bdev: Cow<'a, str>,
    /// Typed name of the resource that must exist, where the reference is typed.
    resource: Option<String>,
}

impl<'a> VolumeRef<'a> {
    /// Parses `volumes/ID`, a typed name (`nullVolumes/ID`, the name of a remote namespace), or, in place of an
    /// ID, the raw name of a bdev, its UUID or an alias, which may contain slashes (`lvs/lvol`). The name of a
    /// resource of another kind is refused, even if its ID is also the ID of a volume.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let resource = match parts.as_slice() {
            [_] | ["volumes", _] => None,
            [collection, _] if collection.ends_with("Volumes") => Some(text.to_owned()),
            [
                "nvmeRemoteControllers",
                controller,
                "nvmeRemoteNamespaces",
                bdev,
            ] if remote_controller(bdev) == Some(controller) => {
                Some(format!("nvmeRemoteControllers/{controller}"))
            }
            _ if Self::unknown(text).is_some() => None,
            _ => return Err(wrong(text)),
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(wrong(text));
        }
        // A typed name is a resource's and is never resolved as an alias.
        let bdev = match (&resource, Self::unknown(text)) {
            (None, Some(name)) => match volume_names::meant_by(name) {
                Some(own) => Cow::Owned(own),
                None => Cow::Borrowed(name),
            },
            _ => Cow::Borrowed(*parts.last().unwrap_or(&text)),
        };
        Ok(Self { bdev, resource })
    }

    /// Returns the name in a `volume_name_ref` that may be an alias known to SPDK alone.
    pub(super) fn unknown(text: &str) -> Option<&str> {
        let name = text.strip_prefix("volumes/").unwrap_or(text);
        let is_ours = match name.split_once('/') {
            None => false,
            Some((collection, _)) => {
                collection.ends_with("Volumes") || OTHERS.contains(&collection)
            }
        };
        (!is_ours && name.split('/').all(|part| !part.is_empty())).then_some(name)
    }

    /// Returns the name of the bdev.
    pub fn bdev(&self) -> &str {
        &self.bdev
    }

    /// Adds the claim to use the volume exclusively for I/O.
    pub fn taken_in(&self, claims: Claims) -> Claims {
        self.needed_in(claims.takes(Key::bdev(&self.bdev)))
    }

    /// Adds the claim to share the volume with other users.
    pub fn shared_in(&self, claims: Claims) -> Claims {
        self.needed_in(claims.shares(Key::bdev(&self.bdev)))
    }

    fn needed_in(&self, claims: Claims) -> Claims {
        let claims = match &self.resource {
            Some(resource) => claims.needs(resource.as_str()),
            None => claims,
        };
        match remote_controller(&self.bdev) {
            Some(controller) => claims.shares(remote_bdevs(controller)),
            None => claims,
        }
    }
}

/// Collections of resources that are not volumes, and prefixes of other key spaces.
const OTHERS: [&str; 9] = [
    "volumes",
    "nvmeSubsystems",
    "nvmeRemoteControllers",
    "virtioBlks",
    "virtioScsiTargets",
    "virtioScsiControllers",
    "virtioScsiLuns",
    "bdev",
    "uuid",
];

/// Prefix of the keys of remote bdevs.
const SPACE: &str = "remote bdevs/";

/// Returns the key that represents all bdevs of a remote controller. The controller owns this key, and every
/// user of one of its bdevs uses it. No other object can own a bdev with such a name: SPDK would leave out the
/// controller's bdev, and its users would get the data of the other one.
pub fn remote_bdevs(controller: &str) -> Key {
    Key::from(format!("{SPACE}{controller}"))
}

/// Returns the key of the remote bdevs to which the bdev with this key would belong.
pub(super) fn remote_space(key: &Key) -> Option<Key> {
    let bdev = key.as_str().strip_prefix("bdev/")?;
    remote_controller(bdev).map(remote_bdevs)
}

/// Returns the remote controller to which a bdev of this name would belong: `xn1` is namespace 1 of `x`.
fn remote_controller(bdev: &str) -> Option<&str> {
    let controller = bdev.trim_end_matches(|c: char| c.is_ascii_digit());
    let controller = controller.strip_suffix('n').filter(|id| !id.is_empty())?;
    bdev.ends_with(|c: char| c.is_ascii_digit())
        .then_some(controller)
}

fn wrong(text: &str) -> String {
    format!(
        "{text:?} is not the name of a volume: volumes/ID, its typed form such as nullVolumes/ID, a \
         remote namespace's name, or the name, UUID or alias of a bdev"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_a_volumes_name_mean_its_bdev() {
        for text in ["volumes/a", "nullVolumes/a", "a"] {
            assert_eq!(VolumeRef::parse(text).unwrap().bdev(), "a", "{text}");
        }
        for text in ["lvs/lvol", "volumes/lvs/lvol"] {
            assert_eq!(VolumeRef::parse(text).unwrap().bdev(), "lvs/lvol", "{text}");
        }
        for text in [
            "",
            "/",
            "volumes/",
            "/a",
            "a//b",
            "nullVolumes/a/b",
            "volumes/volumes/a",
        ] {
            assert!(VolumeRef::parse(text).unwrap_err().contains(text), "{text}");
        }
        for text in ["nvmeSubsystems/a", "virtioBlks/a", "bdev/a", "uuid/a"] {
            assert!(VolumeRef::parse(text).unwrap_err().contains(text), "{text}");
        }
    }

    #[test]
    fn a_uuid_means_the_volume_that_has_it_in_either_form() {
        let uuid = "6b4e28ba-2fa1-11d2-883f-b9a761bde3fb";
        volume_names::note(uuid, "own");
        let short = uuid.replace('-', "").to_uppercase();
        for text in [uuid.to_owned(), format!("volumes/{uuid}"), short] {
            assert_eq!(VolumeRef::parse(&text).unwrap().bdev(), "own", "{text}");
        }
        volume_names::note("lvs/known", "own");
        for text in ["lvs/known", "volumes/lvs/known"] {
            assert_eq!(VolumeRef::parse(text).unwrap().bdev(), "own", "{text}");
        }
        let typed = format!("nullVolumes/{uuid}");
        assert_eq!(VolumeRef::parse(&typed).unwrap().bdev(), uuid);
    }

    #[test]
    fn a_remote_namespace_is_used_together_with_its_controller() {
        let plain = VolumeRef::parse("nvme-12n1")
            .unwrap()
            .taken_in(Claims::new());
        let claims = Claims::new()
            .takes(Key::bdev("nvme-12n1"))
            .shares(remote_bdevs("nvme-12"));
        assert_eq!(plain, claims);
        let name = "nvmeRemoteControllers/nvme-12/nvmeRemoteNamespaces/nvme-12n1";
        let named = VolumeRef::parse(name).unwrap().taken_in(Claims::new());
        assert_eq!(named, claims.needs("nvmeRemoteControllers/nvme-12"));
        let other = "nvmeRemoteControllers/other/nvmeRemoteNamespaces/nvme-12n1";
        assert!(VolumeRef::parse(other).is_err());
        for none in ["Malloc0", "n1", "nvme12n", "volume"] {
            assert_eq!(remote_controller(none), None, "{none}");
        }
    }

    #[test]
    fn a_typed_name_needs_the_resource() {
        let claims = VolumeRef::parse("nullVolumes/a")
            .unwrap()
            .taken_in(Claims::new());
        assert_eq!(
            claims,
            Claims::new().takes(Key::bdev("a")).needs("nullVolumes/a")
        );
        let claims = VolumeRef::parse("volumes/a")
            .unwrap()
            .shared_in(Claims::new());
        assert_eq!(claims, Claims::new().shares(Key::bdev("a")));
    }
}
