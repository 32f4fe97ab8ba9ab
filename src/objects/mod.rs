//! `opi_spdk.v1.ObjectService`: objects of all kinds, and their events.

pub(crate) mod hosts;
mod http;
mod watch;

use std::sync::Arc;

use spdk::Handle;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::access::Permission;
use crate::api::own::object_service_server::ObjectService;
use crate::api::own::{
    DisconnectHostRequest, DisconnectHostResponse, ListHostsRequest, ListHostsResponse,
    ListObjectsRequest, ListObjectsResponse, Object, WatchEventsRequest,
};
use crate::events::described;
use crate::frontend::NvmeSubsystems;
use crate::health::Health;
use crate::resource::{self, Collection, Name, Records, Scope, Shared, paging};

pub use http::router;

/// Concurrent watchers, over gRPC and HTTP together.
const WATCHERS: usize = 256;

/// The service.
pub struct Objects {
    shared: Arc<Shared>,
    spdk: Handle,
    subsystems: Arc<Collection<NvmeSubsystems>>,
    health: Arc<Health>,
    kinds: Vec<Arc<dyn Records>>,
    watchers: Arc<Semaphore>,
}

impl Objects {
    /// Serves the records of these kinds, and the hosts of these subsystems.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        spdk: &Handle,
        health: &Arc<Health>,
        kinds: Vec<Arc<dyn Records>>,
        subsystems: &Arc<Collection<NvmeSubsystems>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            spdk: spdk.clone(),
            subsystems: Arc::clone(subsystems),
            health: Arc::clone(health),
            kinds,
            watchers: Arc::new(Semaphore::new(WATCHERS)),
        })
    }

    fn list(
        &self,
        request: &ListObjectsRequest,
        scope: &Scope,
    ) -> Result<ListObjectsResponse, crate::error::Error> {
        let size = paging::size(request.page_size)?;
        let after = paging::resume(&request.page_token, "")?;
        // Read before the objects: a concurrent change has a later revision, so a watch from here reports it, even if
        // it is also listed.
        let revision = self.shared.revision();
        let most = size.saturating_add(1);
        let mut found: Vec<(&dyn Records, Name, u64)> = Vec::new();
        for kind in &self.kinds {
            let named = kind.after(after.as_deref(), most, scope).into_iter();
            found.extend(named.map(|(name, revision)| (&**kind, name, revision)));
        }
        found.sort_by(|(_, one, _), (_, other, _)| one.key().cmp(other.key()));
        let more = found.len() > size;
        found.truncate(size);
        let next_page_token = match found.last() {
            Some((_, last, _)) if more => paging::token(last.key().as_str()),
            _ => String::new(),
        };
        let objects = found.into_iter();
        Ok(ListObjectsResponse {
            objects: objects
                .map(|(kind, name, revision)| self.object(kind, &name, revision, scope))
                .collect(),
            next_page_token,
            revision: i64::try_from(revision).unwrap_or(i64::MAX),
        })
    }

    fn object(&self, kind: &dyn Records, name: &Name, revision: u64, scope: &Scope) -> Object {
        let condition = self.shared.conditions.of(name.key());
        let registry = &self.shared.registry;
        let fault = match condition {
            resource::Condition::Applied => self.health.fault_of(name),
            _ => None,
        };
        let since = match &condition {
            resource::Condition::Pending(pending) => Some(pending.since),
            resource::Condition::Deleting { since } => Some(*since),
            resource::Condition::Applied => fault.as_ref().map(|fault| fault.since),
        };
        let (condition, reason) = described(&condition);
        let reason = fault.map_or_else(|| reason.to_owned(), |fault| fault.what);
        let known = |names: &mut dyn Iterator<Item = &Name>| {
            let keys = names.map(|name| name.key().to_string());
            keys.filter(|key| scope.has(key)).collect()
        };
        Object {
            name: name.to_string(),
            typed_name: name.key().to_string(),
            kind: kind.kind().to_owned(),
            revision: i64::try_from(revision).unwrap_or(i64::MAX),
            condition: condition.into(),
            reason: scope.redact(&reason).into_owned(),
            since: since.map(Into::into),
            uses: known(&mut registry.dependencies_of(name).iter()),
            used_by: known(&mut registry.users_of(name).iter()),
            device: kind.device(name.key()).unwrap_or_default(),
        }
    }
}

#[tonic::async_trait]
impl ObjectService for Objects {
    type WatchEventsStream = watch::Events;

    async fn list_objects(
        &self,
        request: Request<ListObjectsRequest>,
    ) -> Result<Response<ListObjectsResponse>, Status> {
        let scope = Scope::of(request.extensions());
        Ok(Response::new(self.list(request.get_ref(), &scope)?))
    }

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<watch::Events>, Status> {
        let permission = request.extensions().get::<Permission>().cloned();
        let after = request.get_ref().after_revision;
        Ok(Response::new(self.events(after, permission)?))
    }

    async fn list_hosts(
        &self,
        request: Request<ListHostsRequest>,
    ) -> Result<Response<ListHostsResponse>, Status> {
        Ok(Response::new(self.list_of_hosts(request.get_ref()).await?))
    }

    async fn disconnect_host(
        &self,
        request: Request<DisconnectHostRequest>,
    ) -> Result<Response<DisconnectHostResponse>, Status> {
        Ok(Response::new(self.disconnect(request.get_ref()).await?))
    }
}
