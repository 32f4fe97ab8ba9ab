//! Answers scrapes.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use bytes::Bytes;
use tokio::sync::Mutex;

use super::reading::{Reader, Reading};
use super::text::Form;
use super::{Metrics, encode};
use crate::services::Services;
use crate::telemetry::Telemetry;

/// Answers scrapes, with one reading at a time.
pub struct Scrapes {
    reader: Reader,
    metrics: Arc<Metrics>,
    last: Mutex<Option<Last>>,
}

struct Last {
    ended: Instant,
    reading: Arc<Reading>,
    /// Encoded on demand.
    open_metrics: Option<Bytes>,
    prometheus: Option<Bytes>,
}

impl Last {
    fn text(&mut self, form: Form) -> &mut Option<Bytes> {
        match form {
            Form::OpenMetrics => &mut self.open_metrics,
            Form::Prometheus => &mut self.prometheus,
        }
    }
}

impl Scrapes {
    /// Scrapes of these services.
    pub fn new(services: Services, telemetry: &Arc<Telemetry>) -> Self {
        Self {
            reader: Reader::new(services, telemetry),
            metrics: Arc::clone(&telemetry.metrics),
            last: Mutex::default(),
        }
    }

    /// Answers a scrape.
    pub async fn answer(&self, headers: &HeaderMap) -> Response<Body> {
        let accept = headers.get_all(ACCEPT).iter();
        let form = Form::of(accept.filter_map(|value| value.to_str().ok()));
        let Some(text) = self.text(form).await else {
            let mut response = Response::new(Body::from("metrics cannot be written\n"));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return response;
        };
        let mut response = Response::new(Body::from(text));
        let kind = HeaderValue::from_static(form.content_type());
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }

    /// The text of a reading that ended after this request arrived: a new one, or that of an earlier request.
    async fn text(&self, form: Form) -> Option<Bytes> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        let last = match last.as_mut().filter(|last| last.ended >= asked) {
            Some(last) => last,
            None => {
                let reading = Arc::new(self.reader.read().await?);
                last.insert(Last {
                    ended: Instant::now(),
                    reading,
                    open_metrics: None,
                    prometheus: None,
                })
            }
        };
        if let Some(text) = last.text(form) {
            return Some(text.clone());
        }
        let (metrics, reading) = (Arc::clone(&self.metrics), Arc::clone(&last.reading));
        // Blocking: many volumes make long text.
        let written = tokio::task::spawn_blocking(move || encode::text(&metrics, &reading, form));
        let text = Bytes::from(written.await.ok()?.ok()?);
        *last.text(form) = Some(text.clone());
        Some(text)
    }
}
