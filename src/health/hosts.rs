//! Monitors hosts that connect and disconnect, and emits events to watchers.

use std::collections::HashMap;
use std::sync::Arc;

use spdk::nvmf::{self, Coming, Connected};
use spdk::{CallError, Handle};

use super::Monitor;
use crate::events::{Event, EventType};
use crate::objects::hosts::subsystem_of;
use crate::resource::Shared;

/// Event limit of one check: a host that reconnects endlessly must not evict all other events from the log.
const MOST: usize = 32;

/// Monitor of the hosts of all subsystems.
pub(crate) struct Hosts {
    spdk: Handle,
    shared: Arc<Shared>,
    /// Connected hosts, by the numbers of their controllers.
    known: HashMap<usize, Known>,
    /// Events that this check may still emit.
    room: usize,
    left_out: usize,
}

/// A connected host, and the typed name of its subsystem.
struct Known {
    object: String,
    host: Connected,
}

impl Hosts {
    /// Creates the monitor for this SPDK.
    pub(crate) fn new(spdk: Handle, shared: Arc<Shared>) -> Self {
        Self {
            spdk,
            shared,
            known: HashMap::new(),
            room: MOST,
            left_out: 0,
        }
    }

    fn connected(&mut self, host: Connected) {
        // Discovery, and subsystems created through SPDK's own commands, are not part of the API.
        let Some(subsystem) = subsystem_of(&self.shared.registry, &host.subsystem) else {
            return;
        };
        let known = Known {
            object: subsystem.key().to_string(),
            host,
        };
        self.gone(known.host.number());
        self.tell(EventType::HostConnected, &known);
        self.known.insert(known.host.number(), known);
    }

    fn gone(&mut self, controller: usize) {
        if let Some(known) = self.known.remove(&controller) {
            self.tell(EventType::HostDisconnected, &known);
        }
    }

    fn tell(&mut self, what: EventType, known: &Known) {
        let Known { object, host } = known;
        tracing::debug!(
            subsystem = %object,
            host = %host.host,
            address = %host.address,
            controller = host.controller_id,
            "{}",
            what.as_str_name()
        );
        match self.room.checked_sub(1) {
            Some(room) => self.room = room,
            None => {
                self.left_out = self.left_out.saturating_add(1);
                return;
            }
        }
        let reason = match std::mem::take(&mut self.left_out) {
            0 => String::new(),
            number => format!("{number} events of hosts before it are left out: list the hosts"),
        };
        self.shared.events.tell(Event {
            host_nqn: host.host.clone(),
            address: host.address.clone(),
            controller_id: host.controller_id.into(),
            ..Event::now(what, object).because(&reason)
        });
    }

    /// Reconciles the known hosts with SPDK, after notifications have been lost.
    async fn list(&mut self) -> Result<(), CallError> {
        let Ok(found) = self.spdk.call(nvmf::connections).await? else {
            return Ok(());
        };
        let found = found.hosts();
        let there = |number: &usize| found.iter().any(|host| host.number() == *number);
        let gone = self.known.keys().copied();
        for number in gone.filter(|number| !there(number)).collect::<Vec<_>>() {
            self.gone(number);
        }
        for host in found {
            if !self.known.contains_key(&host.number()) {
                self.connected(host);
            }
        }
        Ok(())
    }
}

impl Monitor for Hosts {
    async fn check(&mut self) -> Result<(), CallError> {
        self.room = MOST;
        let comings = nvmf::comings();
        for coming in comings.all {
            match coming {
                Coming::Connected(host) => self.connected(host),
                Coming::Gone(controller) => self.gone(controller),
            }
        }
        match comings.lost {
            0 => Ok(()),
            lost => {
                tracing::warn!(lost, "hosts come and go faster than can be told");
                self.list().await
            }
        }
    }
}
