//! Answers scrapes.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use tokio::sync::Mutex;

use super::reading::Reader;
use super::text::{Form, prometheus};
use super::{Metrics, encode};
use crate::services::Services;
use crate::telemetry::Telemetry;

/// Answers scrapes: one reading at a time.
pub struct Scrapes {
    reader: Reader,
    metrics: Arc<Metrics>,
    last: Mutex<Option<Last>>,
}

struct Last {
    ended: Instant,
    text: Arc<String>,
}

impl Scrapes {
    /// Of these services.
    pub fn new(services: Services, telemetry: &Arc<Telemetry>) -> Self {
        Self {
            reader: Reader::new(services, telemetry),
            metrics: Arc::clone(&telemetry.metrics),
            last: Mutex::default(),
        }
    }

    /// The answer to a scrape.
    pub async fn answer(&self, headers: &HeaderMap) -> Response<Body> {
        let accept = headers.get_all(ACCEPT).iter();
        let form = Form::of(accept.filter_map(|value| value.to_str().ok()));
        let Some(text) = self.text().await else {
            let mut response = Response::new(Body::from("metrics cannot be written\n"));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return response;
        };
        let body = match form {
            Form::OpenMetrics => Body::from(String::clone(&text)),
            Form::Prometheus => Body::from(prometheus(&text)),
        };
        let mut response = Response::new(body);
        let kind = HeaderValue::from_static(form.content_type());
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }

    /// A reading that ended after this was asked for: one's own, or that of whoever came before.
    async fn text(&self) -> Option<Arc<String>> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.ended >= asked) {
            return Some(Arc::clone(&last.text));
        }
        let reading = self.reader.read().await;
        let metrics = Arc::clone(&self.metrics);
        // Many volumes are many lines.
        let written = tokio::task::spawn_blocking(move || encode::text(&metrics, reading));
        let text = Arc::new(written.await.ok()?.ok()?);
        *last = Some(Last {
            ended: Instant::now(),
            text: Arc::clone(&text),
        });
        Some(text)
    }
}
