//! Persistent reservations of namespaces in the store: a separate record beside each namespace that has any.
//!
//! A host's reservation command waits for its record, and pausing a subsystem waits for the command. To avoid a
//! deadlock, reservations are stored without the lock of the namespace, one commit after the other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;
use prost_reflect::ReflectMessage;
use spdk::nvmf::reservation::{self, Changed, Kept, Registrant, Reservation};
use spdk::{Handle, Spdk};

use crate::api::own::{NvmeRegistrant, NvmeReservation};
use crate::error::Error;
use crate::resource::{Key, Name, Shared};
use crate::state::{Change, Entry, Expected};

/// Key prefix of the records; the key of the namespace follows.
const PREFIX: &str = "nvmeReservations/";

/// The reservations of all namespaces.
pub struct Reservations {
    spdk: Handle,
    shared: Arc<Shared>,
    stored: Mutex<HashMap<Key, Stored>>,
    /// Serializes commits: each expects the revision of the one before.
    commits: tokio::sync::Mutex<()>,
}

/// The stored reservation of one namespace.
#[derive(Debug, Clone, Default)]
struct Stored {
    /// The namespace is in SPDK, so changes are accepted.
    is_shown: bool,
    /// Revision of the record; `None` without one.
    revision: Option<u64>,
    reservation: Option<Reservation>,
    /// The record cannot be decoded, although hosts may have been told that they hold a reservation.
    is_unusable: bool,
}

impl Stored {
    fn of(entry: &Entry) -> Self {
        let message = NvmeReservation::decode(entry.object.as_slice()).ok();
        let reservation = message.and_then(from_message);
        Self {
            is_shown: false,
            revision: Some(entry.revision),
            is_unusable: reservation.is_none(),
            reservation,
        }
    }

    fn kept(&mut self, name: &Name) -> Result<Kept, Error> {
        if self.is_unusable {
            let what = format!(
                "the stored reservations of {name} cannot be read, so hosts that it would have to keep out are \
                 not known: delete it and create it again, without reservations"
            );
            return Err(Error::failed_precondition(name, what));
        }
        self.is_shown = true;
        Ok(Kept {
            name: name.key().as_str().to_owned(),
            reservation: self.reservation.clone(),
        })
    }
}

impl Reservations {
    /// Creates an empty set.
    pub fn new(spdk: Handle, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            spdk,
            shared,
            stored: Mutex::default(),
            commits: tokio::sync::Mutex::default(),
        })
    }

    /// Restores a record from the store; returns `false` if it is of another kind.
    pub fn restore(&self, entry: &Entry) -> bool {
        let Some(namespace) = entry.key.strip_prefix(PREFIX) else {
            return false;
        };
        let stored = Stored::of(entry);
        if stored.is_unusable {
            tracing::error!(
                object = entry.key,
                "stored reservations cannot be read: their namespace is not shown"
            );
        }
        self.stored.lock().insert(Key::from(namespace), stored);
        true
    }

    /// Returns the stored reservation of a namespace, and the name under which SPDK reports its changes. Call before
    /// the namespace is added to SPDK: changes are accepted from then on.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the stored record cannot be decoded.
    pub fn of(&self, name: &Name) -> Result<Kept, Error> {
        let mut stored = self.stored.lock();
        stored.entry(name.key().clone()).or_default().kept(name)
    }

    /// Deletes the reservation of a removed namespace, or of an earlier one of the same name.
    ///
    /// # Errors
    /// Those of the store; the record then stays.
    pub async fn forget(&self, name: &Name) -> Result<(), Error> {
        let _turn = self.commits.lock().await;
        let revision = (self.stored.lock().get(name.key())).and_then(|stored| stored.revision);
        if revision.is_some() {
            let gone = HashMap::from([(name.key().clone(), None)]);
            let committed = self.commit(gone).await;
            committed.map_err(|error| Error::not_stored(name, &error))?;
        }
        self.stored.lock().remove(name.key());
        Ok(())
    }

    /// Stores the changes by hosts and completes their commands, until SPDK stops.
    pub async fn keep(self: Arc<Self>) {
        let mut changes = match reservation::changes(&self.spdk).await {
            Ok(changes) => changes,
            Err(error) => {
                tracing::error!(%error, "reservations of hosts cannot be kept");
                return;
            }
        };
        loop {
            match changes.next().await {
                Ok(changed) => self.store(changed).await,
                Err(error) => {
                    tracing::error!(%error, "reservations of hosts are kept no longer");
                    return;
                }
            }
        }
    }

    async fn store(&self, changed: Vec<Changed>) {
        let mut last = HashMap::new();
        let mut refused = HashSet::new();
        let is_durable = {
            let _turn = self.commits.lock().await;
            {
                let stored = self.stored.lock();
                for change in &changed {
                    let key = Key::from(change.name.as_str());
                    if stored.get(&key).is_some_and(|stored| stored.is_shown) {
                        last.insert(key, change.reservation.clone());
                    } else {
                        refused.insert(change.name.clone());
                    }
                }
            }
            let committed = self.commit(last).await;
            if let Err(error) = &committed {
                tracing::error!(%error, "reservations of hosts were not stored: their commands fail");
            }
            committed.is_ok()
        };
        let told = move |spdk: Spdk| async move {
            for change in changed {
                let is_durable = is_durable && !refused.contains(&change.name);
                reservation::saved(spdk, &change, is_durable);
            }
        };
        if let Err(error) = self.spdk.call(told).await {
            tracing::warn!(%error, "hosts wait for their reservations");
        }
    }

    /// Commits the current reservations of these namespaces atomically. The caller holds `commits`.
    async fn commit(
        &self,
        now: HashMap<Key, Option<Reservation>>,
    ) -> Result<(), crate::state::Error> {
        let (mut changes, mut expected) = (Vec::new(), Expected::new());
        let (mut tickets, mut after) = (Vec::new(), Vec::new());
        for (namespace, reservation) in now {
            let before = self.stored.lock().get(&namespace).cloned();
            let before = before.and_then(|stored| stored.revision);
            if reservation.is_none() && before.is_none() {
                continue;
            }
            let ticket = self.shared.events.begin();
            let revision = ticket.revision();
            let key = format!("{PREFIX}{namespace}");
            expected.push((key.clone(), before));
            changes.push(match &reservation {
                Some(reservation) => Change::Put(entry(key, revision, reservation)),
                None => Change::Remove { key, revision },
            });
            tickets.push(ticket);
            after.push((namespace, reservation, revision));
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.shared.store().commit(changes, expected).await?;
        let mut stored = self.stored.lock();
        for (namespace, reservation, revision) in after {
            if let Some(stored) = stored.get_mut(&namespace) {
                stored.revision = reservation.is_some().then_some(revision);
                stored.reservation = reservation;
            }
        }
        for ticket in tickets {
            ticket.committed([]);
        }
        Ok(())
    }
}

