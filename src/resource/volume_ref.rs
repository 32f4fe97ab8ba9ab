//! `volume_name_ref`: how one resource names the volume that it stands on.

use std::borrow::Cow;

use super::{Claims, Key, volume_names};

/// A volume that somebody refers to. Whether its bdev exists is for SPDK to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRef<'a> {
    bdev: Cow<'a, str>,
    /// The resource that must exist, where its kind was named.
    resource: Option<String>,
}

impl<'a> VolumeRef<'a> {
    /// Reads `volumes/ID`, a name in its typed form (`nullVolumes/ID`, a remote namespace's name),
    /// or the raw name of a bdev, its UUID or an alias, which may have slashes in it (`lvs/lvol`), in
    /// place of an ID. What is no volume is none, although its ID may be one's.
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
        // A typed name is one of the API's.
        let bdev = match (&resource, Self::unknown(text)) {
            (None, Some(name)) => match volume_names::meant_by(name) {
                Some(own) => Cow::Owned(own),
                None => Cow::Borrowed(name),
            },
            _ => Cow::Borrowed(*parts.last().unwrap_or(&text)),
        };
        Ok(Self { bdev, resource })
    }

    /// The name in `volume_name_ref` of which only SPDK may know what it means.
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

    /// The bdev's name.
    pub fn bdev(&self) -> &str {
        &self.bdev
    }

    /// Adds that the volume is taken for data.
    pub fn taken_in(&self, claims: Claims) -> Claims {
        self.needed_in(claims.takes(Key::bdev(&self.bdev)))
    }

    /// Adds that the volume is referred to, beside others.
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

/// What names of resources that are no volumes begin with, and keys of other name spaces.
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

/// What the keys of remote bdevs begin with.
const SPACE: &str = "remote bdevs/";

/// What stands for all bdevs that a remote controller brings: it owns this, and who uses one of
/// them uses this. Nobody else can own a bdev with such a name: SPDK would leave the controller's out,
/// and who refers to it would get another's data.
pub fn remote_bdevs(controller: &str) -> Key {
    Key::from(format!("{SPACE}{controller}"))
}

/// The remote bdevs that the bdev of this key would be one of.
pub(super) fn remote_space(key: &Key) -> Option<Key> {
    let bdev = key.as_str().strip_prefix("bdev/")?;
    remote_controller(bdev).map(remote_bdevs)
}

/// The remote controller that a bdev of this name would be of: namespace 1 of `x` is `xn1`.
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
