//! All resources of one kind, and the verbs that are the same for every kind.
//!
//! ```text
//!   absent --create--> present --update--> present --delete--> absent
//!                         |                                      ^
//!                         +-- (a failed change alters nothing) --+
//! ```
//!
//! Get and List read the records only. A change runs in a task of its own and holds the locks of its name and of
//! the keys it uses: a client that disconnects does not cancel it, and changes of different names run
//! concurrently. A change is made in SPDK, committed to the store, applied in memory, and then answered, in this
//! order. Create and delete are in [`lifecycle`](super::lifecycle), update in [`update`](super::update),
//! reconciling after a start or a loss in [`recover`](super::recover).

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use prost_reflect::{DynamicMessage, ReflectMessage};

use super::lifecycle::CreateOutcome;
use super::locks::{Busy, Held};
use super::record::Record;
use super::request::{CallContext, Create, Delete, List, Page};
use super::{Changes, Claims, Key, Kind, Meta, Name, Object, Shared, id, paging};
use crate::api::storage::VolumeStats;
use crate::error::{Error, Subject, Violations};
use crate::telemetry::traces::InTrace;

/// Poll period in which a change in flight checks whether it waits for the disk of the store.
const LOOK: Duration = Duration::from_millis(500);

/// Disk latency from which a delay is attributed to the store.
const SLOW: Duration = Duration::from_millis(400);

/// The resources of one kind.
pub struct Collection<K: Kind> {
    pub(super) kind: K,
    pub(super) meta: Meta,
    pub(super) shared: Arc<Shared>,
    pub(super) records: RwLock<BTreeMap<Key, Arc<Record<K::Object>>>>,
}

