//! HTTP routes for monitoring.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, StatusCode};
use axum::routing::get;

use super::health::Health;
use super::metrics::Scrapes;
use crate::gateway;

/// Routes `GET /metrics`.
pub fn metrics(scrapes: Scrapes) -> Router {
    let metrics = async |State(scrapes): State<Arc<Scrapes>>, headers: HeaderMap| {
        scrapes.answer(&headers).await
    };
    Router::new()
        .route("/metrics", get(metrics).fallback(refuse))
        .with_state(Arc::new(scrapes))
}

/// Routes `GET /healthz` (liveness) and `GET /readyz` (readiness).
pub fn health(health: Arc<Health>) -> Router {
    let ready = async |State(health): State<Arc<Health>>| match health.unready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {reason}\n"),
        ),
    };
    Router::new()
        .route("/healthz", get(async || "alive\n").fallback(refuse))
        .route("/readyz", get(ready).fallback(refuse))
        .with_state(health)
}

async fn refuse(method: Method) -> Response<Body> {
    gateway::only_get(&method)
}
