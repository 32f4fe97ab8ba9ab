//! Reconciles SPDK with an existing record: after a start, after a loss, and after a change that was cut off or
//! could not be stored.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::record::Record;
use super::{CallContext, Change, Claims, Collection, Key, Kind, Name, Object, Scope, Stage};
use crate::error::Error;
use crate::state::Entry;

/// Deadline of one attempt's waits for peers and locks.
const ATTEMPT: Duration = Duration::from_secs(10);

/// The records of one kind, with the kind's type erased.
pub(crate) trait Records: Send + Sync + 'static {
    /// Last collection segment of the names: `nvmeNamespaces`.
    fn collection(&self) -> &str;

    /// Name of the kind.
    fn kind(&self) -> &str;

    /// Stage in which its objects are recreated at start.
    fn stage(&self) -> Stage;

    /// Restores a stored record in memory; does not call SPDK.
    ///
    /// # Errors
    /// Why the entry is not a record of this kind.
    fn restore(&self, entry: &Entry) -> Result<Name, String>;

    /// Whether a record with this key exists.
    fn has(&self, key: &Key) -> bool;

    /// Returns up to `most` names and revisions of the records of a scope whose keys follow `last`, ordered by key.
    fn after(&self, last: Option<&str>, most: usize, scope: &Scope) -> Vec<(Name, u64)>;

    /// Returns what the object of this key stands on outside of this process.
    fn device(&self, key: &Key) -> Option<String>;

    /// Makes SPDK agree with the record of this key. Idempotent.
    ///
    /// # Errors
    /// Why it failed; to be retried.
    fn reconcile(self: Arc<Self>, key: Key) -> BoxFuture<'static, Result<(), Error>>;
}

impl<K: Kind> Records for Collection<K> {
    fn collection(&self) -> &str {
        self.meta.collection()
    }

    fn kind(&self) -> &str {
        self.meta.kind()
    }

    fn stage(&self) -> Stage {
        K::STAGE
    }

    fn has(&self, key: &Key) -> bool {
        self.records.read().contains_key(key)
    }

    fn device(&self, key: &Key) -> Option<String> {
        let records = self.records.read();
        records
            .get(key)
            .and_then(|record| self.kind.device(&record.object))
    }

    fn after(&self, last: Option<&str>, most: usize, scope: &Scope) -> Vec<(Name, u64)> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let records = self.records.read();
        let found = records.range::<str, _>((from, Bound::Unbounded));
        let found = found.filter(|(key, _)| scope.has(key.as_str())).take(most);
        let named = found.filter_map(|(key, record)| {
            let name = self.meta.parse("name", key.as_str()).ok()?;
            Some((name, record.revision))
        });
        named.collect()
    }

    fn restore(&self, entry: &Entry) -> Result<Name, String> {
        let (name, record) = self.decode(entry)?;
        if self.record(&name).is_some() {
            return Err("the configuration has a volume of this name".to_owned());
        }
        if let Some(volume) = self.kind.volume_ref(&record.object) {
            self.shared.recall(volume);
        }
        self.kind.restore(&name, &record.object, &entry.object);
        let claims = self.claims(&name, &record.object);
        self.shared.registry.restore(&name, claims);
        let conditions = &self.shared.conditions;
        match record.deleting {
            true => conditions.set_deleting(name.key()),
            false => conditions.set_restored(name.key()),
        }
        self.insert(&name, record);
        Ok(name)
    }

    fn reconcile(self: Arc<Self>, key: Key) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(async move {
            let Ok(name) = self.meta.parse("name", key.as_str()) else {
                return Ok(());
            };
            let reconciled = self.attempt(&name).await;
            match &reconciled {
                Ok(Outcome::Nothing) => {
                    // The record may have been removed before a fault set its condition.
                    if self.record(&name).is_none() {
                        self.shared.conditions.forget(name.key());
                    }
                }
                Ok(Outcome::Applied) => self.applied(&name),
                Err(error) => self.failed(&name, error),
            }
            reconciled.map(drop)
        })
    }
}

/// Outcome of an attempt that did not fail.
pub(super) enum Outcome {
    /// No record, or a delete that is complete now.
    Nothing,
    /// SPDK agrees with the record.
    Applied,
}

impl<K: Kind> Collection<K> {
    /// Creates an object of the configuration file, with a record that is read-only and not stored.
    ///
    /// # Errors
    /// The errors of the kind.
    pub(crate) async fn make_configured(&self, id: &str, object: K::Object) -> Result<(), Error> {
        let name = self.meta.name(None, id);
        let call = CallContext::default();
        let mut object = self.kind.ensure(&call, &name, object).await?;
        object.set_name(name.to_string());
        let claims = self.claims(&name, &object);
        self.shared.registry.restore(&name, claims);
        let mut record = Record::new(object.clone(), object);
        record.configured = true;
        record.revision = self.shared.revision();
        self.insert(&name, record);
        Ok(())
    }

    async fn attempt(&self, name: &Name) -> Result<Outcome, Error> {
        let call = CallContext::within(ATTEMPT);
        loop {
            let Some(record) = self.record(name) else {
                return Ok(Outcome::Nothing);
            };
            let is_pending = self.shared.conditions.is_pending(name.key());
            // A delete does not wait for the object's dependencies.
            if is_pending && !record.deleting {
                self.learn(&record.object).await?;
                self.prepare(&call, name, &record.object).await?;
            }
            let claims = self.claims_of(name, &record);
            let (changed, used) = (claims.changed(), claims.used());
            let _held = self.lock(&call, name, changed, used).await?;
            if !self.is_current(name, &record) {
                continue;
            }
            return self.settle(&call, name, &mut { record }).await;
        }
    }

