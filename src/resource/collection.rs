//! All resources of one kind, and what every call does to them whatever the kind.
//!
//! ```text
//!   absent --create--> present --update--> present --delete--> absent
//!                         |                                      ^
//!                         +-- (a failed change alters nothing) --+
//! ```
//!
//! Get and List read the records and touch nothing else. A change runs in a task of its own, under
//! the locks of its name and of what it refers to, so a client that goes away cuts nothing off, and
//! changes of different names run side by side. A change is made in SPDK, then in the store, then in
//! memory, and then answered. Creates and deletes are in [`lifecycle`](super::lifecycle), updates in
//! [`update`](super::update), what follows a start or a loss in [`recover`](super::recover).

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

/// How often a change that is under way looks whether it waits for the disk of the store.
const LOOK: Duration = Duration::from_millis(500);

/// A disk that takes longer is what a change waits for.
const SLOW: Duration = Duration::from_millis(400);

/// The resources of one kind.
pub struct Collection<K: Kind> {
    pub(super) kind: K,
    pub(super) meta: Meta,
    pub(super) shared: Arc<Shared>,
    pub(super) records: RwLock<BTreeMap<Key, Arc<Record<K::Object>>>>,
}

impl<K: Kind> Collection<K> {
    /// An empty collection.
    pub fn new(kind: K, shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            kind,
            meta: Meta::of(&K::Object::default().descriptor()),
            shared: Arc::clone(shared),
            records: RwLock::default(),
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.records.read().len()
    }

    /// What its kind and its names are called.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Makes an object. The same request again answers the object that it made.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, ALREADY_EXISTS for an ID that has another content, NOT_FOUND for a parent
    /// that is not there, and what the kind says.
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

    /// The object of this name.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for what is no name, NOT_FOUND.
    pub fn get(&self, name: &str) -> Result<K::Object, Error> {
        let name = self.meta.parse("name", name)?;
        let record = self.record(&name).ok_or_else(|| self.missing(&name))?;
        Ok(self.answer(&name, record.object.clone()))
    }

    /// One page of the objects, in the order of their names.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a bad size, token or parent, NOT_FOUND for a parent that is not there.
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

    /// SPDK's counters of an object.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, NOT_FOUND, and what the kind says.
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

    /// Does something to an object that leaves its record as it is, while it is not changed itself.
    /// Runs to its end, whether or not the client still waits for it.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE while it is changed, and what `action` says.
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

    /// The kind.
    pub fn kind(&self) -> &K {
        &self.kind
    }

    /// The object under this typed name with all that is in it, keys too: for other kinds, not for
    /// answers.
    pub fn object(&self, key: &Key) -> Option<K::Object> {
        let records = self.records.read();
        records.get(key).map(|record| record.object.clone())
    }

    /// All objects with all that is in them, as [`object`](Self::object) gives one.
    pub fn objects(&self) -> Vec<(Name, K::Object)> {
        let records = self.records.read();
        let named = |(key, record): (&Key, &Arc<Record<K::Object>>)| {
            let name = self.meta.parse("name", key.as_str()).ok()?;
            Some((name, record.object.clone()))
        };
        records.iter().filter_map(named).collect()
    }

    /// Finds out which volume the object stands on.
    pub(super) async fn learn(&self, wanted: &K::Object) -> Result<(), Error> {
        match self.kind.volume_ref(wanted) {
            Some(volume) => self.shared.learn(volume).await,
            None => Ok(()),
        }
    }

    /// Has the kind wait for what an object needs, unless it is known already that it cannot be.
    pub(super) async fn prepare(
        &self,
        call: &CallContext,
        name: &Name,
        wanted: &K::Object,
    ) -> Result<(), Error> {
        let claims = self.claims(name, wanted);
        let registry = &self.shared.registry;
        if registry.check(name, &claims).is_err() {
            // What is in the way may be a change under way that does not come to its end, or a delete.
            let (changed, used) = (claims.changed(), claims.used());
            let _held = self.lock(call, name, changed, used).await?;
            registry.check(name, &claims)?;
        }
        let ready = self.kind.prepare(call, name, wanted).await;
        ready.map_err(|error| error.under(self.meta.field()))
    }

    /// Waits for the locks of a change of `name`, so long that the client still hears what is in the way.
    ///
    /// # Errors
    /// UNAVAILABLE that names what is locked, and whose change has it.
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

    /// Runs a change to its end, whether or not somebody still waits for it. A panic is this
    /// change's failure and nobody else's: its locks and reservations are freed on the way out, and
    /// what it has left in SPDK is brought in line with the record.
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
            tracing::error!(object = %name.key(), %error, "a change did not come to its end");
            self.shared.queue.put(name.key());
            let operation = format!("change of a {}", self.meta.kind());
            Err(Error::internal(
                operation,
                "it was cut off by a fault of the server",
            ))
        });
        ended.map_err(|error| error.about(name))
    }

    /// A change is not answered for yet, since the disk of the store does not answer. It goes on.
    fn not_known(&self, name: &Name) -> Error {
        let waits = self.shared.store().waiting().unwrap_or_default();
        Error::Unavailable(format!(
            "{name}: whether the change is made is not known yet: the disk of state-dir has not answered for {} ms; \
             the change goes on: read the object to see what came of it, or repeat the call",
            waits.as_millis()
        ))
    }

    /// All that an object owns and uses: its name, its parent, and what the kind says.
    pub(super) fn claims(&self, name: &Name, object: &K::Object) -> Claims {
        let claims = self.kind.claims(name, object).owns(name.key().clone());
        match name.parent() {
            Some(parent) => claims.shares(parent.clone()).needs(parent),
            None => claims,
        }
    }

    /// There is no object of this name; one of another kind may be called so.
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

    /// What goes out to a client.
    pub(super) fn answer(&self, name: &Name, mut object: K::Object) -> K::Object {
        self.kind.refresh(name, &mut object);
        K::hide_secrets(&mut object);
        object
    }

    /// The object of a request.
    pub(super) fn given(&self, object: Option<K::Object>) -> Result<K::Object, Error> {
        object.ok_or_else(|| Error::invalid(self.meta.field(), "is required"))
    }

    /// An object as a client sent it, without what only the server fills in, if it is good.
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

    /// The rules of the proto files, then the kind's own for the fields that pass.
    pub(super) fn check(&self, dynamic: &DynamicMessage, object: &K::Object) -> Result<(), Error> {
        let mut violations = Violations::default();
        self.meta.rules().check(dynamic, &mut violations);
        let mut of_kind = Violations::default();
        self.kind.check(object, &mut of_kind);
        violations.extend_new(of_kind);
        let result = violations.into_result();
        result.map_err(|error| error.under(self.meta.field()))
    }

    /// What a repeated create is answered: the object, if each field is as it was asked for, or as it is.
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

    /// What is asked for anew of an object, given what was asked for before, and is not so already.
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

    /// Which fields two objects differ in.
    pub(super) fn between(&self, old: &K::Object, new: &K::Object) -> Changes {
        let (old, new) = (old.transcode_to_dynamic(), new.transcode_to_dynamic());
        Changes::between(self.meta.rules(), &old, &new)
    }
}

/// A message of the API, back from its dynamic form.
pub(super) fn typed<T: Object>(dynamic: &DynamicMessage) -> Result<T, Error> {
    dynamic
        .transcode_to()
        .map_err(|error| Error::internal("reading a message back", error))
}
