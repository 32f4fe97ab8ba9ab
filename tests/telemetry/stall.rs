//! A stalled reactor: its thread is stopped, as by a debugger.

use std::time::Duration;

use opi_spdk::api::own::object_service_client::ObjectServiceClient;
use opi_spdk::api::own::{EventType, WatchEventsRequest};
use serde_json::json;

use crate::common::stopped::{Stopped, reactor};
use crate::common::{Options, Scrape, Target, eventually, get_text, subsystem, tcp_controller};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stalled_reactor_is_reported_until_it_resumes() {
    let target = Target::start_with(Options::default()).await;
    let client = target.client().await;
    assert!(client.is_serving().await);
    let mut watching = ObjectServiceClient::new(client.channel());
    let request = WatchEventsRequest::default();
    let events = watching.watch_events(request).await.expect("a watch");
    let mut events = events.into_inner();
    let stopped = Stopped::new(reactor(&target, 0));
    eventually("the target reports NOT_SERVING", SOON, async || {
        (!client.is_serving().await).then_some(())
    })
    .await;
    let (status, text) = get_text(&target, "/readyz", "*/*").await;
    assert_eq!(
        (status, text.as_str()),
        (503, "not ready: the reactor of core 0 does not turn\n")
    );
    assert_eq!(get_text(&target, "/healthz", "*/*").await.0, 200);
    // Metrics are served without SPDK's part.
    let scrape = Scrape::of(&target).await;
    let core = [("core", "0")];
    assert_eq!(scrape.value("opi_spdk_reactor_stalls_total", &core), 1.0);
    assert!(scrape.value("opi_spdk_reactor_last_turn_seconds", &core) >= 1.0);
    assert_eq!(scrape.value("opi_spdk_scrape_complete", &[]), 0.0);
    let told = events.message().await.expect("no error").expect("an event");
    assert_eq!(told.r#type(), EventType::ReactorStalled, "{told:?}");
    assert!(told.reason.contains("core 0"), "{told:?}");
    stopped.go_on();
    let told = events.message().await.expect("no error").expect("an event");
    assert_eq!(told.r#type(), EventType::ReactorResumed, "{told:?}");
    eventually("the target reports SERVING again", SOON, async || {
        client.is_serving().await.then_some(())
    })
    .await;
    assert_eq!(get_text(&target, "/readyz", "*/*").await.0, 200);
    eventually("metrics are complete again", SOON, async || {
        let scrape = Scrape::of(&target).await;
        (scrape.value("opi_spdk_scrape_complete", &[]) == 1.0).then_some(())
    })
    .await;
    let log = target.log();
    for line in ["reactor does not turn", "reactor turns again"] {
        assert_eq!(log.matches(line).count(), 1, "{line}:\n{log}");
    }
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reactor_that_stalls_within_a_step_is_reported_with_the_step() {
    let target = Target::start().await;
    let client = target.client().await;
    let mut watching = ObjectServiceClient::new(client.channel());
    let subsystem = subsystem(&client, "s", json!({})).await;
    let events = watching.watch_events(WatchEventsRequest::default()).await;
    let mut events = events.expect("a watch").into_inner();
    // Of all that this process does next, creating a controller alone listens.
    let stopped = Stopped::at(reactor(&target, 0), nix::libc::SYS_listen);
    let creating = tokio::spawn(async move { tcp_controller(&client, &subsystem).await });
    let told = events.message().await.expect("no error").expect("an event");
    assert_eq!(told.r#type(), EventType::ReactorStalled, "{told:?}");
    let step = "NvmeController";
    assert!(told.reason.contains(step), "{told:?}");
    stopped.go_on();
    creating.await.expect("the controller is created");
    let log = target.log();
    let line = log
        .lines()
        .find(|line| line.contains("reactor does not turn"));
    assert!(line.is_some_and(|line| line.contains(step)), "{log}");
    target.stop();
}
