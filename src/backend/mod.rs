//! Backend volumes: remote and local NVMe devices, and volumes made here (memory, null, files). Each of the latter is
//! a bdev named by the volume's ID. The shared part is here; a kind says in its own file how its bdev is made.

pub(crate) mod aio_contexts;
mod aio_volume;
mod file_claim;
mod file_monitor;
mod file_work;
mod malloc_volume;
mod null_volume;
mod nvme_credential;
mod nvme_path;
mod nvme_remote_controller;
mod nvme_remote_namespace;
mod own;
mod path_address;
mod path_monitor;
mod pcie;
mod probe;
mod rebuild;
mod size_monitor;
mod stats;

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use parking_lot::Mutex;
use spdk::{CallError, Handle, Spdk, bdev, errno};
use uuid::Uuid;

use crate::api::storage::VolumeStats;
use crate::error::{Error, Violations};
use crate::identity::Identity;
use crate::resource::{CallContext, Change, Claims, Key, Kind, Name, Object, Stage};

pub(crate) use aio_volume::{check_aio_file, file_size};
pub(crate) use file_claim::{Claim, FileId};
pub(crate) use file_monitor::Files;
pub use nvme_credential::NvmeCredentials;
pub use nvme_path::NvmePaths;
pub use nvme_remote_controller::NvmeRemoteControllers;
pub use nvme_remote_namespace::NvmeRemoteNamespaces;
pub(crate) use own::check_stays;
use own::{Own, own};
pub(crate) use path_address::path_key;
pub(crate) use path_monitor::Paths;
use rebuild::{gone, rebuild, try_out};
pub(crate) use size_monitor::Sizes;
pub(crate) use stats::{stats_if, stats_of, volume_at_fault, volume_gone, volume_stats};

/// Largest block size in bytes: NVMe/TCP could not transfer a larger block in one piece.
pub(crate) const MAX_BLOCK_SIZE: i64 = 64 * 1024;

/// Timeout for releasing a volume's system resources.
const RELEASE: Duration = Duration::from_secs(5);

/// A resource that describes a bdev.
pub trait Volume: Object {
    /// How the bdev is made.
    type Recipe: Recipe;

    /// Whether the data is lost with the bdev, so that a rebuild has no rollback.
    const IN_MEMORY: bool = false;

    /// System resources that the volume owns for the lifetime of its bdev.
    type Held: Held;

    /// Checks rules beyond those of the proto files.
    fn check(&self, violations: &mut Violations);

    /// Returns the UUID as the client or the server wrote it; empty if there is none yet.
    fn uuid(&self) -> &str;

    /// Returns the input from which the UUID is derived if none is given: unique to the data within this instance, and
    /// the same when the volume is recreated.
    fn origin(&self, name: &Name) -> String {
        name.key().as_str().to_owned()
    }

    /// Returns the file that has the data.
    fn file(&self) -> Option<&str> {
        None
    }

    /// Acquires the system resources of the volume, or fails with an error that names their owner.
    fn hold(&self, id: &str) -> impl Future<Output = Result<Self::Held, Error>> + Send;

    /// Returns how the bdev of this volume is made. May query the system, but not SPDK.
    fn recipe(
        &self,
        name: String,
        uuid: [u8; 16],
    ) -> impl Future<Output = Result<Self::Recipe, Error>> + Send;

    /// Fills in the fields left to the server.
    fn complete(&mut self, bdev: &bdev::Info);

    /// Resets fields that the server derived from others and has to derive again, given what the client asks for.
    fn reconsider(&mut self, _asked: &Self) {}

    /// Checks that the backing storage still has what the volume promises.
    fn confirm(&self) -> impl Future<Output = Result<(), Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// Changes the bdev in place, while it is in use; `None` if this change needs a rebuild.
    fn adjust(
        _spdk: &Handle,
        _name: &Name,
        _change: &Change<Self>,
    ) -> impl Future<Output = Result<Option<bdev::Info>, Error>> + Send {
        std::future::ready(Ok(None))
    }
}

/// System resources of a volume.
pub trait Held: Send + Sync + 'static {
    /// Returns the file whose close may block; `None` where nothing is held.
    fn path(&self) -> Option<&str>;
}

impl Held for () {
    fn path(&self) -> Option<&str> {
        None
    }
}

