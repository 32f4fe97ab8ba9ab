//! Tests of the client against a scripted monitor.

mod again;
mod connection;
mod peer;
mod plug;
mod plugged;
mod unplug;
