//! Create and delete, and their rollback when the store or SPDK fails half-way.

use std::sync::Arc;
use std::time::Duration;

use super::in_flight::InFlight;
use super::record::Record;
use super::{CallContext, Collection, Kind, Name, Object};
use crate::error::Error;

/// Time limit of the rollback of a change that could not be stored.
pub(super) const UNDO: Duration = Duration::from_secs(5);

/// Outcome of a create that did not fail.
pub(super) enum CreateOutcome<T> {
    New(T),
    Existing(Arc<Record<T>>),
}

impl<K: Kind> Collection<K> {
    /// Creates the object, or returns the existing record of that name. Acquires the locks.
    pub(super) async fn make(
        &self,
        call: &CallContext,
        name: &Name,
        wanted: K::Object,
    ) -> Result<CreateOutcome<K::Object>, Error> {
        let is_new = self.record(name).is_none_or(|record| record.is_leftover());
        if is_new || self.shared.conditions.is_pending(name.key()) {
            self.learn(&wanted).await?;
            self.prepare(call, name, &wanted).await?;
        }
        let claims = self.claims(name, &wanted);
        let found = self.record(name);
        if found.is_none() {
            self.check_usable(name)?;
        }
        let found_claims = found.as_deref().map(|record| self.claims_of(name, record));
        let found_claims = found_claims.unwrap_or_default();
        let owned = claims.changed().chain(found_claims.changed());
        let used = claims.used().chain(found_claims.used());
        let _held = self.lock(call, name, owned, used).await?;
        let mut existing = self.record(name);
        // A record that appeared during the wait for the locks was just created by a concurrent create and needs
        // no reconciling.
        let is_locked = |record: &Arc<Record<K::Object>>| {
            let found = found.as_ref();
            found.is_some_and(|found| Arc::ptr_eq(found, record))
        };
        if let Some(record) = &mut existing
            && is_locked(record)
            && record.is_leftover()
        {
            self.settle(call, name, record).await?;
            existing = None;
        }
        if let Some(mut record) = existing {
            check_stays(name, &record)?;
            if is_locked(&record) && self.same(name, &record, &wanted).is_ok() {
                self.settle(call, name, &mut record).await?;
                self.applied(name);
            }
            return Ok(CreateOutcome::Existing(record));
        }
        self.check_dependencies_stay(name, &claims)?;
        self.check_dependencies_settled(name, &claims)?;
        let reserved = self.shared.registry.reserve(name, &claims)?;
        let mut asked = wanted.clone();
        asked.set_name(name.to_string());
        let in_flight = InFlight::new(self, name, deleting(asked.clone(), asked), reserved);
        let created = self.kind.ensure(call, name, wanted.clone()).await;
        let mut object = match created {
            Ok(object) => object,
            // Dropping `in_flight` has what the step made by then removed.
            Err(error) if error.is_unsettled() => return Err(error.under(self.meta.field())),
            Err(error) => {
                in_flight.failed();
                return Err(error.under(self.meta.field()));
            }
        };
        object.set_name(name.to_string());
        let claims = self.claims(name, &object);
        let record = Record::new(wanted, object);
        match self.save(name, record.clone()).await {
            Ok(record) => {
                in_flight.made(claims);
                Ok(CreateOutcome::New(self.answer(name, record.object.clone())))
            }
            Err(error) => {
                let call = CallContext::within(UNDO);
                match self.kind.remove(&call, name, &record.object).await {
                    Ok(()) => in_flight.failed(),
                    Err(left) => {
                        tracing::error!(object = %name.key(), %left, "what could not be stored could not be removed either; it is retried");
                        in_flight.made(claims);
                        self.clean_up_later(name, deleting(record.wanted, record.object));
                    }
                }
                Err(error)
            }
        }
    }

