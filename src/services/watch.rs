//! Starts the monitors of what changes on its own or through SPDK's own commands.

use std::sync::Arc;

use super::Services;
use crate::backend::{Files, Paths, Sizes};
use crate::frontend::EndOldKeys;
use crate::health::{Exports, Failures, Hosts, Monitor, Parted, Parts, Refusals, monitor};
use crate::resource::{Collection, Kind};

impl Services {
    /// Starts the monitors, which run until the server stops. If SPDK `takes_commands` of its own, monitors parts of
    /// subsystems too, which those commands can remove.
    pub(super) fn watch(&self, takes_commands: bool) {
        let (spdk, health, shared) = (&self.spdk, &self.health, &self.shared);
        let hosts = Hosts::new(spdk.clone(), Arc::clone(shared));
        self.monitor(hosts);
        self.monitor(Refusals);
        let admitted = Arc::clone(&self.hosts.nvme_hosts);
        self.monitor(EndOldKeys::new(spdk.clone(), admitted));
        let controllers = Arc::clone(&self.nvme_remote.nvme_remote_controllers);
        let events = Arc::clone(self.events());
        self.monitor(Paths::new(
            spdk.clone(),
            controllers,
            Arc::clone(health),
            events,
        ));
        let volumes = Arc::clone(&self.aio.aio_volumes);
        let files = Files::new(
            spdk.clone(),
            volumes,
            Arc::clone(shared),
            Arc::clone(health),
        );
        self.monitor(files);
        let failures = Failures::new(spdk.clone(), Arc::clone(shared), Arc::clone(health));
        self.monitor(failures);
        let controllers = Arc::clone(&self.nvme_remote.nvme_remote_controllers);
        self.monitor(Sizes::new(spdk.clone(), controllers, Arc::clone(shared)));
        self.exports(&self.qos.qos_volumes);
        self.exports(&self.delay.delay_volumes);
        self.exports(&self.nvme.nvme_namespaces);
        self.exports(&self.virtio_scsi.virtio_scsi_luns);
        self.exports(&self.virtio_blk.virtio_blks);
        if takes_commands {
            self.parts(&self.nvme.nvme_namespaces);
            self.parts(&self.nvme.nvme_controllers);
            self.parts(&self.hosts.nvme_hosts);
        }
    }

    fn exports<K: Kind>(&self, objects: &Arc<Collection<K>>) {
        self.monitor(Exports::new(Arc::clone(objects), &self.shared));
    }

    fn parts<K: Parted>(&self, objects: &Arc<Collection<K>>) {
        let (objects, health) = (Arc::clone(objects), Arc::clone(&self.health));
        self.monitor(Parts::new(self.spdk.clone(), objects, health));
    }

    fn monitor(&self, what: impl Monitor) {
        tokio::spawn(monitor(what, Arc::clone(&self.shared)));
    }
}
