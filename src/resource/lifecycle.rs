//! How objects come and go: create and delete, and what follows when the store or SPDK fails half-way.

use std::sync::Arc;
use std::time::Duration;

use super::record::Record;
use super::{CallContext, Collection, Kind, Name, Object};
use crate::error::Error;

/// How long undoing a change that could not be stored may take.
pub(super) const UNDO: Duration = Duration::from_secs(5);

/// What an attempt to make an object came to.
pub(super) enum Made<T> {
    New(T),
    Existing(Arc<Record<T>>),
}

impl<K: Kind> Collection<K> {
    /// Makes the object unless there is one of that name, which is answered then. Takes the locks.
    pub(super) async fn make(
        &self,
        call: &CallContext,
        name: &Name,
        wanted: K::Object,
    ) -> Result<Made<K::Object>, Error> {
        if self.record(name).is_none() || self.shared.conditions.is_pending(name.key()) {
            self.learn(&wanted).await?;
            self.prepare(call, name, &wanted).await?;
        }
        let uses = self.uses(name, &wanted);
        let (changed, used) = (uses.changed(), uses.used());
        let _held = self.lock(call, name, changed, used).await?;
        if let Some(mut record) = self.record(name) {
            check_stays(name, &record)?;
            if self.same(name, &record, &wanted).is_ok() {
                self.agree(call, name, &mut record).await?;
                self.applied(name);
            }
            return Ok(Made::Existing(record));
        }
        let reserved = self.shared.registry.reserve(name, &uses)?;
        let created = self.kind.ensure(call, name, wanted.clone()).await;
        let mut object = created.map_err(|error| error.under(self.meta.field()))?;
        object.set_name(name.to_string());
        let uses = self.uses(name, &object);
        let record = Record::new(wanted, object);
        match self.save(name, record.clone()).await {
            Ok(record) => {
                reserved.settle(uses);
                Ok(Made::New(self.answer(name, record.object.clone())))
            }
            Err(error) => {
                let call = CallContext::within(UNDO);
                if let Err(left) = self.kind.remove(&call, name, &record.object).await {
                    tracing::error!(object = %name.key(), %left, "what could not be stored could not be removed either; it is retried");
                    reserved.settle(uses);
                    self.remove_later(name, record);
                }
                Err(error)
            }
        }
    }

    /// Has SPDK's object of a record that nobody was told of removed once that is possible.
    fn remove_later(&self, name: &Name, mut record: Record<K::Object>) {
        record.deleting = true;
        self.insert(name, record);
        self.shared.conditions.set_deleting(name.key());
        self.shared.queue.put(name.key());
    }

    pub(super) async fn remove(&self, call: &CallContext, name: &Name) -> Result<(), Error> {
        loop {
            let record = self.record(name).ok_or_else(|| self.missing(name))?;
            if record.configured {
                return Err(Error::configured(name));
            }
            let uses = self.uses(name, &record.object);
            let (changed, used) = (uses.changed(), uses.used());
            let _held = self.lock(call, name, changed, used).await?;
            if !self.is_current(name, &record) {
                continue;
            }
            if let Some(user) = self.shared.registry.users_of(name).first() {
                return Err(Error::InUse {
                    name: name.into(),
                    user: user.into(),
                    remedy: "delete that first".into(),
                });
            }
            return self.remove_locked(call, name, record).await;
        }
    }

    /// The store knows that a delete has begun before SPDK does, so that one that is cut off is
    /// brought to its end.
    async fn remove_locked(
        &self,
        call: &CallContext,
        name: &Name,
        record: Arc<Record<K::Object>>,
    ) -> Result<(), Error> {
        let mut marked = record;
        let mut before = None;
        if !marked.deleting {
            let mut next = Record::clone(&marked);
            next.deleting = true;
            let saved = self.save(name, next).await?;
            let condition = self.shared.conditions.replace_by_deleting(name.key());
            before = Some((std::mem::replace(&mut marked, saved), condition));
        }
        if let Err(error) = self.kind.remove(call, name, &marked.object).await {
            if let Some((was, condition)) = before {
                self.shared.conditions.restore(name.key(), condition);
                self.put_back(name, &was, &marked).await;
            }
            return Err(error);
        }
        let forgotten = self.forget(name, &marked).await;
        if forgotten.is_err() {
            self.shared.queue.put(name.key());
        }
        forgotten
    }

    /// A delete has failed: the record is as it was before.
    async fn put_back(&self, name: &Name, was: &Record<K::Object>, marked: &Record<K::Object>) {
        let mut back = was.clone();
        back.stored = marked.stored;
        if let Err(error) = self.save(name, back.clone()).await {
            tracing::error!(object = %name.key(), %error, "a delete that failed could not be taken back in the store; it is retried");
            self.insert(name, back);
            self.shared.queue.put(name.key());
        }
    }
}

/// Fails for a record that is about to go.
pub(super) fn check_stays<T>(name: &Name, record: &Record<T>) -> Result<(), Error> {
    if !record.deleting {
        return Ok(());
    }
    let what = format!("{name} is being deleted: try again once that is complete");
    Err(Error::Unavailable(what))
}
