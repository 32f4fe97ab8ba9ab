//! Where data is: devices of others, and volumes that are made here: memory, nothing, files. Each of
//! those becomes a bdev that is called by the
//! volume's ID; what they have in common is written once, and a kind says in its own file how its
//! bdev is made.

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
mod path_address;
mod path_monitor;
mod pcie;
mod probe;
mod rebuild;
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

pub(crate) use aio_volume::file_size;
pub(crate) use file_claim::{Claim, FileId};
pub(crate) use file_monitor::Files;
pub use nvme_credential::NvmeCredentials;
pub use nvme_path::NvmePaths;
pub use nvme_remote_controller::NvmeRemoteControllers;
pub use nvme_remote_namespace::NvmeRemoteNamespaces;
pub(crate) use path_address::path_key;
pub(crate) use path_monitor::Paths;
use rebuild::{gone, rebuild, try_out};
pub(crate) use stats::{stats_if, stats_of, volume_at_fault, volume_gone, volume_stats};

/// The largest block: beyond it NVMe/TCP could not move one in one piece.
pub(crate) const MAX_BLOCK_SIZE: i64 = 64 * 1024;

/// How long giving back what a volume had of the system is waited for.
const RELEASE: Duration = Duration::from_secs(5);

/// A message that describes a bdev.
pub trait Volume: Object {
    /// How its bdev is made.
    type Recipe: Recipe;

    /// Whether its data goes with its bdev, so that a rebuild cannot be undone.
    const IN_MEMORY: bool = false;

    /// What the volume has for itself of the system while its bdev lives.
    type Held: Send + Sync + 'static;

    /// Rules beyond those of the proto files.
    fn check(&self, violations: &mut Violations);

    /// Its UUID in the form that the client or the server wrote; empty while there is none.
    fn uuid(&self) -> &str;

    /// What the UUID is derived from where none is given: what tells the data apart from other data
    /// of this instance, and is the same when the volume is made once more.
    fn origin(&self, name: &Name) -> String {
        name.key().as_str().to_owned()
    }

    /// Takes what the volume needs for itself, or fails with who has it.
    fn hold(&self, id: &str) -> impl Future<Output = Result<Self::Held, Error>> + Send;

    /// How the bdev of this volume is made. May look at the system, not at SPDK.
    fn recipe(
        &self,
        name: String,
        uuid: [u8; 16],
    ) -> impl Future<Output = Result<Self::Recipe, Error>> + Send;

    /// Fills in what was left to the server.
    fn complete(&mut self, bdev: &bdev::Info);

    /// Takes out what the server worked out from other fields and has to work out again, given what
    /// the client asks for.
    fn reconsider(&mut self, _asked: &Self) {}

    /// Whether what the volume is made of still has what the volume promises.
    fn confirm(&self) -> impl Future<Output = Result<(), Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// Changes the bdev as it is, under those who use it; `None` when it has to be rebuilt for this
    /// change.
    fn adjust(
        _spdk: &Handle,
        _name: &Name,
        _change: &Change<Self>,
    ) -> impl Future<Output = Result<Option<bdev::Info>, Error>> + Send {
        std::future::ready(Ok(None))
    }
}

/// All that it takes to make one bdev.
pub trait Recipe: Clone + Send + 'static {
    /// The bdev's name.
    fn name(&self) -> &str;

    /// Makes it.
    fn make(&self, spdk: Spdk) -> impl Future<Output = Result<(), spdk::Error>>;

    /// A like bdev of another name, to try with whether the making can succeed while the old one is
    /// still there; `None` where nothing but the arguments decides that. For volumes in memory.
    fn trial(&self) -> Option<Self> {
        None
    }
}

/// A kind of volumes.
pub struct Volumes<V: Volume> {
    spdk: Handle,
    identity: Identity,
    /// What the volumes have of the system.
    held: Mutex<HashMap<Key, V::Held>>,
}

impl<V: Volume> Volumes<V> {
    /// A kind whose volumes live in this SPDK, of this instance.
    pub fn new(spdk: Handle, identity: Identity) -> Self {
        Self {
            spdk,
            identity,
            held: Mutex::default(),
        }
    }

    /// The UUID that the volume has or will get.
    fn uuid_of(&self, name: &Name, object: &V) -> [u8; 16] {
        parse_uuid(object.uuid()).unwrap_or_else(|| self.identity.derive(&object.origin(name)))
    }

    async fn recipe(&self, name: &Name, object: &V) -> Result<V::Recipe, Error> {
        let uuid = self.uuid_of(name, object);
        object.recipe(name.id().to_owned(), uuid).await
    }

