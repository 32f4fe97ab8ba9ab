//! The gateway's HTTP server over real connections: its limits, TLS, shutdown, and JSON of all kinds.
//!
//! Only the inventory service is behind it, which needs no SPDK. Other services return UNIMPLEMENTED, as
//! tonic's router does for unknown services.

#[path = "../common/mod.rs"]
mod common;
mod http;
mod limits;
mod openapi;
mod served;
mod tls;

use axum::body::Body;
use axum::http::Request;
use common::{Random, route};
use http_body_util::BodyExt;
use opi_spdk::api;
use opi_spdk::gateway::Limits;
use serde_json::Value as Json;
use served::router;
use tower::ServiceExt;

/// Sends random requests, generated from the descriptors, to every route: none may cause a server error.
#[tokio::test]
async fn random_json_causes_no_server_error() {
    let router = router(Limits::default());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut built = 0;
    for _ in 0..60 {
        for rpc in api::pool()
            .services()
            .flat_map(|s| s.methods().collect::<Vec<_>>())
            .filter(|rpc| !rpc.is_server_streaming())
        {
            let (method, mut path, body) = route(&rpc);
            if let (Some(from), Some(to)) = (path.find('{'), path.find('=')) {
                path.replace_range(from..=to, "");
                path = path.replace('}', "");
            }
            while path.contains('*') {
                path = path.replacen('*', random.segment().trim_matches('*'), 1);
            }
            let input = rpc.input();
            let body = match input.get_field_by_name(&body) {
                Some(field) => random.message(field.kind().as_message().unwrap(), 4),
                None => random.anything(5),
            };
            let body = random.damage(body.to_string().into_bytes());
            let field = input.fields().nth(random.below(input.fields().len() + 1));
            let query = match field {
                Some(field) if random.one_in(2) => {
                    format!("?{}={}", field.json_name(), random.segment())
                }
                _ => String::new(),
            };
            let request = Request::builder()
                .method(method.as_str())
                .uri(format!("{path}{query}").replace(['{', '}'], "%7B"))
                .body(Body::from(body.clone()))
                .unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            let status = answer.status().as_u16();
            let known = [200, 400, 404, 405, 501].contains(&status);
            let body = String::from_utf8_lossy(&body);
            assert!(known, "{status} for {method} {path}{query} {body}");
            built += u32::from(status == 501);
            let bytes = answer.into_body().collect().await.unwrap().to_bytes();
            let answer: Json = serde_json::from_slice(&bytes).unwrap();
            assert!(answer.is_object());
        }
    }
    assert!(
        built > 1000,
        "only {built} requests were valid enough to reach a service"
    );
}
