//! The interface that a resource kind implements. [`Collection`](super::Collection) implements every verb once
//! for all kinds; a kind adds its validation rules, its [`Claims`] and the operations in SPDK.

use std::future::Future;

use prost_reflect::ReflectMessage;

use super::{CallContext, Changes, Claims, Name};
use crate::api::storage::VolumeStats;
use crate::error::{Error, Violations};

/// Protobuf message of a resource, which has a name. The list of services implements it for every kind.
pub trait Object: ReflectMessage + Default + Clone + PartialEq + Send + Sync + 'static {
    /// Resource name; empty in most create requests.
    fn name(&self) -> &str;
    /// Sets the resource name.
    fn set_name(&mut self, name: String);
}

/// Order in which objects are recreated at start. Every object of a stage has had one attempt before the next
/// stage begins. Objects that let hosts and guests connect come last, when their dependencies have been tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Volumes without a volume below them, and remote controllers.
    Base,
    /// Paths to remote controllers; connecting one adds its volumes.
    Path,
    /// Volumes layered over other volumes.
    Layer,
    /// Containers of exported volumes: subsystems, SCSI targets.
    Export,
    /// Exported volumes: namespaces, LUNs.
    Part,
    /// Endpoints that hosts connect to: listeners and sockets.
    Door,
}

