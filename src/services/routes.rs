//! The routes of a gRPC server.

use std::sync::Arc;

use tonic::server::NamedService;
use tonic::service::Routes;

use super::Services;
use crate::api::inventory::inventory_service_server::InventoryServiceServer;
use crate::api::own::object_service_server::ObjectServiceServer;
use crate::inventory::{InventoryService, Roots};
use crate::objects::Objects;
use crate::telemetry::health;

impl Services {
    /// Returns all services, and grpc.health.v1, which knows each by its name; [`health::Health`] decides the status.
    /// The status is not serving until the replay of the records of the last run has been attempted.
    pub async fn routes(self, objects: Arc<Objects>) -> (Routes, Arc<health::Health>) {
        let mut names = Vec::new();
        let (health, health_service) = tonic_health::server::health_reporter();
        let mut routes = Routes::new(health_service);
        macro_rules! serve {
            ($($service:expr),* $(,)?) => {$(
                let service = $service;
                names.push(name_of(&service));
                routes = routes.add_service(service);
            )*};
        }
        serve![
            self.null.server(),
            self.malloc.server(),
            self.aio.server(),
            self.nvme.server(),
            self.hosts.server(),
            self.nvme_remote.server(),
            self.credentials.server(),
            self.encryption.server(),
            self.qos.server(),
            self.delay.server(),
            self.referrals.server(),
            self.virtio_blk.server(),
            self.virtio_scsi.server(),
            InventoryServiceServer::new(InventoryService::new(Roots::default())),
            ObjectServiceServer::from_arc(objects),
        ];
        let health = Arc::new(health::Health::new(health, names).await);
        let (shared, restored) = (self.shared, Arc::clone(&health));
        tokio::spawn(async move {
            shared.restored().await;
            restored.set_restored().await;
            loop {
                tokio::time::sleep(health::LOOK).await;
                restored.set_waiting(shared.store().waiting()).await;
            }
        });
        (routes, health)
    }
}

fn name_of<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}