/// Parameters to make one bdev.
pub trait Recipe: Clone + Send + 'static {
    /// Returns the bdev's name.
    fn name(&self) -> &str;

    /// Creates the bdev. Runs on SPDK's app thread.
    fn make(&self, spdk: Spdk) -> impl Future<Output = Result<(), spdk::Error>>;

    /// Returns a recipe of the same bdev under another name, to test whether creation can succeed while the old bdev
    /// still exists; `None` if only the arguments decide that. For volumes in memory.
    fn trial(&self) -> Option<Self> {
        None
    }
}

/// A kind of volumes.
pub struct Volumes<V: Volume> {
    spdk: Handle,
    identity: Identity,
    /// System resources that the volumes own.
    held: Mutex<HashMap<Key, V::Held>>,
    /// System resources of bdevs that a cut-off may have left in place of the recorded ones.
    cut_off: Mutex<HashMap<Key, V::Held>>,
}

impl<V: Volume> Volumes<V> {
    /// Creates the kind for volumes in this SPDK, with UUIDs derived from this identity.
    pub fn new(spdk: Handle, identity: Identity) -> Self {
        Self {
            spdk,
            identity,
            held: Mutex::default(),
            cut_off: Mutex::default(),
        }
    }

    /// Returns the UUID that the volume has or will get.
    fn uuid_of(&self, name: &Name, object: &V) -> [u8; 16] {
        parse_uuid(object.uuid()).unwrap_or_else(|| self.identity.derive(&object.origin(name)))
    }

    async fn recipe(&self, name: &Name, object: &V) -> Result<V::Recipe, Error> {
        let uuid = self.uuid_of(name, object);
        object.recipe(name.id().to_owned(), uuid).await
    }

    /// Stores the system resources of a bdev that was made, and releases those they replace, or the new ones if
    /// creation failed. A creation that was cut off may have left a bdev, which keeps them until it is removed. If it
    /// was to replace another with its data in a file, either may be there, and both keep theirs.
    async fn keep(
        &self,
        name: &Name,
        held: V::Held,
        made: Result<Result<bdev::Info, spdk::Error>, CallError>,
    ) -> Result<bdev::Info, Error> {
        let made = Error::joined(made);
        let unneeded = {
            let mut all = self.held.lock();
            match &made {
                Err(error) if error.is_unsettled() && all.contains_key(name.key()) => {
                    match held.path().is_some() {
                        true => self.cut_off.lock().insert(name.key().clone(), held),
                        false => Some(held),
                    }
                }
                Err(error) if !error.is_unsettled() => Some(held),
                _ => all.insert(name.key().clone(), held),
            }
        };
        release(name, unneeded).await;
        made
    }
}

impl<V: Volume> Kind for Volumes<V> {
    type Object = V;

    const STAGE: Stage = Stage::Base;

    fn check(&self, object: &V, violations: &mut Violations) {
        object.check(violations);
    }

    fn device(&self, object: &V) -> Option<String> {
        object.file().map(str::to_owned)
    }

    fn claims(&self, name: &Name, object: &V) -> Claims {
        let claims = Claims::new().owns(Key::bdev(name.id()));
        // A UUID still to be derived from a file is not claimed yet: a conflict shows first when the file itself is
        // claimed, with a better error message.
        let is_known = !object.uuid().is_empty() || object.origin(name) == name.key().as_str();
        match is_known {
            true => claims.owns(uuid_key(self.uuid_of(name, object))),
            false => claims,
        }
    }

    /// The existing bdev of a known volume is kept, never recreated: it holds data of its own.
    async fn ensure(&self, _: &CallContext, name: &Name, mut object: V) -> Result<V, Error> {
        self.remove_cut_off(name).await?;
        let is_known = !object.name().is_empty();
        if is_known && self.is_there(name, &object).await? {
            object.confirm().await?;
            return Ok(object);
        }
        let recipe = self.recipe(name, &object).await?;
        let held = object.hold(name.id()).await?;
        let made = self
            .spdk
            .call(move |spdk| async move { make(spdk, &recipe).await });
        object.complete(&self.keep(name, held, made.await).await?);
        Ok(object)
    }

