//! Adversarial tests of the NVMe/TCP initiator: what the peers of paths may send, and that nobody else is harmed.

#[path = "../common/mod.rs"]
mod common;

mod authentication;
mod floods;
mod identify;
mod left_out;
mod minutes;
mod notice;
mod pdus;
mod reasons;
mod rotation;
mod session;
mod silence;
mod tls;
mod tls_messages;
