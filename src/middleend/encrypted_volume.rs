//! EncryptedVolume: AES-XTS between a volume and its users, with ciphertext on the volume below. The bdev has the key
//! in memory only.

use spdk::bdev::{self, crypto};
use spdk::{Handle, Spdk, errno};

use crate::api::storage::{EncryptedVolume, EncryptionType, VolumeStats};
use crate::backend::{check_stays, stats_if, volume_at_fault};
use crate::error::{Error, Violations};
use crate::resource::volume_ref::VolumeRef;
use crate::resource::{CallContext, Change, Claims, Key, Kind, Name, Stage};

/// The kind.
pub struct EncryptedVolumes {
    spdk: Handle,
}

impl EncryptedVolumes {
    /// Creates the kind for volumes of this SPDK.
    pub fn new(spdk: Handle) -> Self {
        Self { spdk }
    }
}

impl Kind for EncryptedVolumes {
    type Object = EncryptedVolume;

    const STAGE: Stage = Stage::Layer;

    fn check(&self, object: &EncryptedVolume, violations: &mut Violations) {
        check(object, violations);
    }

    fn claims(&self, name: &Name, object: &EncryptedVolume) -> Claims {
        let claims = Claims::new().owns(Key::bdev(name.id()));
        match VolumeRef::parse(&object.volume_name_ref) {
            Ok(volume) => volume.taken_in(claims),
            Err(_) => claims,
        }
    }

    fn volume_ref<'a>(&self, object: &'a EncryptedVolume) -> Option<&'a str> {
        Some(&object.volume_name_ref)
    }

    async fn ensure(
        &self,
        _: &CallContext,
        name: &Name,
        object: EncryptedVolume,
    ) -> Result<EncryptedVolume, Error> {
        let is_known = !object.name.is_empty();
        let recipe = recipe(name, &object)?;
        let made = self.spdk.call(async move |spdk| {
            // SPDK recreates a bdev itself after its base returned.
            if is_known && bdev::lookup(spdk, &recipe.name)?.is_some() {
                return check_stays(spdk, &recipe.name);
            }
            make(spdk, recipe).await
        });
        made.await?
            .map_err(|error| volume_at_fault("volume_name_ref", &object.volume_name_ref, error))?;
        Ok(object)
    }

    /// Another key or cipher changes the content, so the volume must not be in use.
    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        change: Change<EncryptedVolume>,
    ) -> Result<EncryptedVolume, Error> {
        change.unused(name)?;
        let (old, new) = (recipe(name, &change.old)?, recipe(name, &change.wanted)?);
        let rebuilt = self.spdk.call(move |spdk| async move {
            // Checked before the old bdev is deleted, which could not be recreated without a base.
            if bdev::lookup(spdk, &new.base)?.is_none() {
                let error = spdk::Error::new("encrypt volume", errno::ENODEV);
                return Err(error.with_detail(format!("there is no bdev {:?}", new.base)));
            }
            remove(spdk, &old.name).await?;
            match make(spdk, new).await {
                Err(error) => Err(error.after_undo(make(spdk, old).await)),
                made => made,
            }
        });
        rebuilt.await?.map_err(|error| {
            volume_at_fault("volume_name_ref", &change.wanted.volume_name_ref, error)
        })?;
        Ok(change.wanted)
    }

    /// The bdev: it may have the other key, and is made again.
    async fn withdraw(
        &self,
        call: &CallContext,
        name: &Name,
        back: &Change<EncryptedVolume>,
    ) -> Result<(), Error> {
        back.unused(name)?;
        self.remove(call, name, &back.old).await
    }

    async fn remove(&self, _: &CallContext, name: &Name, _: &EncryptedVolume) -> Result<(), Error> {
        let name = name.id().to_owned();
        let removed = self
            .spdk
            .call(move |spdk| async move { remove(spdk, &name).await });
        Ok(removed.await??)
    }

    async fn stats(&self, name: &Name, _: &EncryptedVolume) -> Result<VolumeStats, Error> {
        let id = name.id().to_owned();
        let replaced = self.spdk.call(async move |spdk| is_replaced(spdk, &id));
        stats_if(!replaced.await??, &self.spdk, name.id().to_owned()).await
    }

    fn hide_secrets(object: &mut EncryptedVolume) {
        object.key.clear();
    }
}