impl<K: Kind> Collection<K> {
    /// Creates an empty collection.
    pub fn new(kind: K, shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            kind,
            meta: Meta::of(&K::Object::default().descriptor()),
            shared: Arc::clone(shared),
            records: RwLock::default(),
        })
    }

    /// Number of objects.
    pub fn count(&self) -> usize {
        self.records.read().len()
    }

    /// Returns how the kind and its names are spelled.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Creates an object. Idempotent: the same request again returns the existing object.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, ALREADY_EXISTS for an ID in use with other values, NOT_FOUND for a missing parent, and
    /// the errors of the kind.
    pub async fn create(
        self: &Arc<Self>,
        call: CallContext,
        request: Create<K::Object>,
    ) -> Result<K::Object, Error> {
        let parent = self.meta.parse_parent(&request.parent)?;
        let id = match request.id {
            given if given.is_empty() => id::generate(),
            given => {
                let field = || format!("{}_id", self.meta.field());
                let checked = id::check_for(self.meta.field(), &given);
                checked.map_err(|what| Error::invalid(field(), what))?;
                given
            }
        };
        let name = self.meta.name(parent.as_ref(), &id);
        let wanted = self.accept(self.given(request.object)?)?;
        let this = Arc::clone(self);
        self.run(&call, &name.clone(), async move {
            match this.make(&call, &name, wanted.clone()).await? {
                CreateOutcome::New(object) => Ok(object),
                CreateOutcome::Existing(record) => this.same(&name, &record, &wanted),
            }
        })
        .await
    }

    /// Returns the object of this name.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a malformed name, NOT_FOUND.
    pub fn get(&self, name: &str) -> Result<K::Object, Error> {
        let name = self.meta.parse("name", name)?;
        let record = self.record(&name).ok_or_else(|| self.missing(&name))?;
        Ok(self.answer(&name, record.object.clone()))
    }

    /// Returns one page of the objects of the caller's scope, ordered by name.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a bad size, token or parent, NOT_FOUND for a missing parent.
    pub fn list(&self, request: &List) -> Result<Page<K::Object>, Error> {
        let parent = request.parent.as_deref().unwrap_or_default();
        if parent.is_empty() && self.meta.list_needs_parent() {
            return Err(Error::invalid("parent", "is required"));
        }
        let parent = self.meta.parse_parent(parent)?;
        if let Some(parent) = &parent
            && self.shared.registry.owner(parent).is_none()
        {
            return Err(Error::not_found(parent));
        }
        let size = paging::size(request.page_size)?;
        let prefix = self.meta.prefix(parent.as_ref());
        let after = paging::resume(&request.page_token, &prefix)?;
        let from = match &after {
            Some(last) => Bound::Excluded(last.as_str()),
            None => Bound::Included(prefix.as_str()),
        };
        let records = self.records.read();
        let mut page: Vec<(&Key, &Arc<Record<K::Object>>)> = records
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(&prefix))
            .filter(|(key, _)| request.scope.has(key.as_str()))
            .take(size.saturating_add(1))
            .collect();
        let more = page.len() > size;
        page.truncate(size);
        let next_page_token = match page.last() {
            Some((last, _)) if more => paging::token(last.as_str()),
            _ => String::new(),
        };
        let items = page.into_iter().map(|(key, record)| {
            let name = self
                .meta
                .name(parent.as_ref(), &key.as_str()[prefix.len()..]);
            self.answer(&name, record.object.clone())
        });
        Ok(Page {
            items: items.collect(),
            next_page_token,
        })
    }

    /// Removes an object.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, NOT_FOUND unless `allow_missing`, FAILED_PRECONDITION while it is in use.
    pub async fn delete(
        self: &Arc<Self>,
        call: CallContext,
        request: &Delete,
    ) -> Result<(), Error> {
        let name = self.meta.parse("name", &request.name)?;
        let allow_missing = request.allow_missing;
        let this = Arc::clone(self);
        self.run(&call, &name.clone(), async move {
            match this.remove(&call, &name).await {
                Err(Error::NotFound { name: missing, .. })
                    if allow_missing && missing.name() == name.to_string() =>
                {
                    Ok(())
                }
                result => result,
            }
        })
        .await
    }

    /// Reads SPDK's counters of an object.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, NOT_FOUND, and the errors of the kind.
    pub async fn stats(&self, name: &str) -> Result<VolumeStats, Error> {
        let name = self.meta.parse("name", name)?;
        let record = self.record(&name).ok_or_else(|| self.missing(&name))?;
        let stats = self.kind.stats(&name, &record.object).await;
        match (stats, self.shared.conditions.reason(name.key())) {
            (Err(error), Some(reason)) => Err(Error::failed_precondition(
                &name,
                format!("{error}; it is retried, and is not there because: {reason}"),
            )),
            (stats, _) => stats.map_err(|error| error.about(&name)),
        }
    }

    /// Runs an action that leaves the record of an object unchanged, under a shared lock that keeps out changes
    /// of the object. Not cancelled when the client disconnects.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE while the object is being changed, and the errors of `action`.
    pub async fn with<T: Send + 'static, F: Future<Output = Result<T, Error>> + Send>(
        self: &Arc<Self>,
        call: CallContext,
        name: &str,
        action: impl FnOnce(Arc<Self>, Name) -> F + Send + 'static,
    ) -> Result<T, Error> {
        let name = self.meta.parse("name", name)?;
        let this = Arc::clone(self);
        self.run(&call, &name.clone(), async move {
            let key = name.key().clone();
            let _held = this.lock(&call, &name, [], [key]).await?;
            this.record(&name).ok_or_else(|| this.missing(&name))?;
            action(Arc::clone(&this), name).await
        })
        .await
    }

    /// Returns the kind.
    pub fn kind(&self) -> &K {
        &self.kind
    }

    /// Returns the object with this typed name, secrets included: for other kinds, never for responses.
    pub fn object(&self, key: &Key) -> Option<K::Object> {
        let records = self.records.read();
        records.get(key).map(|record| record.object.clone())
    }

    /// Returns whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.records.read().is_empty()
    }

    /// Returns all objects, secrets included, as [`object`](Self::object) does.
    pub fn objects(&self) -> Vec<(Name, K::Object)> {
        let records = self.records.read();
        let named = |(key, record): (&Key, &Arc<Record<K::Object>>)| {
            let name = self.meta.parse("name", key.as_str()).ok()?;
            Some((name, record.object.clone()))
        };
        records.iter().filter_map(named).collect()
    }

    /// Resolves the object's reference to its backing volume.
    pub(super) async fn learn(&self, wanted: &K::Object) -> Result<(), Error> {
        match self.kind.volume_ref(wanted) {
            Some(volume) => self.shared.learn(volume).await,
            None => Ok(()),
        }
    }

    /// Runs [`Kind::prepare`], unless the registry already shows that the claims would be refused.
    pub(super) async fn prepare(
        &self,
        call: &CallContext,
        name: &Name,
        wanted: &K::Object,
    ) -> Result<(), Error> {
        let claims = self.claims(name, wanted);
        let registry = &self.shared.registry;
        self.check_dependencies_stay(name, &claims)?;
        if registry.check(name, &claims).is_err() {
            // The conflict may be a change in flight that fails, or a delete: wait for its locks and check
            // again.
            let (changed, used) = (claims.changed(), claims.used());
            let _held = self.lock(call, name, changed, used).await?;
            registry.check(name, &claims)?;
        }
        let ready = self.kind.prepare(call, name, wanted).await;
        ready.map_err(|error| error.under(self.meta.field()))
    }

    /// Acquires the locks for a change of `name`. The wait ends early enough for the client to receive the
    /// reason before its deadline.
    ///
    /// # Errors
    /// UNAVAILABLE with the busy key and the holder of its lock.
    pub(super) async fn lock(
        &self,
        call: &CallContext,
        name: &Name,
        exclusive: impl IntoIterator<Item = Key>,
        shared: impl IntoIterator<Item = Key>,
    ) -> Result<Held, Error> {
        let began = Instant::now();
        let by = call.answer_by().into();
        let locks = &self.shared.locks;
        let held = locks.acquire(name.key(), by, exclusive, shared).await;
        held.map_err(|Busy { key, holder }| {
            let holder = match &holder {
                Some(holder) => format!("a change of {}", Subject::from(holder)),
                None => "another change".to_owned(),
            };
            let waited = began.elapsed().as_millis();
            Error::Unavailable(format!(
                "{name}: nothing was changed: {holder} has had the lock of {key} for all of the {waited} ms \
                 that this call could wait: try again once that change has ended"
            ))
        })
    }

    /// Runs a change to completion, whether or not the client still waits. A panic fails this change alone: its
    /// locks and reservations are released by unwinding, and the queue reconciles what it left in SPDK.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        call: &CallContext,
        name: &Name,
        change: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let running = self.shared.begin(call).await?;
        let change = async move {
            let _running = running;
            change.await
        };
        let mut task = tokio::spawn(change.with_current_context());
        let ended = loop {
            let by = Instant::now() + LOOK;
            if let Ok(ended) = tokio::time::timeout_at(by.into(), &mut task).await {
                break ended;
            }
            let waits = self.shared.store().waiting();
            if waits.is_some_and(|waits| waits >= SLOW) && Instant::now() >= call.answer_by() - LOOK
            {
                return Err(self.not_known(name));
            }
        };
        let ended = ended.unwrap_or_else(|error| {
            tracing::error!(object = %name.key(), %error, "change panicked");
            self.shared.queue.put(name.key());
            let operation = format!("change of a {}", self.meta.kind());
            Err(Error::internal(
                operation,
                "it was cut off by a fault of the server",
            ))
        });
        ended.map_err(|error| error.about(name))
    }

    /// Error for a change whose outcome is unknown at the deadline because the disk of the store has not
    /// answered. The change goes on.
    fn not_known(&self, name: &Name) -> Error {
        let waits = self.shared.store().waiting().unwrap_or_default();
        Error::Unavailable(format!(
            "{name}: whether the change is made is not known yet: the disk of state-dir has not answered for {} ms; \
             the change goes on: read the object to see what came of it, or repeat the call",
            waits.as_millis()
        ))
    }

    /// Returns all claims of an object: its name, its parent, and the claims of the kind.
    pub(super) fn claims(&self, name: &Name, object: &K::Object) -> Claims {
        let claims = self.kind.claims(name, object).owns(name.key().clone());
        match name.parent() {
            Some(parent) => claims.shares(parent.clone()).needs(parent),
            None => claims,
        }
    }

    /// Error for a missing object; names an object of another kind that is shown by the same name.
    pub(super) fn missing(&self, name: &Name) -> Error {
        let Some(other) = self.shared.registry.namesake(name) else {
            return Error::not_found(name);
        };
        Error::NotFound {
            name: name.into(),
            message: format!(
                "{name} was not found among {}: there is {}",
                self.meta.prefix(None).trim_end_matches('/'),
                Subject::from(&other)
            ),
        }
    }

    /// Prepares an object for a response: refreshes its state and hides its secrets.
    pub(super) fn answer(&self, name: &Name, mut object: K::Object) -> K::Object {
        self.kind.refresh(name, &mut object);
        K::hide_secrets(&mut object);
        object
    }

    /// Returns the object of a request, which is a required field.
    pub(super) fn given(&self, object: Option<K::Object>) -> Result<K::Object, Error> {
        object.ok_or_else(|| Error::invalid(self.meta.field(), "is required"))
    }

    /// Validates an object sent by a client, and clears its output-only fields.
    fn accept(&self, object: K::Object) -> Result<K::Object, Error> {
        let mut dynamic = object.transcode_to_dynamic();
        let object = if self.meta.rules().scrub(&mut dynamic) {
            typed(&dynamic)?
        } else {
            object
        };
        self.check(&dynamic, &object)?;
        Ok(object)
    }

    /// Applies the rules of the proto files, then the rules of the kind to the fields that pass.
    pub(super) fn check(&self, dynamic: &DynamicMessage, object: &K::Object) -> Result<(), Error> {
        let mut violations = Violations::default();
        self.meta.rules().check(dynamic, &mut violations);
        let mut of_kind = Violations::default();
        self.kind.check(object, &mut of_kind);
        violations.extend_new(of_kind);
        let result = violations.into_result();
        result.map_err(|error| error.under(self.meta.field()))
    }

    /// Idempotent create: succeeds if every field equals the requested or the current value.
    pub(super) fn same(
        &self,
        name: &Name,
        record: &Record<K::Object>,
        wanted: &K::Object,
    ) -> Result<K::Object, Error> {
        let is = || self.answer(name, record.object.clone());
        if record.wanted == *wanted {
            return Ok(is());
        }
        let (asked, new) = (
            record.wanted.transcode_to_dynamic(),
            wanted.transcode_to_dynamic(),
        );
        let differing = self.differing(record, &asked, &new);
        if differing.is_empty() {
            return Ok(is());
        }
        Err(Error::AlreadyExists {
            name: name.into(),
            message: format!(
                "{name} exists with other values of {}: update it, or choose another ID",
                differing.paths().join(", ")
            ),
        })
    }

    /// Returns the fields whose requested value is new and differs from the current value too.
    pub(super) fn differing(
        &self,
        record: &Record<K::Object>,
        before: &DynamicMessage,
        asked: &DynamicMessage,
    ) -> Changes {
        let rules = self.meta.rules();
        let is = record.object.transcode_to_dynamic();
        Changes::between(rules, before, asked).and(&Changes::between(rules, &is, asked))
    }

    /// Returns the fields in which two objects differ.
    pub(super) fn between(&self, old: &K::Object, new: &K::Object) -> Changes {
        let (old, new) = (old.transcode_to_dynamic(), new.transcode_to_dynamic());
        Changes::between(self.meta.rules(), &old, &new)
    }
}

/// Converts a dynamic message back to its API type.
pub(super) fn typed<T: Object>(dynamic: &DynamicMessage) -> Result<T, Error> {
    dynamic
        .transcode_to()
        .map_err(|error| Error::internal("reading a message back", error))
}
