//! The routes of a gRPC server.

use std::sync::Arc;

use tonic::service::Routes;

use super::Services;
use crate::api::inventory::inventory_service_server::InventoryServiceServer;
use crate::api::own::object_service_server::ObjectServiceServer;
use crate::inventory::{InventoryService, Roots};
use crate::objects::Objects;
use crate::resource::service::name_of;
use crate::telemetry::health;

impl Services {
    /// Returns all services, and grpc.health.v1, which knows each by its name; [`health::Health`] decides the status.
    /// The status is not serving until the replay of the records of the last run has been attempted.
    pub async fn routes(self, objects: Arc<Objects>) -> (Routes, Arc<health::Health>) {
        let mut names = Vec::new();
        let (health, health_service) = tonic_health::server::health_reporter();
        let routes = self.add_to(Routes::new(health_service), &mut names);
        let inventory = InventoryServiceServer::new(InventoryService::new(Roots::default()));
        let objects = ObjectServiceServer::from_arc(objects);
        names.extend([name_of(&inventory), name_of(&objects)]);
        let routes = routes.add_service(inventory).add_service(objects);
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