    async fn update(
        &self,
        _: &CallContext,
        name: &Name,
        mut change: Change<V>,
    ) -> Result<V, Error> {
        self.remove_cut_off(name).await?;
        change.wanted.reconsider(&change.asked);
        let is_there = self.is_there(name, &change.old).await?;
        if is_there && let Some(info) = V::adjust(&self.spdk, name, &change).await? {
            let mut object = change.wanted;
            object.complete(&info);
            return Ok(object);
        }
        change.unused(name)?;
        let old = self.recipe(name, &change.old).await;
        let mut object = change.wanted;
        let new = self.recipe(name, &object).await?;
        let held = object.hold(name.id()).await?;
        let made = self
            .spdk
            .call(move |spdk| async move { rebuild(spdk, old.ok().as_ref(), &new).await });
        object.complete(&self.keep(name, held, made.await).await?);
        Ok(object)
    }

    /// Whichever bdev a rebuild has left where there may be two; it is made again.
    async fn withdraw(&self, _: &CallContext, name: &Name, _: &Change<V>) -> Result<(), Error> {
        self.remove_cut_off(name).await
    }

    /// Foresees the rebuild of a bdev whose data is lost with it.
    async fn foresee(
        &self,
        _: &CallContext,
        name: &Name,
        change: &Change<V>,
    ) -> Result<Option<V>, Error> {
        if !V::IN_MEMORY {
            return Ok(None);
        }
        change.unused(name)?;
        // Fails if a foreign bdev has the volume's name.
        self.is_there(name, &change.old).await?;
        let mut object = change.wanted.clone();
        object.reconsider(&change.asked);
        let uuid = self.uuid_of(name, &object);
        let recipe = object.recipe(name.id().to_owned(), uuid).await?;
        if let Some(trial) = recipe.trial() {
            let tried = self
                .spdk
                .call(async move |spdk| try_out(spdk, &recipe, &trial).await);
            let mut info = tried.await??;
            info.uuid = uuid;
            object.complete(&info);
        }
        Ok(Some(object))
    }

    async fn confirm(&self, _: &Name, object: &V) -> Result<(), Error> {
        object.confirm().await
    }

    /// A bdev with the volume's name but another UUID is foreign and is left alone.
    async fn remove(&self, _: &CallContext, name: &Name, object: &V) -> Result<(), Error> {
        self.remove_cut_off(name).await?;
        let (id, uuid) = (name.id().to_owned(), Some(self.uuid_of(name, object)));
        let deleted = self
            .spdk
            .call(async move |spdk| match own(spdk, &id, uuid)? {
                Own::Replaced => Ok(()),
                _ => remove(spdk, &id).await,
            });
        deleted.await??;
        let held = self.held.lock().remove(name.key());
        release(name, held).await;
        Ok(())
    }

    async fn stats(&self, name: &Name, object: &V) -> Result<VolumeStats, Error> {
        let (id, uuid) = (name.id().to_owned(), parse_uuid(object.uuid()));
        let stats = self
            .spdk
            .call(async move |spdk| match own(spdk, &id, uuid)? {
                Own::There => bdev::stats(spdk, &id).await.map(Some),
                _ => Ok(None),
            });
        match stats.await?? {
            Some(stats) => Ok(volume_stats([stats])),
            None => Err(volume_gone(name.id())),
        }
    }
}

/// Releases a volume's system resources on a blocking thread: closing a file may block on its file system. Waits for the
/// end with a timeout; the release goes on after it.
async fn release<T: Held>(name: &Name, held: Option<T>) {
    let path = held.as_ref().and_then(T::path).map(str::to_owned);
    let Some(path) = path else { return };
    let released = tokio::spawn(file_work::end(path, move || drop(held)));
    if tokio::time::timeout(RELEASE, released).await.is_err() {
        tracing::warn!(object = %name.key(), timeout = ?RELEASE, "the volume's file is not closed yet: its file system does not answer");
    }
}

async fn make(spdk: Spdk, recipe: &impl Recipe) -> Result<bdev::Info, spdk::Error> {
    recipe.make(spdk).await?;
    info(spdk, recipe.name())
}

fn info(spdk: Spdk, name: &str) -> Result<bdev::Info, spdk::Error> {
    bdev::lookup(spdk, name)?.ok_or_else(|| gone(name))
}