fn entry(key: String, revision: u64, reservation: &Reservation) -> Entry {
    let message = to_message(reservation);
    Entry {
        key,
        kind: message.descriptor().full_name().to_owned(),
        created: revision,
        revision,
        deleting: false,
        wanted: Vec::new(),
        object: message.encode_to_vec(),
    }
}

fn to_message(reservation: &Reservation) -> NvmeReservation {
    let registrants = reservation.registrants.iter();
    NvmeReservation {
        volume_uuid: reservation.bdev.clone(),
        r#type: reservation.kind.into(),
        held_key: reservation.key,
        holder: reservation.holder.clone(),
        registrants: registrants
            .map(|one| NvmeRegistrant {
                host: one.host.clone(),
                registered_key: one.key,
            })
            .collect(),
    }
}

/// Decodes a record. SPDK validates its consistency when the namespace is added.
fn from_message(message: NvmeReservation) -> Option<Reservation> {
    let registrants = message.registrants.into_iter();
    Some(Reservation {
        bdev: message.volume_uuid,
        kind: u8::try_from(message.r#type).ok()?,
        key: message.held_key,
        holder: message.holder,
        registrants: registrants
            .map(|one| Registrant {
                host: one.host,
                key: one.registered_key,
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::storage::NvmeNamespace;
    use crate::resource::Meta;

    #[test]
    fn what_is_stored_comes_back() {
        let reservation = Reservation {
            bdev: "volume".into(),
            kind: 3,
            key: u64::MAX,
            holder: "host".into(),
            registrants: vec![Registrant {
                host: "host".into(),
                key: u64::MAX,
            }],
        };
        let stored = entry("key".into(), 1, &reservation);
        let message = NvmeReservation::decode(stored.object.as_slice()).unwrap();
        assert_eq!(from_message(message), Some(reservation));
        assert_eq!(stored.kind, "opi_spdk.v1.NvmeReservation");
    }

    #[test]
    fn a_namespace_whose_stored_reservations_cannot_be_read_is_not_shown() {
        let meta = Meta::of(&NvmeNamespace::default().descriptor());
        let name = meta
            .parse("name", "nvmeSubsystems/s/nvmeNamespaces/n")
            .unwrap();
        let none = from_message(NvmeReservation::default()).unwrap();
        let mut stored = entry("key".into(), 1, &none);
        assert!(Stored::of(&stored).kept(&name).is_ok());
        assert!(Stored::default().kept(&name).is_ok(), "there are none");
        stored.object = vec![0xff];
        let mut unusable = Stored::of(&stored);
        let error = unusable.kept(&name).unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
        assert!(!unusable.is_shown);
    }
}
