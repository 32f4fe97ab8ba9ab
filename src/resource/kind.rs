//! What a kind says of itself. Every verb is written once, in [`Collection`](super::Collection);
//! a kind adds its own rules and what happens in SPDK.

use std::future::Future;

use prost_reflect::ReflectMessage;

use super::{CallContext, Changes, Claims, Name};
use crate::api::storage::VolumeStats;
use crate::error::{Error, Violations};

/// A message that is a resource: it has a name. Implemented by the list of services.
pub trait Object: ReflectMessage + Default + Clone + PartialEq + Send + Sync + 'static {
    /// What the resource is called; empty in most requests.
    fn name(&self) -> &str;
    /// Calls it so.
    fn set_name(&mut self, name: String);
}

/// When the objects of a kind are made at start: each stage is tried as a whole before the next one
/// begins. Hosts and machines come in by the last, when all that stands behind it has been tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Volumes of their own, and remote controllers.
    Base,
    /// Ways to remote controllers, which bring volumes.
    Path,
    /// Volumes over other volumes.
    Layer,
    /// What holds exported volumes together: subsystems, SCSI targets.
    Export,
    /// Exported volumes: namespaces, LUNs.
    Part,
    /// Listeners and sockets.
    Door,
}

/// One kind of resource.
///
/// Before a kind is asked to do anything the object has passed the rules of the proto files and
/// [`check`](Kind::check), what it [`claims`](Kind::claims) is reserved, and its name and all that it
/// uses are locked. A kind reads the records of others through [`Others`](super::Others), and changes none. A change that fails must leave SPDK as it was. Field paths in errors start at
/// the object: `spec.nqn`.
pub trait Kind: Send + Sync + 'static {
    /// The message.
    type Object: Object;

    /// When its objects are made at start.
    const STAGE: Stage;

    /// Rules beyond those of the proto files: ranges, forms, what SPDK cannot do. Pure. Also called
    /// when a required field is missing; what is said of such a field is left out then.
    fn check(&self, object: &Self::Object, violations: &mut Violations);

    /// What the object has for itself (beside its name) and needs of others (beside its parent). Pure: no record of
    /// another is looked at.
    /// Called with an object as it is asked for and as it has become: what the server chose may add
    /// to it.
    fn claims(&self, name: &Name, object: &Self::Object) -> Claims;

    /// The volume that the object stands on, as the client calls it.
    fn volume_ref<'a>(&self, _object: &'a Self::Object) -> Option<&'a str> {
        None
    }

    /// Makes SPDK agree with the object: makes what is not there, adopts what is there and right,
    /// repairs what has lost a part. Idempotent. A new object has no name yet and is as it was asked
    /// for: what SPDK has of that name is another's then. One with a name is as it was answered, with
    /// every choice of the server in it: hosts must find it the same. Answers the object as it is now;
    /// all that was set stays as it was set.
    fn ensure(
        &self,
        call: &CallContext,
        name: &Name,
        object: Self::Object,
    ) -> impl Future<Output = Result<Self::Object, Error>> + Send;

    /// Waits for what a new or changed object needs of the world outside, such as a peer that answers.
    /// Before anything is reserved or locked for it, so that nobody else waits too.
    ///
    /// # Errors
    /// What is in the way.
    fn prepare(
        &self,
        _call: &CallContext,
        _name: &Name,
        _wanted: &Self::Object,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// Whether SPDK has lost what it had of the object. Must not cross into SPDK.
    fn is_lost(&self, _name: &Name, _object: &Self::Object) -> bool {
        false
    }

    /// Choices of the server that the message has no field for, as they are kept behind it: protobuf
    /// fields with numbers from 1000.
    fn kept(&self, _name: &Name, _object: &Self::Object) -> Vec<u8> {
        Vec::new()
    }

    /// Takes back what [`kept`](Kind::kept) gave, before anything is made after a start.
    fn restore(&self, _name: &Name, _object: &Self::Object, _kept: &[u8]) {}

    /// Whether it is still as its fields say: asked by an update that changes nothing.
    ///
    /// # Errors
    /// FAILED_PRECONDITION that says what has changed by itself.
    fn confirm(
        &self,
        _name: &Name,
        _object: &Self::Object,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// Changes it in SPDK, never for nothing: some field of `change.wanted` differs.
    ///
    /// # Errors
    /// [`Error::immutable`] for a field that cannot change; [`Change::unused`] gives the one for an
    /// object that has to be rebuilt while it is in use.
    fn update(
        &self,
        call: &CallContext,
        name: &Name,
        change: Change<Self::Object>,
    ) -> impl Future<Output = Result<Self::Object, Error>> + Send;

    /// For a change that destroys content, so that no rollback brings it back: checks what can be checked
    /// without destroying any, and answers the object as it will be, with every choice of the server. The
    /// store commits that object before [`update`](Kind::update) is called. `None` for all other changes.
    ///
    /// # Errors
    /// As [`update`](Kind::update), with which nothing has changed.
    fn foresee(
        &self,
        _call: &CallContext,
        _name: &Name,
        _change: &Change<Self::Object>,
    ) -> impl Future<Output = Result<Option<Self::Object>, Error>> + Send {
        std::future::ready(Ok(None))
    }

    /// Removes it from SPDK. Nobody uses it. Idempotent: what is not there is removed.
    fn remove(
        &self,
        call: &CallContext,
        name: &Name,
        object: &Self::Object,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// SPDK's counters of it. Runs beside changes.
    fn stats(
        &self,
        name: &Name,
        object: &Self::Object,
    ) -> impl Future<Output = Result<VolumeStats, Error>> + Send;

    /// Brings what may change by itself (a state) up to date in an answer. Must not cross into SPDK.
    fn refresh(&self, _name: &Name, _object: &mut Self::Object) {}

    /// Clears keys: they come in and never go out.
    fn hide_secrets(_object: &mut Self::Object) {}
}

/// What an update asks of a kind.
#[derive(Debug)]
pub struct Change<T> {
    /// The object as it is.
    pub old: T,
    /// The object as it shall be: the old one with the changed fields in it, so what the server
    /// chose once is kept unless the client changes it. A changed field that is not set is the
    /// server's to choose again.
    pub wanted: T,
    /// The object as the client asks for it now: what is not set is the server's to choose, where
    /// `wanted` has what it chose for the object as it was.
    pub asked: T,
    /// Which fields differ.
    pub fields: Changes,
    /// The fields of the object that the client names, whether or not they differ; none where it undoes.
    pub(super) named: Vec<String>,
    /// It brings back the object as it was before a change that could not be stored.
    pub is_undo: bool,
    pub(super) users: Vec<Name>,
}

impl<T> Change<T> {
    /// Whether the client names this field of the object, as it is or otherwise.
    pub fn names(&self, field: &str) -> bool {
        self.named.iter().any(|named| named == field)
    }

    /// Whether anybody uses the object.
    pub fn in_use(&self) -> bool {
        !self.users.is_empty()
    }

    /// Fails when somebody uses the object: what has to be rebuilt for the change would go away
    /// under its user.
    ///
    /// # Errors
    /// FAILED_PRECONDITION that names the user.
    pub fn unused(&self, name: &Name) -> Result<(), Error> {
        self.unused_but(name, |_| false)
    }

    /// The same, where some users do not mind.
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
