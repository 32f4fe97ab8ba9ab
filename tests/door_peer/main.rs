//! The door NVMe/TCP as initiator: peers that paths lead to, what they send, and what it must not do to
//! anybody.

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
