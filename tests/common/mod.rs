//! Shared by the end-to-end tests: the program under test, its clients, SPDK's tools as initiators, and
//! polling for a condition with a deadline.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses its own part of this"
)]

mod attempt;
mod authority;
mod bdevperf;
mod browser;
mod client;
mod collector;
mod driver;
mod event_source;
mod fixture;
mod http;
pub mod hung_disk;
mod initiator;
mod json;
mod jsonrpc;
pub mod kinds;
mod loop_device;
mod machine;
pub mod nvme_tcp;
pub mod nvme_tcp_peer;
mod openssl_authority;
mod place;
mod port;
mod psk;
mod random;
mod relay;
mod resource;
mod route;
mod scrape;
mod small_disk;
mod sockets;
pub mod stopped;
mod target;
mod tls_records;
mod tools;
pub mod vfio_user;
pub mod vhost_user;
mod virtio;

use std::time::{Duration, Instant};

pub use attempt::Attempt;
pub use authority::{Authority, keep_private};
pub use bdevperf::{Bdevperf, Done, Job};
pub use browser::Browser;
pub use client::{
    Client, check_details, encode, expect_invalid, find_method, has_behaviour, message_of, path_of,
    to_json, violations,
};
pub use collector::{Collector, attribute, exporting_to};
pub use driver::Driver;
pub use event_source::{EventSource, SentEvent};
pub use fixture::*;
pub use http::{Answer, Http, metrics};
pub use initiator::Initiator;
pub use json::*;
pub use jsonrpc::JsonRpc;
pub use loop_device::Loop;
pub use machine::Machine;
pub use openssl_authority::OpensslAuthority;
pub use port::free_port;
pub use psk::{Psk, dhchap_key, dhchap_of, expand_label, hmac, psk_form, psk_of, psk_with};
pub use random::Random;
pub use relay::Relay;
pub use resource::{Resource, kind_of, name_of};
pub use route::route;
pub use scrape::{OPEN_METRICS, Scrape, get_text};
pub use small_disk::SmallDisk;
pub use sockets::devices_beside;
pub use target::{Options, Target};
pub use tls_records::{KeyLog, Records};
pub use tools::{Running, Tool, hugepages_or_fail};
pub use virtio::Virtio;

/// Poll interval of a condition.
const STEP: Duration = Duration::from_millis(10);

/// Polls `check` until it returns a value. Panics with `what` when the timeout expires.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut check: impl AsyncFnMut() -> Option<T>,
) -> T {
    let end = Instant::now() + within;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not met within {within:?}");
        tokio::time::sleep(STEP).await;
    }
}

/// Polls `check` on the current thread; returns `None` when the timeout expires.
pub fn poll_blocking<T>(within: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(found) = check() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(STEP);
    }
}