    pub(super) async fn remove(&self, call: &CallContext, name: &Name) -> Result<(), Error> {
        loop {
            let Some(record) = self.record(name) else {
                return self.remove_unusable(call, name).await;
            };
            if record.configured {
                return Err(Error::configured(name));
            }
            let claims = self.claims_of(name, &record);
            let (changed, used) = (claims.changed(), claims.used());
            let _held = self.lock(call, name, changed, used).await?;
            if !self.is_current(name, &record) {
                continue;
            }
            self.unused(name)?;
            return self.remove_locked(call, name, record).await;
        }
    }

    /// Checks that no other object uses this one, which can then be removed.
    ///
    /// # Errors
    /// FAILED_PRECONDITION that names one user.
    pub(super) fn unused(&self, name: &Name) -> Result<(), Error> {
        match self.shared.registry.users_of(name).first() {
            None => Ok(()),
            Some(user) => Err(Error::InUse {
                name: name.into(),
                user: user.into(),
                remedy: "delete that first".into(),
            }),
        }
    }

    /// Deletes an object whose locks are held. The intent is stored before SPDK removes anything, so that a
    /// delete cut off by a crash is completed after the restart, and one whose effects are unknown by the queue.
    async fn remove_locked(
        &self,
        call: &CallContext,
        name: &Name,
        record: Arc<Record<K::Object>>,
    ) -> Result<(), Error> {
        let mut marked = record;
        let mut before = None;
        if !marked.deleting {
            // Before the delete has begun, which may not be taken back.
            self.withdraw(call, name, &mut marked).await?;
            let mut next = Record::clone(&marked);
            next.deleting = true;
            let saved = self.save(name, next).await?;
            let condition = self.shared.conditions.replace_by_deleting(name.key());
            before = Some((std::mem::replace(&mut marked, saved), condition));
        }
        if let Err(error) = self.remove_from_spdk(call, name, &marked).await {
            if error.is_unsettled() {
                // SPDK goes on or has removed a part: to make the object anew would replace its content by nothing.
                self.shared.queue.put(name.key());
            } else if let Some((was, condition)) = before {
                self.shared.conditions.restore(name.key(), condition);
                self.put_back(name, &was, &marked, &error).await?;
            }
            return Err(error);
        }
        let forgotten = self.forget(name, &marked).await;
        if forgotten.is_err() {
            self.shared.queue.put(name.key());
        }
        forgotten
    }

    /// Rolls the store back after SPDK refused a change that was committed already.
    ///
    /// # Errors
    /// UNAVAILABLE, with why the change `failed`, if the store refuses the rollback too: it is retried, and a
    /// restart before it succeeds makes the stored change.
    pub(super) async fn put_back(
        &self,
        name: &Name,
        was: &Record<K::Object>,
        stored: &Record<K::Object>,
        failed: &Error,
    ) -> Result<(), Error> {
        let mut back = was.clone();
        back.stored = stored.stored;
        // The kind's own rollback may have failed: have SPDK reconciled with the record.
        self.shared.queue.put(name.key());
        let Err(error) = self.save(name, back.clone()).await else {
            return Ok(());
        };
        tracing::error!(object = %name.key(), %error, "a change that failed could not be taken back in the store; it is retried");
        self.insert(name, back);
        Err(Error::Unavailable(format!(
            "{name}: the change failed ({failed}), and could not be taken back in the store yet ({error}): that is \
             retried, and a restart before that makes the change"
        )))
    }
}

/// The record of an object that is to be removed from SPDK.
fn deleting<T: Clone>(wanted: T, object: T) -> Record<T> {
    let mut record = Record::new(wanted, object);
    record.deleting = true;
    record
}

/// Fails for a record that is being deleted.
pub(super) fn check_stays<T>(name: &Name, record: &Record<T>) -> Result<(), Error> {
    if !record.deleting {
        return Ok(());
    }
    let what = format!("{name} is being deleted: try again once that is complete");
    Err(Error::Unavailable(what))
}