/// One kind of resource.
///
/// Preconditions of every operation in SPDK: the object has passed the rules of the proto files and
/// [`check`](Kind::check), its [`claims`](Kind::claims) are reserved, and its name and all keys it uses are
/// locked. A kind reads the records of other kinds through [`Others`](super::Others) and modifies none. A failed
/// change must roll SPDK back to its previous state, or return an [unsettled](Error::is_unsettled) error: then a new
/// object is removed, and a changed one is [withdrawn](Kind::withdraw) and ensured. Field paths in errors start at the object: `spec.nqn`.
pub trait Kind: Send + Sync + 'static {
    /// Protobuf message of the resource.
    type Object: Object;

    /// Stage in which objects of this kind are recreated at start.
    const STAGE: Stage;

    /// Validates what the rules of the proto files cannot express: ranges, formats, limits of SPDK. Pure. Also
    /// called when a required field is missing; violations reported for that field are dropped then.
    fn check(&self, object: &Self::Object, violations: &mut Violations);

    /// Returns the keys that the object owns (beside its name) and uses (beside its parent). Pure: reads no
    /// record of another object. Called with the requested object and with the created one, where choices of the
    /// server may add claims.
    fn claims(&self, name: &Name, object: &Self::Object) -> Claims;

    /// Returns the reference to the object's backing volume, as the client wrote it.
    fn volume_ref<'a>(&self, _object: &'a Self::Object) -> Option<&'a str> {
        None
    }

    /// Returns what the object stands on outside of this process, for people: a file, a PCI address, a peer.
    fn device(&self, _object: &Self::Object) -> Option<String> {
        None
    }

    /// Makes SPDK agree with the object: creates what is missing, adopts what exists and matches, repairs what
    /// has lost a part. Idempotent. A new object has no name yet and holds the requested values only: an SPDK
    /// object of that name then belongs to another owner. An object with a name holds the values last returned
    /// to clients, with every choice of the server, and must be recreated with them so that hosts find it
    /// unchanged. Returns the object as created; fields that were set keep their values.
    fn ensure(
        &self,
        call: &CallContext,
        name: &Name,
        object: Self::Object,
    ) -> impl Future<Output = Result<Self::Object, Error>> + Send;

    /// Waits for what a new or changed object needs from outside the process, such as a reachable peer. Called
    /// before its claims are reserved or locked, so that no other change waits too.
    ///
    /// # Errors
    /// Why the dependency is not available.
    fn prepare(
        &self,
        _call: &CallContext,
        _name: &Name,
        _wanted: &Self::Object,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// Whether SPDK has lost the object. Must not cross into SPDK.
    fn is_lost(&self, _name: &Name, _object: &Self::Object) -> bool {
        false
    }

    /// Encodes choices of the server that have no field in the message; they are stored appended to it, as
    /// protobuf fields with numbers from 1000.
    fn kept(&self, _name: &Name, _object: &Self::Object) -> Vec<u8> {
        Vec::new()
    }

    /// Restores what [`kept`](Kind::kept) returned, before any object is recreated after a start.
    fn restore(&self, _name: &Name, _object: &Self::Object, _kept: &[u8]) {}

    /// Checks that SPDK still has the object as its fields say. Called by an update that changes nothing.
    ///
    /// # Errors
    /// FAILED_PRECONDITION that says what has changed without a request.
    fn confirm(
        &self,
        _name: &Name,
        _object: &Self::Object,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// Changes the object in SPDK. At least one field of `change.wanted` differs.
    ///
    /// # Errors
    /// [`Error::immutable`] for a field that cannot change; [`Change::unused`] returns the error for an object
    /// that would have to be rebuilt while in use.
    fn update(
        &self,
        call: &CallContext,
        name: &Name,
        change: Change<Self::Object>,
    ) -> impl Future<Output = Result<Self::Object, Error>> + Send;

    /// Removes from SPDK what a failed update to `back.old` may have left there beside the current object,
    /// `back.wanted`, which [`ensure`](Kind::ensure) repairs afterwards. Idempotent: any part of either may be missing.
    /// Users of the object, which gets no new ones until this succeeds, must not notice where it is complete.
    fn withdraw(
        &self,
        call: &CallContext,
        name: &Name,
        back: &Change<Self::Object>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Called once an update is durable or rolled back, or SPDK is reconciled with the record after an update that
    /// failed: what only a rollback would need can be released.
    fn settled(&self, _name: &Name) {}

    /// Prepares a change that destroys content and so cannot be rolled back: runs every check that destroys
    /// nothing, and returns the object as it will be, with every choice of the server. The store commits that
    /// object before [`update`](Kind::update) is called. `None` for all other changes.
    ///
    /// # Errors
    /// As [`update`](Kind::update); nothing has changed then.
    fn foresee(
        &self,
        _call: &CallContext,
        _name: &Name,
        _change: &Change<Self::Object>,
    ) -> impl Future<Output = Result<Option<Self::Object>, Error>> + Send {
        std::future::ready(Ok(None))
    }

    /// Removes the object, which has no users, from SPDK. Idempotent: succeeds if SPDK has no such object.
    /// What may refuse it (a connected machine) comes first: after an unsettled error the removal is only completed, never
    /// taken back.
    fn remove(
        &self,
        call: &CallContext,
        name: &Name,
        object: &Self::Object,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reads SPDK's counters of the object. Runs concurrently with changes.
    fn stats(
        &self,
        name: &Name,
        object: &Self::Object,
    ) -> impl Future<Output = Result<VolumeStats, Error>> + Send;

    /// Updates output fields that change without a request (a state) before the object is returned. Must not
    /// cross into SPDK.
    fn refresh(&self, _name: &Name, _object: &mut Self::Object) {}

    /// Clears secret keys, which are write-only: they are never returned to a client.
    fn hide_secrets(_object: &mut Self::Object) {}
}

/// An update as a kind sees it.
#[derive(Debug)]
pub struct Change<T> {
    /// Current object.
    pub old: T,
    /// Target object: the current one with the changed fields applied, so that choices of the server are kept
    /// unless the client changes them. An unset changed field is to be chosen by the server again.
    pub wanted: T,
    /// Object as requested: unset fields are the server's to choose, where `wanted` has the values chosen
    /// before.
    pub asked: T,
    /// Fields that differ.
    pub fields: Changes,
    /// Fields that the client names, whether or not they differ; empty for an undo.
    pub(super) named: Vec<String>,
    /// Whether this change is the rollback of a change that could not be stored.
    pub is_undo: bool,
    pub(super) users: Vec<Name>,
}

impl<T> Change<T> {
    /// Whether the client names this field, with the current value or another.
    pub fn names(&self, field: &str) -> bool {
        self.named.iter().any(|named| named == field)
    }

    /// Whether another object uses this one.
    pub fn in_use(&self) -> bool {
        !self.users.is_empty()
    }

    /// Fails while the object is in use: a rebuild would remove it from under its users.
    ///
    /// # Errors
    /// FAILED_PRECONDITION that names the user.
    pub fn unused(&self, name: &Name) -> Result<(), Error> {
        self.unused_but(name, |_| false)
    }

    /// As [`unused`](Self::unused), but ignores the users that tolerate a rebuild.
    ///
    /// # Errors
    /// FAILED_PRECONDITION that names the user.
    pub fn unused_but(&self, name: &Name, minds_not: fn(&Name) -> bool) -> Result<(), Error> {
        match self.users.iter().find(|user| !minds_not(user)) {
            None => Ok(()),
            Some(user) => Err(Error::InUse {
                name: name.into(),
                user: user.into(),
                remedy: format!(
                    "a change of {} needs it rebuilt, which is done only while nobody uses it",
                    self.fields.paths().join(", ")
                ),
            }),
        }
    }
}