/// Deletes a bdev. Idempotent: one that SPDK has already removed, as when its file vanished, counts as deleted.
async fn remove(spdk: Spdk, name: &str) -> Result<(), spdk::Error> {
    match bdev::delete(spdk, name).await {
        Err(error) if error.errno.0 == errno::ENODEV => Ok(()),
        result => result,
    }
}

/// Returns whether a bdev can have blocks of this many bytes.
pub(crate) fn is_block_size(bytes: i64) -> bool {
    (512..=MAX_BLOCK_SIZE).contains(&bytes) && bytes.count_ones() == 1
}

/// Checks that a bdev can have this size. A block size of 0 leaves the choice to the server, where the proto does not
/// require `block_size`.
fn check_size(block_size: i64, blocks_count: i64, violations: &mut Violations) {
    let block_is_good = block_size == 0 || is_block_size(block_size);
    if !block_is_good {
        violations.add(
            "block_size",
            format!("{block_size} bytes: a power of two from 512 to {MAX_BLOCK_SIZE}"),
        );
    }
    if blocks_count < 0 {
        violations.add("blocks_count", format!("{blocks_count} is negative"));
    } else if block_is_good && block_size.checked_mul(blocks_count).is_none() {
        violations.add(
            "blocks_count",
            format!("{blocks_count} blocks of {block_size} bytes are more than 2^63 - 1 bytes"),
        );
    }
}

/// Checks that the text is empty or a UUID in one of its two forms.
pub(crate) fn check_uuid(field: &str, text: &str, violations: &mut Violations) {
    if !text.is_empty() && parse_uuid(text).is_none() {
        violations.add(
            field,
            format!("{text:?} is not a UUID: 32 hexadecimal digits, with hyphens (8-4-4-4-12) or without, not all 0"),
        );
    }
}

/// Parses a UUID; `None` for the empty text, the nil UUID and everything else.
pub(crate) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    // The uuid crate accepts more forms (URN, braces) than the API does.
    let uuid = matches!(text.len(), 32 | 36).then(|| Uuid::try_parse(text).ok())??;
    (!uuid.is_nil()).then(|| uuid.into_bytes())
}

/// Returns the key that the owner of a UUID claims.
pub(crate) fn uuid_key(uuid: [u8; 16]) -> Key {
    Key::from(format!("uuid/{}", uuid_text(uuid)))
}

/// Formats a UUID as the server writes it: lower case, with hyphens.
fn uuid_text(uuid: [u8; 16]) -> String {
    Uuid::from_bytes(uuid).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(block_size: i64, blocks_count: i64) -> String {
        let mut violations = Violations::default();
        check_size(block_size, blocks_count, &mut violations);
        violations.to_string()
    }

    #[test]
    fn a_size_is_what_a_bdev_can_have() {
        for (block_size, blocks_count) in [(512, 64), (4096, 1), (65536, 1 << 40), (0, 0)] {
            assert_eq!(size(block_size, blocks_count), "");
        }
        for block_size in [-512, 1, 511, 513, 520, 1536, 131_072, i64::MIN, i64::MAX] {
            assert!(size(block_size, 1).contains(&format!("block_size: {block_size} bytes")));
        }
        assert_eq!(size(512, -1), "blocks_count: -1 is negative");
        assert!(size(512, i64::MAX).contains("more than 2^63 - 1 bytes"));
        assert!(size(512, 1 << 54).contains("more than 2^63 - 1 bytes"));
        assert_eq!(size(512, (1 << 54) - 1), "");
    }

    #[test]
    fn a_uuid_has_two_forms() {
        let bytes = parse_uuid("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb");
        assert!(bytes.is_some());
        assert_eq!(parse_uuid("1B4E28BA2FA111D2883FB9A761BDE3FB"), bytes);
        for bad in [
            "",
            "1b4e28ba",
            "1b4e28ba-2fa1-11d2-883f-b9a761bde3f",
            "1b4e28ba-2fa1-11d2-883f-b9a761bde3fg",
            "{1b4e28ba-2fa1-11d2-883f-b9a761bde3fb}",
            "00000000-0000-0000-0000-000000000000",
        ] {
            assert_eq!(parse_uuid(bad), None, "{bad}");
            let mut violations = Violations::default();
            check_uuid("uuid", bad, &mut violations);
            assert_eq!(violations.into_result().is_ok(), bad.is_empty());
        }
    }
}
