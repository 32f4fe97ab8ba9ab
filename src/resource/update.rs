//! The update of an object (AIP-134): the mask says which fields count, the kind is asked only for
//! what differs, and `allow_missing` makes what is not there.

use std::sync::Arc;

use prost_reflect::{DynamicMessage, ReflectMessage};

use super::collection::{Collection, typed};
use super::lifecycle::{CreateOutcome, UNDO, check_stays};
use super::record::Record;
use super::registry::Reserved;
use super::request::{CallContext, Update};
use super::{Change, Changes, Kind, Name, Object, id};
use crate::error::Error;
use crate::resource::mask::Mask;

/// What the client sent, read.
struct Wish {
    /// The values, without what only the server fills in.
    values: DynamicMessage,
    mask: Mask,
    allow_missing: bool,
}

impl<K: Kind> Collection<K> {
    /// Changes an object. Where nothing differs it is answered as it is.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, NOT_FOUND unless `allow_missing`, FAILED_PRECONDITION for a change that
    /// cannot be made while the object is in use, and what the kind says.
    pub async fn update(
        self: &Arc<Self>,
        call: CallContext,
        request: Update<K::Object>,
    ) -> Result<K::Object, Error> {
        let object = self.given(request.object)?;
        let name_field = format!("{}.name", self.meta.field());
        let name = self.meta.parse(&name_field, object.name())?;
        let mask = Mask::parse(request.mask.as_deref(), self.meta.rules())?;
        let mut values = object.transcode_to_dynamic();
        self.meta.rules().scrub(&mut values);
        let wish = Wish {
            values,
            mask,
            allow_missing: request.allow_missing,
        };
        let this = Arc::clone(self);
        self.run(&call, &name.clone(), async move {
            this.change(&call, &name, &wish).await
        })
        .await
    }

    /// Works out the change from what is known, takes the locks that it needs, and begins again if
    /// the object is no longer the same by then.
    async fn change(
        &self,
        call: &CallContext,
        name: &Name,
        wish: &Wish,
    ) -> Result<K::Object, Error> {
        let rules = self.meta.rules();
        loop {
            let Some(record) = self.record(name) else {
                match self.make_missing(call, name, wish).await? {
                    CreateOutcome::New(object) => return Ok(object),
                    CreateOutcome::Existing(_) => continue,
                }
            };
            if record.configured {
                return Err(Error::configured(name));
            }
            let asked_before = record.wanted.transcode_to_dynamic();
            let mut asked = asked_before.clone();
            wish.mask.apply(rules, &mut asked, &wish.values);
            let wanted: K::Object = typed(&asked)?;
            self.check(&asked, &wanted)?;

            let fields = self.differing(&record, &asked_before, &asked);
            let mut target = record.object.transcode_to_dynamic();
            fields.apply(rules, &mut target, &asked);
            let target: K::Object = typed(&target)?;
            // What the server chose, and the client only repeats, stays the server's choice.
            let mut recorded = asked_before;
            fields.apply(rules, &mut recorded, &asked);
            let recorded: K::Object = typed(&recorded)?;

            if !fields.is_empty() {
                self.learn(&target).await?;
                self.prepare(call, name, &target).await?;
            }
            let before = self.claims_of(name, &record);
            let after = self.claims(name, &target);
            let owned = before.changed().chain(after.changed());
            let used = before.used().chain(after.used());
            let _held = self.lock(call, name, owned, used).await?;
            if !self.is_current(name, &record) {
                continue;
            }
            // Before the lock it could be one whose delete is about to end.
            check_stays(name, &record)?;
            if record.actual.is_some() {
                // An earlier change is open: this one begins from what the record says.
                self.settle(call, name, &mut { record }).await?;
                self.applied(name);
                continue;
            }
            if fields.is_empty() && self.shared.conditions.is_pending(name.key()) {
                let mut record = record;
                self.settle(call, name, &mut record).await?;
                self.applied(name);
                return Ok(self.answer(name, record.object.clone()));
            }
            if fields.is_empty() {
                let confirmed = self.kind.confirm(name, &record.object).await;
                confirmed.map_err(|error| error.under(self.meta.field()))?;
                return Ok(self.answer(name, record.object.clone()));
            }
            let reserved = self.shared.registry.reserve(name, &after)?;
            let change = Change {
                old: record.object.clone(),
                wanted: target,
                asked: wanted,
                fields,
                named: wish.mask.named(rules, &wish.values),
                is_undo: false,
                users: self.shared.registry.users_of(name),
            };
            let foreseen = self.kind.foresee(call, name, &change).await;
            let foreseen = foreseen.map_err(|error| error.under(self.meta.field()))?;
            let mut changed = Record::clone(&record);
            changed.wanted = recorded;
            let changed = match foreseen {
                None => {
                    self.make_then_store(call, name, &record, changed, change, reserved)
                        .await?
                }
                Some(object) => {
                    changed.object = object;
                    self.store_then_make(call, name, &record, changed, change, reserved)
                        .await?
                }
            };
            return Ok(self.answer(name, changed.object.clone()));
        }
    }