    /// Claims of a record: those of its object, and of what SPDK has or may have where that differs.
    pub(super) fn claims_of(&self, name: &Name, record: &Record<K::Object>) -> Claims {
        let claims = self.claims(name, &record.object);
        let others = record.actual.iter().chain(&record.tried);
        others.fold(claims, |claims, other| {
            claims.union(&self.claims(name, other))
        })
    }

    /// Completes the unfinished work of a locked record: a delete, a rollback, a change that is stored but not
    /// made, objects that SPDK has lost, a record that is not stored.
    ///
    /// # Errors
    /// Why it failed; the work is still unfinished.
    pub(super) async fn settle(
        &self,
        call: &CallContext,
        name: &Name,
        record: &mut Arc<Record<K::Object>>,
    ) -> Result<Outcome, Error> {
        if record.deleting {
            self.unused(name)?;
            self.remove_from_spdk(call, name, record).await?;
            self.forget(name, record).await?;
            tracing::info!(object = %name.key(), "interrupted delete complete");
            return Ok(Outcome::Nothing);
        }
        self.withdraw(call, name, record).await?;
        self.change_back_again(call, name, record).await?;
        self.agree(call, name, record).await?;
        if record.is_unsaved() {
            *record = self.save(name, Record::clone(record)).await?;
        }
        Ok(Outcome::Applied)
    }

    /// Has SPDK take over a locked record where it has another version: a rollback that failed, a change that was stored
    /// first.
    ///
    /// # Errors
    /// Why it failed; to be retried.
    pub(super) async fn change_back_again(
        &self,
        call: &CallContext,
        name: &Name,
        record: &mut Arc<Record<K::Object>>,
    ) -> Result<(), Error> {
        if let Some(actual) = &record.actual {
            let claims = self.claims(name, &record.object);
            let reserved = self.shared.registry.reserve(name, &claims)?;
            let back = self.back_from(name, record, actual);
            let updated = self.kind.update(call, name, back).await;
            updated.map_err(|error| error.under(self.meta.field()))?;
            reserved.settle(claims);
            let mut agreed = Record::clone(record);
            agreed.actual = None;
            *record = self.insert(name, agreed);
        }
        self.kind.settled(name);
        Ok(())
    }

    /// Removes what a failed update of a locked record may have left in SPDK, which the record then no longer has.
    ///
    /// # Errors
    /// Why it could not be removed; to be retried.
    pub(super) async fn withdraw(
        &self,
        call: &CallContext,
        name: &Name,
        record: &mut Arc<Record<K::Object>>,
    ) -> Result<(), Error> {
        let Some(tried) = &record.tried else {
            return Ok(());
        };
        let back = self.back_from(name, record, tried);
        let withdrawn = self.kind.withdraw(call, name, &back).await;
        withdrawn.map_err(|error| error.under(self.meta.field()))?;
        let mut rest = Record::clone(record);
        rest.tried = None;
        let claims = self.claims_of(name, &rest);
        self.shared.registry.reserve(name, &claims)?.settle(claims);
        *record = self.insert(name, rest);
        Ok(())
    }

    /// The change from another version of a record's object to the current one.
    fn back_from(
        &self,
        name: &Name,
        record: &Record<K::Object>,
        other: &K::Object,
    ) -> Change<K::Object> {
        let fields = self.between(other, &record.object);
        self.change_to(name, record, other.clone(), fields)
    }

    /// Removes a record's object from SPDK, in each version that SPDK may have. What was tried has been withdrawn before.
    pub(super) async fn remove_from_spdk(
        &self,
        call: &CallContext,
        name: &Name,
        record: &Record<K::Object>,
    ) -> Result<(), Error> {
        if let Some(actual) = &record.actual {
            self.kind.remove(call, name, actual).await?;
        }
        self.kind.remove(call, name, &record.object).await
    }

    /// Makes SPDK agree with a locked record, and stores what the server chose anew.
    async fn agree(
        &self,
        call: &CallContext,
        name: &Name,
        record: &mut Arc<Record<K::Object>>,
    ) -> Result<(), Error> {
        let claims = self.claims(name, &record.object);
        let reserved = self.shared.registry.reserve(name, &claims)?;
        let ensured = self.kind.ensure(call, name, record.object.clone()).await;
        let mut object = ensured.map_err(|error| error.under(self.meta.field()))?;
        object.set_name(name.to_string());
        reserved.settle(self.claims(name, &object));
        if object != record.object {
            let mut changed = Record::clone(record);
            changed.object = object;
            *record = self.save(name, changed).await?;
        }
        Ok(())
    }

    /// Marks a record as applied, and queues pending records that depend on it or share its parent.
    pub(super) fn applied(&self, name: &Name) {
        let shared = &self.shared;
        let failures = shared.conditions.clear(name.key());
        if failures == 0 {
            return;
        }
        tracing::info!(object = %name.key(), failures, "object applied again");
        let parent = name.parent().and_then(|key| shared.registry.owner(&key));
        let waiting = shared.registry.users_of(name).into_iter();
        let beside = parent.map(|parent| shared.registry.users_of(&parent));
        for other in waiting.chain(beside.into_iter().flatten()) {
            if other != *name && shared.conditions.is_pending(other.key()) {
                shared.queue.put(other.key());
            }
        }
    }

    fn failed(&self, name: &Name, error: &Error) {
        if self.record(name).is_some_and(|record| record.deleting) {
            tracing::warn!(object = %name.key(), %error, "delete incomplete; it is retried");
            return;
        }
        let is_news = self
            .shared
            .conditions
            .set_pending(name.key(), &error.to_string());
        if is_news {
            tracing::warn!(object = %name.key(), %error, "object pending; it is retried");
        }
    }
}
