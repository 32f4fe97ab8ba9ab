//! Whether the process is ready: what grpc.health.v1 and `GET /readyz` both tell.

use parking_lot::RwLock;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The state of all services together.
pub struct Health {
    reporter: HealthReporter,
    names: Vec<&'static str>,
    /// Why it is not ready, if it is not.
    unready: RwLock<Option<String>>,
}

impl Health {
    /// Of the services of these names, which serve.
    pub fn new(reporter: HealthReporter, names: Vec<&'static str>) -> Self {
        Self {
            reporter,
            names,
            unready: RwLock::new(None),
        }
    }

    /// Ready, or else not for this reason.
    pub(super) async fn set(&self, unready: Option<String>) {
        let was_ready = {
            let mut current = self.unready.write();
            std::mem::replace(&mut *current, unready.clone()).is_none()
        };
        if was_ready == unready.is_none() {
            return;
        }
        let status = match unready {
            None => ServingStatus::Serving,
            Some(_) => ServingStatus::NotServing,
        };
        // The empty name stands for the whole server.
        for name in self.names.iter().chain(&[""]) {
            self.reporter.set_service_status(*name, status).await;
        }
    }

    /// Why it is not ready; `None` if it is.
    pub(super) fn unready(&self) -> Option<String> {
        self.unready.read().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_server::Health as _;
    use tonic_health::server::HealthService;

    async fn told(service: &HealthService, name: &str) -> i32 {
        let service_name = name.to_owned();
        let request = HealthCheckRequest {
            service: service_name,
        };
        let answer = service.check(tonic::Request::new(request)).await;
        answer.expect("it is known").into_inner().status
    }

    #[tokio::test]
    async fn grpc_health_and_readyz_tell_the_same() {
        let reporter = HealthReporter::new();
        let service = HealthService::from_health_reporter(reporter.clone());
        reporter
            .set_service_status("a", ServingStatus::Serving)
            .await;
        let health = Health::new(reporter, vec!["a"]);
        let (serving, not) = (1, 2);
        for name in ["", "a"] {
            assert_eq!(told(&service, name).await, serving);
        }
        health.set(Some("why".to_owned())).await;
        assert_eq!(health.unready().as_deref(), Some("why"));
        for name in ["", "a"] {
            assert_eq!(told(&service, name).await, not);
        }
        health.set(None).await;
        assert_eq!(health.unready(), None);
        for name in ["", "a"] {
            assert_eq!(told(&service, name).await, serving);
        }
    }
}