    /// Keeps what a volume has of the system for a bdev that was made, in the place of what it had before.
    async fn keep(
        &self,
        name: &Name,
        held: V::Held,
        made: Result<Result<bdev::Info, spdk::Error>, CallError>,
    ) -> Result<bdev::Info, Error> {
        let made = made.map_err(Error::from).and_then(|made| Ok(made?));
        let unneeded = match &made {
            Ok(_) => self.held.lock().insert(name.key().clone(), held),
            Err(_) => Some(held),
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

    fn claims(&self, name: &Name, object: &V) -> Claims {
        let claims = Claims::new().owns(Key::bdev(name.id()));
        // What is derived from a file meets no other before that is claimed, which says more.
        let is_known = !object.uuid().is_empty() || object.origin(name) == name.key().as_str();
        match is_known {
            true => claims.owns(uuid_key(self.uuid_of(name, object))),
            false => claims,
        }
    }

    /// A bdev that is there stays: it holds data of its own.
    async fn ensure(&self, _: &CallContext, name: &Name, mut object: V) -> Result<V, Error> {
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

    /// A rebuild of a bdev whose data goes with it.
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
        // Somebody else's bdev may have its name.
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

    /// A bdev of the volume's name that has another UUID is another's, and stays.
    async fn remove(&self, _: &CallContext, name: &Name, object: &V) -> Result<(), Error> {
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

impl<V: Volume> Volumes<V> {
    /// Whether a volume has not gone by itself.
    ///
    /// # Errors
    /// FAILED_PRECONDITION where somebody else's bdev has its name: that is not ours to change.
    async fn is_there(&self, name: &Name, object: &V) -> Result<bool, Error> {
        let (id, uuid) = (name.id().to_owned(), parse_uuid(object.uuid()));
        let own = self
            .spdk
            .call(move |spdk| async move { own(spdk, &id, uuid) });
        match own.await?? {
            Own::There => Ok(true),
            Own::Gone => Ok(false),
            Own::Replaced => Err(Error::failed_precondition(
                name.id(),
                format!(
                    "{name} has gone, and another bdev that was not made here has its name: delete \
                     one of them"
                ),
            )),
        }
    }
}

/// Gives back what a volume had of the system, which may wait for a file system; one that does not answer
/// is not waited for.
async fn release<T: Send + 'static>(name: &Name, held: Option<T>) {
    if !std::mem::needs_drop::<T>() || held.is_none() {
        return;
    }
    let released = tokio::task::spawn_blocking(move || drop(held));
    if tokio::time::timeout(RELEASE, released).await.is_err() {
        tracing::warn!(object = %name.key(), timeout = ?RELEASE, "the volume's file is not closed yet: its file system does not answer");
    }
}

/// What has a volume's name.
enum Own {
    /// Its bdev.
    There,
    /// Nothing: it went by itself.
    Gone,
    /// Another bdev, that somebody has made by SPDK's own commands.
    Replaced,
}

/// A volume is known by its UUID, which no other bdev has.
fn own(spdk: Spdk, name: &str, uuid: Option<[u8; 16]>) -> Result<Own, spdk::Error> {
    Ok(match bdev::lookup(spdk, name)? {
        None => Own::Gone,
        Some(found) if uuid.is_none_or(|uuid| uuid == found.uuid) => Own::There,
        Some(_) => Own::Replaced,
    })
}

async fn make(spdk: Spdk, recipe: &impl Recipe) -> Result<bdev::Info, spdk::Error> {
    recipe.make(spdk).await?;
    info(spdk, recipe.name())
}

fn info(spdk: Spdk, name: &str) -> Result<bdev::Info, spdk::Error> {
    bdev::lookup(spdk, name)?.ok_or_else(|| gone(name))
}

/// A bdev that went by itself (its file did) is as gone as one that is removed.
async fn remove(spdk: Spdk, name: &str) -> Result<(), spdk::Error> {
    match bdev::delete(spdk, name).await {
        Err(error) if error.errno.0 == errno::ENODEV => Ok(()),
        result => result,
    }
}

/// Whether blocks of a bdev can have so many bytes.
pub(crate) fn is_block_size(bytes: i64) -> bool {
    (512..=MAX_BLOCK_SIZE).contains(&bytes) && bytes.count_ones() == 1
}

/// A size that a bdev can have. A block size of 0 is the server's to choose where `block_size` is
/// not required.
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

/// A UUID in one of its two forms, or none.
pub(crate) fn check_uuid(field: &str, text: &str, violations: &mut Violations) {
    if !text.is_empty() && parse_uuid(text).is_none() {
        violations.add(
            field,
            format!("{text:?} is not a UUID: 32 hexadecimal digits, with hyphens (8-4-4-4-12) or without, not all 0"),
        );
    }
}

/// The UUID that the text is; `None` for none.
pub(crate) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    // The crate knows more forms (URN, braces) than the API means.
    let uuid = matches!(text.len(), 32 | 36).then(|| Uuid::try_parse(text).ok())??;
    (!uuid.is_nil()).then(|| uuid.into_bytes())
}

/// Who has this UUID owns this.
pub(crate) fn uuid_key(uuid: [u8; 16]) -> Key {
    Key::from(format!("uuid/{}", uuid_text(uuid)))
}

/// The text of a UUID as it is answered where the server chose it.
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
