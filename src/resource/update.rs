//! Update of an object (AIP-134): the mask selects the fields, the kind is called for those that differ, and
//! `allow_missing` creates a missing object.

use std::sync::Arc;

use prost_reflect::{DynamicMessage, ReflectMessage};

use super::collection::{Collection, typed};
use super::in_flight::InFlight;
use super::lifecycle::{CreateOutcome, UNDO, check_stays};
use super::record::Record;
use super::registry::Reserved;
use super::request::{CallContext, Update};
use super::{Change, Changes, Kind, Name, Object, id};
use crate::error::Error;
use crate::resource::mask::Mask;

/// A parsed update request.
struct Wish<T> {
    /// Requested values, without output-only fields.
    values: DynamicMessage,
    mask: Mask,
    allow_missing: bool,
    /// Precondition on the current object.
    applies: fn(&T) -> bool,
}

impl<K: Kind> Collection<K> {
    /// Updates an object. Returns it as it is where no field differs.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, NOT_FOUND unless `allow_missing`, FAILED_PRECONDITION for a change that cannot be made
    /// while the object is in use, and the errors of the kind.
    pub async fn update(
        self: &Arc<Self>,
        call: CallContext,
        request: Update<K::Object>,
    ) -> Result<K::Object, Error> {
        self.update_if(call, request, |_| true).await
    }

    /// As [`update`](Self::update), but only if `applies` holds for the object, else returns it as it is. The object
    /// cannot change between the test and the update.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub async fn update_if(
        self: &Arc<Self>,
        call: CallContext,
        request: Update<K::Object>,
        applies: fn(&K::Object) -> bool,
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
            applies,
        };
        let this = Arc::clone(self);
        self.run(&call, &name.clone(), async move {
            this.change(&call, &name, &wish).await
        })
        .await
    }

    /// Optimistic concurrency: computes the change from the current record, acquires the locks it needs, and
    /// retries if the record has changed meanwhile.
    async fn change(
        &self,
        call: &CallContext,
        name: &Name,
        wish: &Wish<K::Object>,
    ) -> Result<K::Object, Error> {
        let rules = self.meta.rules();
        loop {
            let Some(record) = self.record(name) else {
                match self.make_missing(call, name, wish).await? {
                    CreateOutcome::New(object) => return Ok(object),
                    CreateOutcome::Existing(_) => continue,
                }
            };
            // A record that changes from here on is not current below, and is tested again.
            if !(wish.applies)(&record.object) {
                return Ok(self.answer(name, record.object.clone()));
            }
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
            // Echoing a server-assigned value does not pin it.
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
            // Checked under the lock: the record may have been marked as deleting before.
            check_stays(name, &record)?;
            if record.tried.is_some() {
                // The object itself need not be as recorded: this change may be the remedy.
                let is_repeated = record.tried.as_ref() == Some(&target);
                match self.withdraw(call, name, &mut Arc::clone(&record)).await {
                    Ok(()) => continue,
                    // What is there is what is asked for: the kind may be able to complete it.
                    Err(_) if is_repeated => {}
                    Err(error) => return Err(error),
                }
            }
            if record.actual.is_some() {
                // An earlier change is still to be reconciled: finish it, then retry from the record.
                self.change_back_again(call, name, &mut { record }).await?;
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
            self.check_dependencies_stay(name, &after)?;
            self.check_dependencies_settled(name, &after)?;
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
            changed.tried = None;
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

    /// Order for a change that can be rolled back: SPDK, then the store. SPDK is rolled back if the store
    /// refuses the change.
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
        let mut left = before.clone();
        left.tried = Some(change.wanted.clone());
        let in_flight = InFlight::new(self, name, left, reserved);
        changed.object = match self.kind.update(call, name, change).await {
            Ok(object) => object,
            Err(error) => {
                if !error.is_unsettled() {
                    in_flight.failed();
                }
                // A part may have been lost in the rollback.
                self.shared.queue.put(name.key());
                return Err(error.under(self.meta.field()));
            }
        };
        changed.object.set_name(name.to_string());
        let claims = self.claims(name, &changed.object);
        match self.save(name, changed.clone()).await {
            Ok(changed) => {
                in_flight.made(claims);
                self.kind.settled(name);
                self.applied(name);
                Ok(changed)
            }
            Err(error) => {
                let object = changed.object;
                self.change_back(name, before, object, fields, in_flight)
                    .await;
                Err(error)
            }
        }
    }

    /// Order for a change that destroys content, which SPDK cannot roll back: the store, then SPDK. The store is
    /// rolled back if SPDK refuses the change; the queue completes a change that was cut off.
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
        // After a panic and an unsettled error the record has both versions.
        let reserved = reserved.kept_when_dropped();
        let updated = self.kind.update(call, name, change).await;
        let mut object = match updated {
            Ok(object) => object,
            Err(error) => {
                let error = error.under(self.meta.field());
                let mut was = before.clone();
                if error.is_unsettled() {
                    was.tried = Some(stored.object.clone());
                }
                let back = self.put_back(name, &was, &stored, &error).await;
                if !error.is_unsettled() {
                    reserved.roll_back();
                }
                return back.and(Err(error));
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
                // Every requested value is stored; only the server's choice is lost, and is made again after a
                // restart.
                tracing::warn!(object = %name.key(), %error, "a choice of the server was not stored");
            }).ok(),
        };
        let made = saved.unwrap_or_else(|| self.insert(name, made));
        self.kind.settled(name);
        self.applied(name);
        Ok(made)
    }

    /// Builds the change that turns what SPDK has (`actual`) into what the record says.
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

    /// Rolls SPDK back after the store refused a change; queues the rollback for retry if it fails.
    async fn change_back(
        &self,
        name: &Name,
        record: &Record<K::Object>,
        actual: K::Object,
        fields: Changes,
        in_flight: InFlight<'_, K>,
    ) {
        let back = self.change_to(name, record, actual.clone(), fields);
        let call = CallContext::within(UNDO);
        if let Err(left) = self.kind.update(&call, name, back).await {
            tracing::error!(object = %name.key(), %left, "a change that could not be stored could not be undone; it is retried");
            let mut differs = record.clone();
            differs.actual = Some(actual);
            // Until the rollback succeeds the record holds the claims of both versions.
            in_flight.made(self.claims_of(name, &differs));
            self.insert(name, differs);
            let reason = format!("a change that could not be stored could not be undone: {left}");
            self.shared.conditions.set_pending(name.key(), &reason);
            self.shared.queue.put(name.key());
        } else {
            in_flight.failed();
            self.kind.settled(name);
            // What the kind could not bring back is retried.
            self.shared.queue.put(name.key());
        }
    }

    /// Creates a missing object for `allow_missing`, with all values that were sent: the mask is ignored.
    async fn make_missing(
        &self,
        call: &CallContext,
        name: &Name,
        wish: &Wish<K::Object>,
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