fn check(object: &EncryptedVolume, violations: &mut Violations) {
    if let Err(reason) = VolumeRef::parse(&object.volume_name_ref) {
        violations.add("volume_name_ref", reason);
    }
    let length = match object.cipher() {
        EncryptionType::AesXts128 => 32,
        EncryptionType::AesXts256 => 64,
        other => {
            violations.add(
                "cipher",
                format!(
                    "{} is not served: ENCRYPTION_TYPE_AES_XTS_128 or ENCRYPTION_TYPE_AES_XTS_256",
                    other.as_str_name()
                ),
            );
            return;
        }
    };
    let (first, second) = object.key.split_at(object.key.len() / 2);
    if object.key.len() != length {
        let (given, cipher) = (object.key.len(), object.cipher().as_str_name());
        violations.add(
            "key",
            format!("it has {given} bytes: {cipher} needs {length}"),
        );
    } else if first == second {
        violations.add(
            "key",
            "its two halves are the same: XTS needs two different keys",
        );
    }
}

/// Parameters of a validated volume's bdev.
fn recipe(name: &Name, object: &EncryptedVolume) -> Result<crypto::Options, Error> {
    let volume = VolumeRef::parse(&object.volume_name_ref)
        .map_err(|reason| Error::invalid("volume_name_ref", reason))?;
    Ok(crypto::Options {
        name: name.id().to_owned(),
        base: volume.bdev().to_owned(),
        key: crypto::Key::new(object.key.clone())?,
    })
}

/// Creates the bdev with the base's own name, by which SPDK matches a returning base.
async fn make(spdk: Spdk, mut recipe: crypto::Options) -> Result<(), spdk::Error> {
    if let Some(base) = bdev::lookup(spdk, &recipe.base)? {
        recipe.base = base.name;
    }
    crypto::create(spdk, &recipe).await
}

/// Whether a foreign bdev, created by SPDK's own commands, now has the name.
fn is_replaced(spdk: Spdk, name: &str) -> Result<bool, spdk::Error> {
    let there = bdev::lookup(spdk, name)?;
    Ok(there.is_some_and(|bdev| bdev.product != crypto::PRODUCT))
}

/// Deletes the bdev. If it has disappeared with its base, SPDK's record of it is removed, so that it does not return
/// with the base.
async fn remove(spdk: Spdk, name: &str) -> Result<(), spdk::Error> {
    if is_replaced(spdk, name)? {
        let what =
            format!("another bdev that was not made here has the name {name:?}: delete it first");
        return Err(spdk::Error::new("delete encrypted volume", errno::EBUSY).with_detail(what));
    }
    match crypto::delete(spdk, name).await {
        Err(error) if error.errno.0 == errno::ENODEV => crypto::forget(spdk, name).await,
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(cipher: EncryptionType, key: &[u8]) -> String {
        let mut violations = Violations::default();
        let object = EncryptedVolume {
            volume_name_ref: "volumes/a".into(),
            key: key.to_vec(),
            cipher: cipher.into(),
            ..Default::default()
        };
        check(&object, &mut violations);
        violations.to_string()
    }

    #[test]
    fn a_key_has_the_length_of_its_cipher_and_two_halves() {
        let key: Vec<u8> = (0..64).collect();
        assert_eq!(broken(EncryptionType::AesXts128, &key[..32]), "");
        assert_eq!(broken(EncryptionType::AesXts256, &key), "");
        assert_eq!(
            broken(EncryptionType::AesXts256, &key[..32]),
            "key: it has 32 bytes: ENCRYPTION_TYPE_AES_XTS_256 needs 64"
        );
        assert!(broken(EncryptionType::AesXts128, &[7; 32]).contains("halves"));
    }

    #[test]
    fn other_ciphers_are_refused_by_name() {
        let key: Vec<u8> = (0..48).collect();
        for cipher in [EncryptionType::AesXts192, EncryptionType::AesCbc128] {
            assert!(broken(cipher, &key).starts_with(&format!("cipher: {}", cipher.as_str_name())));
        }
    }
}