    /// A change that can be undone: SPDK, then the store. A change that the store refuses is undone in
    /// SPDK.
    async fn make_then_store(
        &self,
        call: &CallContext,
        name: &Name,
        before: &Record<K::Object>,
        mut changed: Record<K::Object>,
        change: Change<K::Object>,
        reserved: Reserved,
    ) -> Result<Arc<Record<K::Object>>, Error> {
        let fields = change.fields.clone();
        let updated = self.kind.update(call, name, change).await;
        changed.object = updated.map_err(|error| {
            // The kind's own undo may have failed too: SPDK is made to agree with the record again.
            self.shared.queue.put(name.key());
            error.under(self.meta.field())
        })?;
        changed.object.set_name(name.to_string());
        let claims = self.claims(name, &changed.object);
        match self.save(name, changed.clone()).await {
            Ok(changed) => {
                reserved.settle(claims);
                self.applied(name);
                Ok(changed)
            }
            Err(error) => {
                let object = changed.object;
                self.change_back(name, before, object, fields, reserved)
                    .await;
                Err(error)
            }
        }
    }

    /// A change that destroys content, so that SPDK cannot undo it: the store, then SPDK. A change that
    /// SPDK refuses is undone in the store, and one that is cut off is made by the queue.
    async fn store_then_make(
        &self,
        call: &CallContext,
        name: &Name,
        before: &Record<K::Object>,
        mut changed: Record<K::Object>,
        change: Change<K::Object>,
        reserved: Reserved,
    ) -> Result<Arc<Record<K::Object>>, Error> {
        changed.object.set_name(name.to_string());
        changed.actual = Some(before.object.clone());
        let stored = self.save(name, changed).await?;
        let mut object = match self.kind.update(call, name, change).await {
            Ok(object) => object,
            Err(error) => {
                let error = error.under(self.meta.field());
                self.put_back(name, before, &stored, &error).await?;
                return Err(error);
            }
        };
        object.set_name(name.to_string());
        reserved.settle(self.claims(name, &object));
        let mut made = Record::clone(&stored);
        made.actual = None;
        let as_foreseen = object == made.object;
        made.object = object;
        let saved = match as_foreseen {
            true => None,
            false => self.save(name, made.clone()).await.map_err(|error| {
                // All that was asked for is stored; what the server chose it chooses again.
                tracing::warn!(object = %name.key(), %error, "a choice of the server was not stored");
            }).ok(),
        };
        let made = saved.unwrap_or_else(|| self.insert(name, made));
        self.applied(name);
        Ok(made)
    }

    /// The change that makes of what SPDK has what the record says.
    pub(super) fn change_to(
        &self,
        name: &Name,
        record: &Record<K::Object>,
        actual: K::Object,
        fields: Changes,
    ) -> Change<K::Object> {
        Change {
            old: actual,
            wanted: record.object.clone(),
            asked: record.wanted.clone(),
            fields,
            named: Vec::new(),
            is_undo: true,
            users: self.shared.registry.users_of(name),
        }
    }

    /// The store did not take a change: SPDK gets the object back as it was, now or later.
    async fn change_back(
        &self,
        name: &Name,
        record: &Record<K::Object>,
        actual: K::Object,
        fields: Changes,
        reserved: Reserved,
    ) {
        let back = self.change_to(name, record, actual.clone(), fields);
        let call = CallContext::within(UNDO);
        if let Err(left) = self.kind.update(&call, name, back).await {
            tracing::error!(object = %name.key(), %left, "a change that could not be stored could not be undone; it is retried");
            let mut differs = record.clone();
            differs.actual = Some(actual);
            // Until it is undone it has both.
            reserved.settle(self.claims_of(name, &differs));
            self.insert(name, differs);
            let reason = format!("a change that could not be stored could not be undone: {left}");
            self.shared.conditions.set_pending(name.key(), &reason);
            self.shared.queue.put(name.key());
        }
    }

    /// `allow_missing`: the mask does not count, the object is made with all that was sent.
    async fn make_missing(
        &self,
        call: &CallContext,
        name: &Name,
        wish: &Wish,
    ) -> Result<CreateOutcome<K::Object>, Error> {
        if !wish.allow_missing {
            return Err(self.missing(name));
        }
        let field = || format!("{}.name", self.meta.field());
        let checked = id::check_for(self.meta.field(), name.id());
        checked.map_err(|what| Error::invalid(field(), what))?;
        let wanted: K::Object = typed(&wish.values)?;
        self.check(&wish.values, &wanted)?;
        self.make(call, name, wanted).await
    }
}
