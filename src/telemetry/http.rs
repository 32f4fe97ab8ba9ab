//! The routes of the HTTP port that are for machines that look after the process.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::routing::get;

use super::health::Health;
use super::metrics::Scrapes;
use crate::gateway;

struct Routes {
    scrapes: Scrapes,
    health: Arc<Health>,
}

/// `GET /metrics`; `GET /healthz`: the process is alive; `GET /readyz`: it serves.
pub fn router(scrapes: Scrapes, health: Arc<Health>) -> Router {
    let refuse = async |method: Method| gateway::only_get(&method);
    let metrics = async |State(routes): State<Arc<Routes>>, headers: HeaderMap| {
        routes.scrapes.answer(&headers).await
    };
    let ready = async |State(routes): State<Arc<Routes>>| match routes.health.unready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {reason}\n"),
        ),
    };
    Router::new()
        .route("/metrics", get(metrics).fallback(refuse))
        .route("/healthz", get(async || "alive\n").fallback(refuse))
        .route("/readyz", get(ready).fallback(refuse))
        .with_state(Arc::new(Routes { scrapes, health }))
}
