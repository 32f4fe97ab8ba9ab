//! Readiness of the process, for grpc.health.v1 and `GET /readyz`.

use std::time::Duration;

use parking_lot::RwLock;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Readiness, common to all services.
pub struct Health {
    reporter: HealthReporter,
    names: Vec<&'static str>,
    unready: RwLock<Unready>,
}

/// Reasons for not being ready.
struct Unready {
    /// Records of the previous run are still being restored.
    restoring: bool,
    /// A reactor stalls.
    stalled: Option<String>,
    /// The disk of the state hangs.
    is_hung: bool,
}

/// Interval of the checks of the state's disk.
pub const LOOK: Duration = Duration::from_secs(1);

/// The state's disk counts as hung after this time without an answer.
const HUNG: Duration = Duration::from_secs(5);

impl Unready {
    fn reason(&self) -> Option<String> {
        let restoring = || "what there was before is being made again".to_owned();
        let stalled = self.stalled.clone();
        let hung = || "the disk of state-dir does not answer: changes wait".to_owned();
        stalled
            .or_else(|| self.restoring.then(restoring))
            .or_else(|| self.is_hung.then(hung))
    }
}

impl Health {
    /// Starts as not serving, for the services of these names.
    pub async fn new(reporter: HealthReporter, names: Vec<&'static str>) -> Self {
        let health = Self {
            reporter,
            names,
            unready: RwLock::new(Unready {
                restoring: true,
                stalled: None,
                is_hung: false,
            }),
        };
        health.report(ServingStatus::NotServing).await;
        health
    }

    /// Restoring has finished: every record was tried once.
    pub async fn set_restored(&self) {
        self.change(|unready| unready.restoring = false).await;
    }

    /// Sets the reason why a reactor stalls, or that none does.
    pub(super) async fn set_stalled(&self, reason: Option<String>) {
        self.change(|unready| unready.stalled = reason).await;
    }

    /// Sets for how long the state's disk has not answered.
    pub async fn set_waiting(&self, waiting: Option<Duration>) {
        let is_hung = waiting.is_some_and(|waiting| waiting >= HUNG);
        self.change(|unready| {
            if is_hung != unready.is_hung {
                match is_hung {
                    true => tracing::error!("the disk of state-dir does not answer: changes wait"),
                    false => tracing::info!("the disk of state-dir answers again"),
                }
            }
            unready.is_hung = is_hung;
        })
        .await;
    }

    async fn change(&self, change: impl FnOnce(&mut Unready)) {
        let (was_ready, is_ready) = {
            let mut unready = self.unready.write();
            let was_ready = unready.reason().is_none();
            change(&mut unready);
            (was_ready, unready.reason().is_none())
        };
        match (was_ready, is_ready) {
            (false, true) => self.report(ServingStatus::Serving).await,
            (true, false) => self.report(ServingStatus::NotServing).await,
            _ => {}
        }
    }

    async fn report(&self, status: ServingStatus) {
        // The empty name is the whole server's (grpc.health.v1).
        for name in self.names.iter().chain(&[""]) {
            self.reporter.set_service_status(*name, status).await;
        }
    }

    /// Why the process is not ready; `None` if it is.
    pub(super) fn unready(&self) -> Option<String> {
        self.unready.read().reason()
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
        let health = Health::new(reporter, vec!["a"]).await;
        let (serving, not) = (1, 2);
        for name in ["", "a"] {
            assert_eq!(told(&service, name).await, not);
        }
        assert!(health.unready().is_some());
        health.set_restored().await;
        for name in ["", "a"] {
            assert_eq!(told(&service, name).await, serving);
        }
        health.set_stalled(Some("why".to_owned())).await;
        assert_eq!(health.unready().as_deref(), Some("why"));
        for name in ["", "a"] {
            assert_eq!(told(&service, name).await, not);
        }
        health.set_stalled(None).await;
        assert_eq!(health.unready(), None);
        for name in ["", "a"] {
            assert_eq!(told(&service, name).await, serving);
        }
    }
}
